"""Which process owns a pending turn: a living one keeps it, and a dead one loses it."""

import asyncio
import os
from datetime import UTC, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app import clock
from app.db.database import Database
from app.settings import Settings
from main import create_app
from services.chat import leases, recovery, tokenizer
from services.chat.leases import Lease, Observer
from services.chat.runner import TurnRunner
from services.chat.tokenizer import TokenCounts
from tests.support import pending_turns, problems
from tests.support.accounts import Caller
from tests.support.openai_server import OpenAIServer
from tests.support.pending_turns import ESTIMATE, MACHINE, REAL, UNUSED_PID, app_settings, model

__all__ = ["app_settings", "model"]


async def leased(database: Database) -> list[str]:
    async with database.reads() as session:
        return list(await session.scalars(text("SELECT id FROM server_processes")))


async def test_a_turn_of_a_living_process_is_kept_for_any_time(
    client: httpx.AsyncClient,
    database: Database,
    ayu: Caller,
    model: OpenAIServer,
    owner: TurnRunner,
    other: TurnRunner,
) -> None:
    looking = pending_turns.observer(other)
    async with pending_turns.asking(client, ayu, model) as task:
        for _ in range(3 * leases.STILL_LOOKS):
            await owner.renew_lease()
            for _ in range(leases.STILL_LOOKS - 1):
                assert await recovery.settle_orphans(other, looking) == 0
        assert await leased(database) == [owner.lease.process]
        assert (await client.get("/conversations", headers=ayu.headers)).status_code == 200
        model.release()
        assert (await task).json()["message"]["total_tokens"] == 1500
    assert await pending_turns.stored(database) == [REAL]
    await recovery.settle_orphans(other, looking)
    assert await leased(database) == [], "a process without turns needs no lease"


async def test_a_process_never_judges_its_own_turns(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, owner: TurnRunner
) -> None:
    looking = pending_turns.observer(owner)
    async with pending_turns.asking(client, ayu, model):
        for _ in range(2 * leases.STILL_LOOKS):
            assert await recovery.settle_orphans(owner, looking) == 0
    assert await pending_turns.stored(database) == [REAL]


async def test_a_clock_that_is_wrong_ends_no_turn(
    client: httpx.AsyncClient,
    database: Database,
    ayu: Caller,
    model: OpenAIServer,
    owner: TurnRunner,
    other: TurnRunner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with pending_turns.asking(client, ayu, model):
        at = clock.now()
        for days in (1, -1, 400):
            monkeypatch.setattr(clock, "now", lambda at=at, days=days: at + timedelta(days=days))
            for runner in (owner, other):
                assert await recovery.settle_orphans(runner, pending_turns.observer(runner)) == 0
    assert await pending_turns.stored(database) == [REAL]


async def test_a_turn_whose_process_shows_no_life_is_settled(
    database: Database, ayu: Caller, other: TurnRunner
) -> None:
    await pending_turns.begin(database, ayu, f"{'0' * 32}/first")
    looking = pending_turns.observer(other)
    for look in range(leases.STILL_LOOKS):
        assert await recovery.settle_orphans(other, looking) == 0
        if look == 1:
            await pending_turns.begin(database, ayu, f"{'0' * 32}/second")  # each turn is watched for itself
    assert await recovery.settle_orphans(other, looking) == 1
    assert [status for status, *_ in await pending_turns.stored(database)] == ["failed", "pending"]
    assert await recovery.settle_orphans(other, looking) == 0
    assert await recovery.settle_orphans(other, looking) == 1
    assert await pending_turns.stored(database) == [ESTIMATE] * 2


async def test_of_two_that_settle_a_turn_at_once_one_says_so(
    database: Database,
    ayu: Caller,
    other: TurnRunner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    both, estimate = asyncio.Barrier(2), tokenizer.estimate

    async def estimated(*arguments: Any) -> TokenCounts:
        await asyncio.wait_for(both.wait(), 10)  # both have found the turn pending
        return await estimate(*arguments)

    monkeypatch.setattr(tokenizer, "estimate", estimated)
    await pending_turns.begin(database, ayu, f"{'0' * 32}:{MACHINE}:{UNUSED_PID}:1/x")
    third = TurnRunner(database, other.upstream, other.prices, UTC)
    looks = [recovery.settle_orphans(runner, pending_turns.observer(runner)) for runner in (other, third)]
    assert sorted(await asyncio.gather(*looks)) == [0, 1]
    said = [record.getMessage() for record in caplog.records if record.name == recovery.logger.name]
    assert said == ["settled messages whose process had died: 1"]
    assert await pending_turns.stored(database) == [ESTIMATE]


async def test_looks_that_follow_at_once_are_no_evidence(database: Database, ayu: Caller, other: TurnRunner) -> None:
    """As after a suspension, when everything that was due in the meantime happens at once."""
    await pending_turns.begin(database, ayu, f"{'0' * 32}/x")
    looking = Observer(other.lease)
    for _ in range(5 * leases.STILL_LOOKS):
        assert await recovery.settle_orphans(other, looking) == 0


@pytest.mark.parametrize(
    ("place", "gone"),
    [
        (f":{MACHINE}:{UNUSED_PID}:1", True),
        (f":{MACHINE}:{os.getpid()}:1", True),
        (f":{MACHINE}:{os.getpid()}:{leases._state_and_start(os.getpid())[1]}", False),
        (f":{MACHINE}7:{UNUSED_PID}:1", False),
        (f":{'0' * 8}-0000-4000-8000-{'0' * 12}:4026531836:{UNUSED_PID}:1", False),
        ("", False),
    ],
    ids=["no such process", "its number is another's now", "alive", "another PID namespace", "another boot", "unknown"],
)
async def test_only_a_process_of_this_namespace_is_known_to_be_gone(
    database: Database, ayu: Caller, other: TurnRunner, place: str, gone: bool
) -> None:
    await pending_turns.begin(database, ayu, f"{'0' * 32}{place}/x")
    assert await recovery.settle_orphans(other, pending_turns.observer(other)) == gone


@pytest.mark.parametrize("error", [PermissionError, OverflowError])
async def test_a_process_that_is_hidden_is_not_known_to_be_gone(
    database: Database, ayu: Caller, other: TurnRunner, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def refuse(_pid: int, _signal: int) -> None:
        raise error

    monkeypatch.setattr(os, "kill", refuse)
    await pending_turns.begin(database, ayu, f"{'0' * 32}:{MACHINE}:{UNUSED_PID}:1/x")
    assert await recovery.settle_orphans(other, pending_turns.observer(other)) == 0


def test_without_proc_a_process_has_only_its_random_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "readlink", lambda _path: "1")
    assert len(Lease().process) == 32
    assert leases.process_of(Lease().new_turn()) is not None


def test_no_two_processes_and_no_two_turns_have_one_name() -> None:
    assert len({Lease().process for _ in range(100)}) == 100
    lease = Lease()
    assert len({lease.new_turn() for _ in range(100)}) == 100


FORMER = "a-host/7/12.34/9ab6e0a2-4a1c-4a58-a7a7-3e7c0a0f1c55"


@pytest.mark.parametrize("name", [FORMER, "", "/", "x", f"{'0' * 32}:/x", f"{'F' * 32}/x"])
@pytest.mark.sampled(2)
async def test_former_turns_are_settled_once_they_are_old(
    database: Database, ayu: Caller, other: TurnRunner, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    await pending_turns.begin(database, ayu, name)
    looking = pending_turns.observer(other)
    for _ in range(2 * leases.STILL_LOOKS):
        assert await recovery.settle_orphans(other, looking) == 0
    at = clock.now()
    monkeypatch.setattr(clock, "now", lambda: at + timedelta(minutes=12))
    assert await recovery.settle_orphans(other, looking) == 1
    assert await pending_turns.stored(database) == [ESTIMATE]


async def test_former_turns_are_settled_whatever_the_clock_says(
    database: Database, ayu: Caller, other: TurnRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pending_turns.begin(database, ayu, FORMER)
    at = clock.now()
    monkeypatch.setattr(clock, "now", lambda: at - timedelta(days=400))
    looking = pending_turns.observer(other)
    looks = [await recovery.settle_orphans(other, looking) for _ in range(leases.STILL_LOOKS_WITHOUT_HEARTBEATS + 1)]
    assert looks == [0] * leases.STILL_LOOKS_WITHOUT_HEARTBEATS + [1]


async def test_an_earlier_version_never_claims_a_new_name() -> None:
    """It reads host, process id and start, and settles what ran on its host."""
    host, pid, *_ = f"{Lease().new_turn()}///".split("/")
    assert ":" in host
    assert not pid.isdigit()


async def test_the_lease_is_renewed_until_the_last_turn_is_settled(
    app_settings: dict[str, Any], database: Database, ayu: Caller, model: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.05)
    app = create_app(Settings.load(**app_settings, shutdown_seconds=1))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://test")
        task = asyncio.create_task(client.post("/chat", headers=ayu.headers, json={"message": "Hi", "stream": False}))
        await asyncio.to_thread(model.wait_until, lambda: bool(model.requests))
        at_the_end = app.state.foundation.runner.lease.heartbeats
    assert app.state.foundation.runner.lease.heartbeats > at_the_end + 5
    problems.check(await task, 504)
    await client.aclose()

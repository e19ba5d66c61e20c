"""Which process owns a pending turn: a living one keeps it, a dead one loses it, a late result replaces an estimate."""

import asyncio
import contextlib
import functools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Row, text

from app import clock
from app.database import Database
from app.settings import Settings
from main import create_app
from services import chat, leases, recovery, rollups, token_usage
from services.chat import Question, Turn
from services.leases import Lease, Observer, PendingTurn
from services.pricing import PriceList
from services.tokenizer import TokenCounts
from services.turns import Turns
from services.upstream import OfflineUpstream
from tests import accounts, crash_driver, invariants, openai_server, problems, records
from tests.accounts import SECRET_KEY, Caller
from tests.openai_server import Answer, OpenAIServer, usage

ESTIMATE = ("failed", "", 8, 0)
REAL = ("complete", "Hello there, how are you?", 1000, 500)


@pytest.fixture
def model() -> Iterator[OpenAIServer]:
    """The model's service, which says nothing until it is released."""
    with openai_server.running() as server:
        server.answer = Answer(usage=usage(1000, 500, 100), stall_after=0)
        yield server


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer) -> dict[str, Any]:
    """The application asks the tests' model."""
    return {"database_url": database_url, "secret_key": SECRET_KEY, "llm_base_url": model.url, "llm_model": "gpt-4o"}


@pytest.fixture
def owner(app: FastAPI) -> Turns:
    """The turns of the application."""
    turns: Turns = app.state.foundation.turns
    return turns


@pytest.fixture
def other(database: Database) -> Turns:
    """The turns of another process with the same database."""
    return Turns(database, OfflineUpstream(), PriceList(), UTC)


def observer(turns: Turns) -> Observer:
    """What a process sees that looks as often as it likes."""
    return Observer(turns.lease, pause_seconds=0)


async def answers(database: Database) -> list[Row[*tuple[Any, ...]]]:
    async with database.reads() as session:
        statement = "SELECT * FROM messages WHERE role = 'assistant' AND turn IS NOT NULL ORDER BY id"
        return list(await session.execute(text(statement)))


async def stored(database: Database) -> list[tuple[Any, ...]]:
    """The answers, after a check that they are counted right."""
    await invariants.check(database)
    columns = ("status", "content", "input_tokens", "output_tokens")
    return [tuple(getattr(row, name) for name in columns) for row in await answers(database)]


async def leased(database: Database) -> list[str]:
    async with database.reads() as session:
        return list(await session.scalars(text("SELECT id FROM server_processes")))


@contextlib.asynccontextmanager
async def asking(
    client: httpx.AsyncClient, caller: Caller, model: OpenAIServer, **fields: Any
) -> AsyncIterator[asyncio.Task[httpx.Response]]:
    """A turn that is being answered, until the model is released."""
    body = {"message": "Hi", "stream": False, **fields}
    task = asyncio.create_task(client.post("/chat", headers=caller.headers, json=body))
    await asyncio.to_thread(model.wait_until, lambda: bool(model.requests))
    try:
        yield task
    finally:
        model.release()
        await asyncio.wait([task])


async def begin(database: Database, caller: Caller, name: str) -> Turn:
    """A turn that nobody answers."""
    question = Question(caller.id, "Hi", "gpt-4o")
    begun = await database.transaction(lambda session: chat.begin(session, question, name, UTC))
    assert isinstance(begun, Turn)
    return begun


async def take(turns: Turns) -> None:
    """Looks, from another process, until it takes the owner for dead."""
    looking = observer(turns)
    settled = [await recovery.settle_orphans(turns, looking) for _ in range(leases.STILL_LOOKS + 1)]
    assert settled == [0] * leases.STILL_LOOKS + [1]


async def test_a_turn_of_a_living_process_is_kept_however_long_it_takes(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, owner: Turns, other: Turns
) -> None:
    looking = observer(other)
    async with asking(client, ayu, model) as task:
        for _ in range(3 * leases.STILL_LOOKS):
            await owner.renew_lease()
            for _ in range(leases.STILL_LOOKS - 1):
                assert await recovery.settle_orphans(other, looking) == 0
        assert await leased(database) == [owner.lease.process]
        assert (await client.get("/conversations", headers=ayu.headers)).status_code == 200
        model.release()
        assert (await task).json()["message"]["total_tokens"] == 1500
    assert await stored(database) == [REAL]
    await recovery.settle_orphans(other, looking)
    assert await leased(database) == [], "a process without turns needs no lease"


async def test_a_process_never_judges_its_own_turns(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, owner: Turns
) -> None:
    looking = observer(owner)
    async with asking(client, ayu, model):
        for _ in range(2 * leases.STILL_LOOKS):
            assert await recovery.settle_orphans(owner, looking) == 0
    assert await stored(database) == [REAL]


async def test_a_clock_that_is_wrong_ends_no_turn(
    client: httpx.AsyncClient,
    database: Database,
    ayu: Caller,
    model: OpenAIServer,
    owner: Turns,
    other: Turns,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with asking(client, ayu, model):
        at = clock.now()
        for days in (1, -1, 400):
            monkeypatch.setattr(clock, "now", lambda at=at, days=days: at + timedelta(days=days))
            for turns in (owner, other):
                assert await recovery.settle_orphans(turns, observer(turns)) == 0
    assert await stored(database) == [REAL]


async def test_a_turn_whose_process_shows_no_life_is_settled(database: Database, ayu: Caller, other: Turns) -> None:
    await begin(database, ayu, f"{'0' * 32}/first")
    looking = observer(other)
    for look in range(leases.STILL_LOOKS):
        assert await recovery.settle_orphans(other, looking) == 0
        if look == 1:
            await begin(database, ayu, f"{'0' * 32}/second")  # each turn is watched for itself
    assert await recovery.settle_orphans(other, looking) == 1
    assert [status for status, *_ in await stored(database)] == ["failed", "pending"]
    assert await recovery.settle_orphans(other, looking) == 0
    assert await recovery.settle_orphans(other, looking) == 1
    assert await stored(database) == [ESTIMATE] * 2


async def test_looks_that_follow_at_once_are_no_evidence(database: Database, ayu: Caller, other: Turns) -> None:
    """As after a suspension, when everything that was due in the meantime happens at once."""
    await begin(database, ayu, f"{'0' * 32}/x")
    looking = Observer(other.lease)
    for _ in range(5 * leases.STILL_LOOKS):
        assert await recovery.settle_orphans(other, looking) == 0


MACHINE = leases._machine()
NOBODY = 2**22 + 1  # more than Linux gives


@pytest.mark.parametrize(
    ("place", "gone"),
    [
        (f":{MACHINE}:{NOBODY}:1", True),
        (f":{MACHINE}:{os.getpid()}:1", True),
        (f":{MACHINE}:{os.getpid()}:{leases._state_and_start(os.getpid())[1]}", False),
        (f":{MACHINE}7:{NOBODY}:1", False),
        (f":{'0' * 8}-0000-4000-8000-{'0' * 12}:4026531836:{NOBODY}:1", False),
        ("", False),
    ],
    ids=["no such process", "its number is another's now", "alive", "another PID namespace", "another boot", "unknown"],
)
async def test_only_a_process_of_this_namespace_is_known_to_be_gone(
    database: Database, ayu: Caller, other: Turns, place: str, gone: bool
) -> None:
    await begin(database, ayu, f"{'0' * 32}{place}/x")
    assert await recovery.settle_orphans(other, observer(other)) == gone


@pytest.mark.parametrize("error", [PermissionError, OverflowError])
async def test_a_process_that_is_hidden_is_not_known_to_be_gone(
    database: Database, ayu: Caller, other: Turns, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def refuse(_pid: int, _signal: int) -> None:
        raise error

    monkeypatch.setattr(os, "kill", refuse)
    await begin(database, ayu, f"{'0' * 32}:{MACHINE}:{NOBODY}:1/x")
    assert await recovery.settle_orphans(other, observer(other)) == 0


def test_where_the_system_does_not_say_a_process_has_only_its_random_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "readlink", lambda _path: "1")
    assert len(Lease().process) == 32
    assert leases.process_of(Lease().new_turn()) is not None


def test_no_two_processes_and_no_two_turns_have_one_name() -> None:
    assert len({Lease().process for _ in range(100)}) == 100
    lease = Lease()
    assert len({lease.new_turn() for _ in range(100)}) == 100


FORMER = "a-host/7/12.34/9ab6e0a2-4a1c-4a58-a7a7-3e7c0a0f1c55"


@pytest.mark.parametrize("name", [FORMER, "", "/", "x", f"{'0' * 32}:/x", f"{'F' * 32}/x"])
async def test_turns_of_an_earlier_version_are_settled_once_they_are_old(
    database: Database, ayu: Caller, other: Turns, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    await begin(database, ayu, name)
    looking = observer(other)
    for _ in range(2 * leases.STILL_LOOKS):
        assert await recovery.settle_orphans(other, looking) == 0
    at = clock.now()
    monkeypatch.setattr(clock, "now", lambda: at + timedelta(minutes=12))
    assert await recovery.settle_orphans(other, looking) == 1
    assert await stored(database) == [ESTIMATE]


async def test_turns_of_an_earlier_version_are_settled_whatever_the_clock_says(
    database: Database, ayu: Caller, other: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(database, ayu, FORMER)
    at = clock.now()
    monkeypatch.setattr(clock, "now", lambda: at - timedelta(days=400))
    looking = observer(other)
    looks = [await recovery.settle_orphans(other, looking) for _ in range(leases.STILL_LOOKS_WITHOUT_HEARTBEATS + 1)]
    assert looks == [0] * leases.STILL_LOOKS_WITHOUT_HEARTBEATS + [1]


async def test_an_earlier_version_does_not_take_a_name_for_one_of_its_own() -> None:
    """It reads host, process id and start, and settles what ran on its host."""
    host, pid, *_ = f"{Lease().new_turn()}///".split("/")
    assert ":" in host
    assert not pid.isdigit()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_result_that_comes_late_replaces_the_estimate(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, other: Turns, stream: bool
) -> None:
    async with asking(client, ayu, model, stream=stream) as task:
        await take(other)
        assert await stored(database) == [ESTIMATE]
        model.release()
        answer = await task
    assert answer.status_code == 200, answer.text
    assert ("event: done" in answer.text) == stream
    assert '"total_tokens":1500' in answer.text
    assert await stored(database) == [REAL]
    (row,) = await answers(database)
    assert not row.usage_estimated
    [sums] = (await invariants.check(database)).values()
    assert (sums.total_tokens, sums.message_count) == (1500, 1)


async def test_an_estimate_never_replaces_a_result(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, owner: Turns
) -> None:
    async with asking(client, ayu, model):
        (row,) = await answers(database)
    outcome = chat.Outcome("failed", "", "gpt-4o", TokenCounts(8, 0, estimated=True))
    for is_owner in (False, True):
        work = lambda session, is_owner=is_owner: owner.settle(  # noqa: E731
            session, PendingTurn(row.id, row.turn), outcome, is_owner=is_owner
        )
        await database.transaction(work)
    assert await stored(database) == [REAL]


async def test_a_refusal_that_comes_late_removes_the_estimate(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, other: Turns
) -> None:
    model.answer = Answer(status=400, stall_after=0)
    async with asking(client, ayu, model) as task:
        await take(other)
        assert await stored(database) == [ESTIMATE]
        model.release()
        problems.check(await task, 502)
    assert await stored(database) == [("failed", "", None, None)]
    assert await invariants.check(database) == {}


async def test_a_result_that_comes_late_does_not_bring_erased_content_back(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, other: Turns
) -> None:
    async with asking(client, ayu, model) as task:
        await take(other)
        (row,) = await answers(database)
        assert (await client.delete(f"/conversations/{row.conversation_id}", headers=ayu.headers)).status_code == 204
        model.release()
        assert (await task).json()["message"]["content"] is None
    assert await stored(database) == [("complete", None, 1000, 500)]


async def test_a_result_replaces_an_estimate_amid_traffic(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, service: Caller, other: Turns
) -> None:
    async def report() -> None:
        for _ in range(20):
            await records.store(client, service, [records.record(ayu)])

    async with asking(client, ayu, model) as task:
        await take(other)
        reporting = asyncio.gather(*(report() for _ in range(4)))
        await asyncio.sleep(0.05)
        model.release()
        assert (await task).status_code == 200
        while not reporting.done():
            await invariants.check(database)
            await asyncio.sleep(0)
        await reporting
    [sums] = (await invariants.check(database)).values()
    assert (sums.total_tokens, sums.message_count) == (1500 + 80 * 15, 81)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_turn_that_is_not_stored_as_complete_is_no_answer(
    client: httpx.AsyncClient,
    database: Database,
    ayu: Caller,
    model: OpenAIServer,
    other: Turns,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
) -> None:
    async def keep(*_arguments: Any) -> bool:
        return False

    monkeypatch.setattr(token_usage, "_replace_estimate", keep)
    async with asking(client, ayu, model, stream=stream) as task:
        await take(other)
        model.release()
        answer = await task
    if stream:
        assert "event: error" in answer.text
        assert "event: done" not in answer.text
    else:
        problems.check(answer, 502)


async def test_a_turn_that_fails_unexpectedly_is_settled_at_once(
    client: httpx.AsyncClient, database: Database, ayu: Caller, owner: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_arguments: Any) -> Any:
        raise RuntimeError("nobody expects this")

    monkeypatch.setattr(owner.upstream, "ask", fail)
    problems.check(await client.post("/chat", headers=ayu.headers, json={"message": "Hi", "stream": False}), 502)
    assert await stored(database) == [ESTIMATE]


@pytest.fixture
def no_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The price list is out of order."""

    def fail(*_arguments: Any) -> Any:
        raise RuntimeError("the price list is broken")

    monkeypatch.setattr(PriceList, "price", fail)


@pytest.fixture
def no_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be counted."""

    async def fail(_session: Any, used: Any) -> None:
        if used:
            raise RuntimeError("the rollups are broken")

    monkeypatch.setattr(rollups, "add", fail)


async def failures(client: httpx.AsyncClient) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    (line,) = [line for line in lines if line.startswith("foundation_settlement_failures_total ")]
    return float(line.split()[1])


async def until_settled(database: Database) -> list[tuple[Any, ...]]:
    for _ in range(200):
        rows = [(row.status, row.content, row.input_tokens, row.output_tokens) for row in await answers(database)]
        if rows and "pending" not in {status for status, *_ in rows}:
            break
        await asyncio.sleep(0.05)
    return rows


@pytest.mark.parametrize(
    ("broken", "ended"),
    [("no_prices", (REAL[1], 1000, 500)), ("no_counting", ("", None, None))],
)
async def test_an_answer_that_cannot_be_settled_as_it_should_ends_as_failed(
    client: httpx.AsyncClient,
    database: Database,
    ayu: Caller,
    model: OpenAIServer,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    broken: str,
    ended: tuple[Any, ...],
) -> None:
    before = await failures(client)
    request.getfixturevalue(broken)
    async with asking(client, ayu, model) as task:
        model.release()
        problems.check(await task, 500)
    assert await until_settled(database) == [("failed", *ended)]
    (row,) = await answers(database)
    assert f"message {row.id} could not be settled as it should" in caplog.text
    assert await failures(client) > before
    await invariants.check(database)


@pytest.mark.parametrize(("broken", "ended"), [("no_prices", (8, 0)), ("no_counting", (None, None))])
async def test_an_orphan_that_cannot_be_settled_as_it_should_does_not_hold_up_others(
    database: Database, ayu: Caller, other: Turns, request: pytest.FixtureRequest, broken: str, ended: tuple[Any, ...]
) -> None:
    request.getfixturevalue(broken)
    for number in range(3):
        await begin(database, ayu, f"{'0' * 32}:{MACHINE}:{NOBODY}:1/{number}")
    assert await recovery.settle_orphans(other, observer(other)) == 3
    rows = await stored(database)
    assert [(status, content) for status, content, *_ in rows] == [("failed", "")] * 3
    for _, _, *tokens in rows:
        assert tokens == [pytest.approx(ended[0], abs=8), ended[1]] if ended[0] else tokens == list(ended)


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
        at_the_end = app.state.foundation.turns.lease.heartbeats
    assert app.state.foundation.turns.lease.heartbeats > at_the_end + 5
    problems.check(await task, 504)
    await client.aclose()


async def test_a_server_that_was_suspended_comes_back_and_its_answer_counts(
    database: Database, database_url: str, model: OpenAIServer, tmp_path: Path
) -> None:
    caller = await accounts.add(database, "ayu")
    with (
        crash_driver.crashing_server(database_url, model.url, tmp_path / "one.log") as suspended,
        crash_driver.crashing_server(database_url, model.url, tmp_path / "two.log") as awake,
    ):
        for server in (suspended, awake):
            server.start()
            await crash_driver.until(functools.partial(is_ready, server.address), "the server is ready")
        async with httpx.AsyncClient(base_url=suspended.address, trust_env=False, timeout=60) as client:
            async with asking(client, caller, model) as task:
                os.kill(suspended.pid or 0, signal.SIGSTOP)
                try:
                    await crash_driver.until(lambda: is_estimated(database), "the turn is settled with an estimate")
                    assert await stored(database) == [ESTIMATE]
                finally:
                    os.kill(suspended.pid or 0, signal.SIGCONT)
                model.release()
                answer = await task
            assert answer.json()["message"]["total_tokens"] == 1500
        assert await stored(database) == [REAL]


async def is_ready(address: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            return (await client.get(f"{address}/ready")).status_code == 200
    return False


async def is_estimated(database: Database) -> bool:
    return [row.status for row in await answers(database)] == ["failed"]

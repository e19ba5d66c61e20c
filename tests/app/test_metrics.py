"""`GET /metrics`: what operators see of requests, the database, and usage."""

import asyncio
import contextlib
import math
import signal
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from app.db import database as databases
from app.db.database import Database, Session
from app.errors import Conflict, TransactionConflict
from routers import operation
from tests.support import commands, crash_driver, invariants, problems, programs, records
from tests.support.accounts import SECRET_KEY, Caller
from tests.support.openai_server import Answer, OpenAIServer
from tests.support.records import record

pytestmark = pytest.mark.any_database

QUESTION = {"message": "Hi", "stream": False}
Sample = tuple[str, frozenset[tuple[str, str]]]


@pytest.fixture
def changes() -> dict[str, Any]:
    """Of settings; a parameter of a test's own sets others."""
    return {}


@pytest.fixture
def app_settings(database_url: str, changes: dict[str, Any], model: OpenAIServer) -> dict[str, Any]:
    """The settings of the application under test."""
    models = {"llm_base_url": model.url, "llm_model": "gpt-4o"}
    return {"database_url": database_url, "secret_key": SECRET_KEY, **models, **changes}


def parsed(exposition: str) -> dict[Sample, float]:
    families = text_string_to_metric_families(exposition)
    samples = (sample for family in families for sample in family.samples)
    return {
        (sample.name.removeprefix("foundation_"), frozenset(sample.labels.items())): sample.value for sample in samples
    }


class Watch:
    """How much each figure has grown since the beginning; other tests of this process have used them before."""

    def __init__(self, client: httpx.AsyncClient, before: dict[Sample, float]) -> None:
        self._client = client
        self._before = before

    @classmethod
    async def begin(cls, client: httpx.AsyncClient) -> "Watch":
        return cls(client, parsed((await client.get("/metrics")).text))

    async def growth(self) -> dict[str, float]:
        now = parsed((await self._client.get("/metrics")).text)
        grown: dict[str, float] = {}
        for key, value in now.items():
            name, labels = key
            if name == "database_connections_in_use":  # also by what the server does in the background
                continue
            shown = name + "".join(f" {value}" for _, value in sorted(labels))
            if difference := value - self._before.get(key, 0):
                grown[shown] = difference
        return grown


async def test_the_answer_is_the_text_that_prometheus_reads(client: httpx.AsyncClient) -> None:
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    names = {name for name, _ in parsed(answer.text)}
    assert {"messages_pending", "database_connections_in_use", "messages_counted_total", "cost_usd_total"} <= names


async def test_usage_is_counted_as_it_is_stored(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    watch = await Watch.begin(client)
    batch = [
        record(ayu, input_tokens=100, cached_input_tokens=40, output_tokens=7, cost="0.25"),
        record(ayu, input_tokens=10, output_tokens=3),
        record(ayu, role="user", input_tokens=5000, cost="9"),
    ]
    await records.store(client, service, batch)
    await records.post(client, service, batch)
    grown = await watch.growth()
    figures = {name: value for name, value in grown.items() if not name.startswith(("http", "process", "python"))}
    assert figures == {
        "messages_counted_total": 2,
        "tokens_counted_total input": 110,
        "tokens_counted_total cached_input": 40,
        "tokens_counted_total output": 10,
        "cost_usd_total": pytest.approx(0.25),  # a difference of sums of floats, which is what Prometheus keeps
        "messages_unpriced_total": 1,
    }
    await invariants.check(database)


async def test_what_is_rolled_back_is_not_counted(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    first = record(ayu)
    await records.store(client, service, [first])
    watch = await Watch.begin(client)
    problems.check(await records.post(client, service, [record(ayu), first | {"input_tokens": 11}]), 409)
    assert "messages_counted_total" not in await watch.growth()


async def test_after_commit_cannot_break_it_nor_follow_a_rollback(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[str] = []

    def fail() -> None:
        raise RuntimeError("the figures are broken")

    async def work(session: Session) -> str:
        databases.after_commit(session, fail)
        databases.after_commit(session, lambda: called.append("committed"))
        await session.execute(text("INSERT INTO foundation_settings (name, value) VALUES ('a', 'b')"))
        return "done"

    async def refused(session: Session) -> None:
        databases.after_commit(session, lambda: called.append("rolled back"))
        raise Conflict("no")

    assert await database.transaction(work) == "done"
    with pytest.raises(Conflict):
        await database.transaction(refused)
    assert called == ["committed"]
    assert "a callback after a commit failed" in caplog.text
    assert "RuntimeError" in caplog.text
    async with database.reads() as session:
        assert (await session.execute(text("SELECT value FROM foundation_settings WHERE name = 'a'"))).scalar() == "b"


async def test_requests_are_counted_by_the_template_of_their_route(client: httpx.AsyncClient, ayu: Caller) -> None:
    watch = await Watch.begin(client)
    for path in ("/conversations/a", "/conversations/b", "/x", "/y/z"):
        assert (await client.get(path, headers=ayu.headers)).status_code == 404
    await client.request("BREW", "/x")
    await client.get("/conversations/a")
    grown = {name: value for name, value in (await watch.growth()).items() if name.startswith("http_requests_total")}
    assert grown == {
        "http_requests_total GET /conversations/{conversation_id} 404": 2,
        "http_requests_total GET /conversations/{conversation_id} 401": 1,
        "http_requests_total GET none 404": 2,
        "http_requests_total other none 404": 1,
        "http_requests_total GET /metrics 200": 1,
    }


async def test_pending_answers_estimates_and_connections_are_shown(
    model: OpenAIServer, client: httpx.AsyncClient, ayu: Caller
) -> None:
    watch = await Watch.begin(client)
    model.answer = Answer(content="One two", usage=None, stall_after=0)
    asking = asyncio.create_task(client.post("/chat", headers=ayu.headers, json=QUESTION))
    await asyncio.to_thread(model.wait_until, lambda: bool(model.requests))
    assert (await watch.growth())["messages_pending"] == 1
    model.release()
    assert (await asking).status_code == 200
    grown = await watch.growth()
    assert "messages_pending" not in grown
    assert grown["messages_estimated_total"] == grown["messages_counted_total"] == 1
    assert grown["turns_settled_total complete"] == 1


async def test_a_model_that_is_asked_again_is_counted(
    model: OpenAIServer, client: httpx.AsyncClient, ayu: Caller
) -> None:
    watch = await Watch.begin(client)
    answers = iter([Answer(status=503), Answer()])
    model.answer = lambda _: next(answers)
    assert (await client.post("/chat", headers=ayu.headers, json=QUESTION)).status_code == 200
    assert (await watch.growth())["retries_total model"] == 1


async def test_a_transaction_that_is_tried_again_is_counted(client: httpx.AsyncClient, database: Database) -> None:
    failures = [TransactionConflict("now"), TransactionConflict("and again")]

    async def work(_session: Session) -> None:
        if failures:
            raise failures.pop()

    watch = await Watch.begin(client)
    await database.transaction(work)
    assert (await watch.growth())["retries_total transaction"] == 2


@pytest.mark.parametrize("kind", ["postgresql"], indirect=True)
async def test_connections_in_use_are_those_of_this_moment(app: FastAPI, client: httpx.AsyncClient) -> None:
    opened = app.state.foundation.database
    shown = frozenset[tuple[str, str]]()
    while opened.engine.pool.checkedout():  # noqa: ASYNC110  # by what the server does at its start
        await asyncio.sleep(0.01)
    async with opened.engine.connect(), opened.engine.connect():
        during = parsed((await client.get("/metrics")).text)
    after = parsed((await client.get("/metrics")).text)
    assert during["database_connections_in_use", shown] == 2
    assert after["database_connections_in_use", shown] == 0
    assert during["database_connections_limit", shown] == 20


@pytest.mark.parametrize("kind", ["postgresql"], indirect=True)
async def test_a_pool_with_no_connection_left_is_seen(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operation, "PENDING_SECONDS", 0.1)
    opened = app.state.foundation.database
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(opened.engine.connect())
        answer = await client.get("/metrics")
    assert parsed(answer.text)["database_connections_in_use", frozenset()] == 20
    assert math.isnan(parsed(answer.text)["messages_pending", frozenset()])


@pytest.mark.parametrize("changes", [{"database_url": "postgresql://nobody@/none?host=/nowhere"}])
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_without_a_database_the_rest_is_still_shown(client: httpx.AsyncClient) -> None:
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert math.isnan(parsed(answer.text)["messages_pending", frozenset()])


@pytest.mark.parametrize("changes", [{"metrics_token": "a-token"}])
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_a_token_can_be_demanded(client: httpx.AsyncClient, changes: dict[str, Any]) -> None:
    token = changes["metrics_token"].encode()
    problems.check(await client.get("/metrics"), 401)
    for wrong in (b"", b"Bearer", b"Bearer ", b"Bearer x", b"Basic " + token, token, b"Bearer " + token + b"x"):
        problems.check(await client.get("/metrics", headers=[(b"Authorization", wrong)]), 401)
    right = await client.get("/metrics", headers=[(b"Authorization", b"Bearer " + token)])
    assert right.status_code == 200


@pytest.mark.parametrize("program", ["main.py", "migrate_token_data.py"])
def test_a_directory_that_cannot_be_used_is_refused(program: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    outcome = commands.run([program, "--version"], tmp_path, PROMETHEUS_MULTIPROC_DIR=str(file))
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"PROMETHEUS_MULTIPROC_DIR: '{file}' cannot be used: File exists\n"


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.long
async def test_each_worker_reports_all_and_dead_ones_no_connections(
    database: Database, database_url: str, tmp_path: Path, ayu: Caller, service: Caller
) -> None:
    main = programs.install(tmp_path / "project") / "main.py"
    settings = {"DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY, "WORKERS": "2"}
    with programs.started(main, tmp_path, commands.free_port(), settings) as (address, process):

        async def figures() -> dict[Sample, float]:
            async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
                return parsed((await client.get("/metrics")).text)

        async def both_serve() -> bool:
            return (await figures())["database_connections_limit", frozenset()] == 2 * 15

        await crash_driver.until(both_serve, "both workers serve")
        for _ in range(20):  # each over a connection of its own, so that both workers get some
            async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
                await records.store(client, service, [record(ayu)])
        children = psutil.Process(process.pid).children()
        worker = next(child for child in children if "spawn_main" in " ".join(child.cmdline()))
        gauges = gauges_of(worker)
        assert gauges.exists()

        async def is_buried() -> bool:
            return not gauges.exists()

        worker.kill()
        await crash_driver.until(is_buried, "its successor takes it out of the sums")
        await crash_driver.until(both_serve, "its successor serves")
        for _ in range(6):
            found = await figures()
            assert found["messages_counted_total", frozenset()] == 20
            assert found["tokens_counted_total", frozenset({("kind", "input")})] == 200
            assert found["messages_pending", frozenset()] == 0
        process.send_signal(signal.SIGTERM)
        assert (await asyncio.to_thread(programs.finish, process)).code == 0


def gauges_of(worker: psutil.Process) -> Path:
    """The file of what it uses at the moment."""
    return Path(worker.environ()["PROMETHEUS_MULTIPROC_DIR"]) / f"gauge_livesum_{worker.pid}.db"

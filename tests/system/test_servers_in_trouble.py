"""Servers without memory, on a disk that is read-only, or with another key than their neighbour."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi import FastAPI

from app import BASE_DIR
from app.db import migrations
from app.db.database import Database
from app.settings import Settings
from main import create_app
from services.chat import recovery
from tests.support import accounts, commands, invariants, outages, problems, programs, records
from tests.support.accounts import PASSWORD, SECRET_KEY, Caller
from tests.support.openai_server import OpenAIServer
from tests.support.records import record

pytestmark = pytest.mark.long

OTHER_KEY = "-Y1mAZdTGpF2PY_tJzCl5TcOzAMIQ_PDTGh886DCqKMw6NNO"
# Bytes that the server may still have.
LEFT = 4 * 2**20
BATCHES = 8
# Records of one request, 9 MB together.
RECORDS = 900


async def test_a_server_without_memory_says_so_and_recovers(
    database: Database, database_url: str, tmp_path: Path, ayu: Caller, service: Caller
) -> None:
    settings = {"SECRET_KEY": SECRET_KEY, "DATABASE_URL": database_url, "USAGE_TIMEZONE": "UTC"}
    batches = [[record(ayu, content="x" * 10_000) for _ in range(RECORDS)] for _ in range(BATCHES)]
    main, port = BASE_DIR / "main.py", commands.free_port()
    with programs.started(main, tmp_path, port, settings) as (address, process):
        async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60) as client:
            await records.store(client, service, [record(ayu)])
            limit(process.pid, psutil.Process(process.pid).memory_info().vms + LEFT)
            sent = [client.get(path, headers=ayu.headers) for path in ("/health", "/auth/me", "/ready") * BATCHES]
            sent += [records.post(client, service, batch) for batch in batches]
            answers = await asyncio.gather(*sent, return_exceptions=True)
            limit(process.pid, psutil.RLIM_INFINITY)
            check_refusals(answers)
        # Over new connections: the server may still be closing those over which it was sent too much.
        async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60) as client:
            for batch in batches:
                assert sum((await records.post(client, service, batch)).json().values()) == RECORDS
        process.terminate()
        ended = await asyncio.to_thread(programs.finish, process)
    assert ended.code == 0, ended.err
    sums = await invariants.check(database)
    assert [totals.message_count for totals in sums.values()] == [1 + BATCHES * RECORDS]


def limit(pid: int, size: int) -> None:
    """Set the largest address space of a process, as `ulimit -v` does."""
    psutil.Process(pid).rlimit(psutil.RLIMIT_AS, (size, psutil.RLIM_INFINITY))


def check_refusals(answers: list[httpx.Response | BaseException]) -> None:
    """Demand that each answer is good, or a 503, or did not come, and that not all are good."""
    found = [answer for answer in answers if isinstance(answer, httpx.Response)]
    assert {type(answer) for answer in answers if isinstance(answer, BaseException)} <= {
        httpx.ReadError,
        httpx.WriteError,
        httpx.RemoteProtocolError,
    }
    good = [answer for answer in found if answer.status_code == 200]
    for answer in found:
        if answer not in good:
            problems.check(answer, 503)
    assert 0 < len(good) < len(answers)
    assert [answer.status_code for answer in found if answer.url.path == "/health"] == [200] * BATCHES


async def test_a_file_system_that_is_read_only_is_a_clear_error(
    model: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "watch", lambda *_: asyncio.sleep(0))  # which opens the file in the background
    with outages.small_disk("16m") as disk:
        url = f"sqlite:///{disk.path / 'app.db'}"
        await migrations.upgrade(url)
        async with outages.application(url, model) as application:
            assert (await application.send("before")).status_code == 200
            await application.database.close()  # no file may be open
            disk.remount("ro")
            for answer in (await application.send("meanwhile"), await application.ask("meanwhile")):
                problems.check(answer, 503)
            assert (await application.client.get("/health")).status_code == 200
            await application.database.close()
            disk.remount("rw")
            assert (await application.send("meanwhile")).json() == {"recorded": 1, "duplicates": 0}
            assert (await application.ask("meanwhile")).status_code == 200
            assert [totals.message_count for totals in await application.months()] == [3]


async def test_programs_on_a_read_only_file_system_end_in_one_line(tmp_path: Path) -> None:
    with outages.small_disk("16m") as disk:
        url = f"sqlite:///{disk.path / 'app.db'}"
        await migrations.upgrade(url)
        disk.remount("ro")
        for command in (["main.py"], ["migrate_token_data.py"], ["migrate_token_data.py", "--verify"]):
            ended = await asyncio.to_thread(commands.run, command, tmp_path, DATABASE_URL=url)
            assert ended.code == 2, f"{command}: {ended.err}"
            assert len([line for line in ended.err.splitlines() if "app.db" in line]) == 1, ended.err
            assert "Traceback" not in ended.err


@contextlib.asynccontextmanager
async def served(settings: dict[str, Any]) -> AsyncIterator[httpx.AsyncClient]:
    app: FastAPI = create_app(Settings.load(**settings))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


async def test_servers_with_different_keys_share_a_database(
    app_settings: dict[str, Any], database: Database, service: Caller
) -> None:
    async with served(app_settings) as one, served(app_settings | {"secret_key": OTHER_KEY}) as other:
        ayu = await accounts.register(one, "ayu")
        own = {client: await log_in(client) for client in (one, other)}
        for client, stranger in ((one, other), (other, one)):
            problems.check(await client.get("/auth/me", headers=own[stranger]), 401)
        await asyncio.gather(*(work(client, own[client], number) for client in own for number in range(10)))
        await asyncio.gather(*(records.store(one, service, [record(ayu)]) for _ in range(10)))
        shown = [(await client.get("/auth/me", headers=own[client])).json()["token_stats"] for client in own]
    assert shown[0] == shown[1]
    sums = await invariants.check(database)
    assert [totals.message_count for totals in sums.values()] == [20]


async def log_in(client: httpx.AsyncClient) -> dict[str, str]:
    answer = await client.post("/auth/login", json={"username": "ayu", "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


async def work(client: httpx.AsyncClient, headers: dict[str, str], number: int) -> None:
    """Ask, with a key that the other server's caller uses too; it is one request."""
    body = {"message": "Hi", "stream": False}
    while True:
        answer = await client.post("/chat", headers=headers | {"Idempotency-Key": str(number)}, json=body)
        if answer.status_code != 409:
            break
        await asyncio.sleep(0.05)
    assert answer.status_code == 200, answer.text

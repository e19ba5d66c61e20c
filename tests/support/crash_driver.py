"""What the crash test runs: a server that is killed and started again, and callers who never give up."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
import psutil

from tests.support import commands, launching, problems
from tests.support.accounts import Caller
from tests.support.launching import Launcher
from tests.support.openai_server import Answer, usage

DEADLINE_SECONDS = 40
"""For what should happen soon; less than the minute after which the server looks for stale turns again."""

PAUSE_SECONDS = 0.03
"""So long a caller waits before sending the same request again."""
MODEL = "gpt-4o"
MONTHS = ("2024-01-31T23:59:59Z", "2024-02-01T00:00:00Z", "2024-12-31T12:00:00Z")


class CrashingServer:
    """`python main.py` on one port, killed at will."""

    def __init__(self, launcher: Launcher, address: str) -> None:
        self.address = address
        self.pid: int | None = None
        self._launcher = launcher

    def start(self) -> None:
        """Starts the next process; does not wait until it is ready."""
        self.pid = self._launcher.start("main.py")

    def kill(self) -> None:
        """Kills the process, and returns when nothing is left of it."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            self._launcher.wait(self.pid)
            self.pid = None

    def kill_without_burial(self) -> None:
        """Kills the process, of which a zombie is left, as where nobody waits for it."""
        assert self.pid is not None
        process = psutil.Process(self.pid)
        process.kill()
        while process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        self.pid = None


@contextmanager
def crashing_server(database_url: str, llm_base_url: str, log: Path) -> Iterator[CrashingServer]:
    """A server on a free port that was not started yet; what it prints goes to the log."""
    port = str(commands.free_port())
    settings = {"HOST": "127.0.0.1", "PORT": port, "LLM_BASE_URL": llm_base_url, "LLM_MODEL": MODEL}
    with launching.launcher(database_url, log, **settings) as launcher:
        server = CrashingServer(launcher, f"http://127.0.0.1:{port}")
        try:
            yield server
        finally:
            server.kill()


@dataclass(frozen=True)
class Figures:
    """What one answer used, whoever is asked."""

    input_tokens: int
    output_tokens: int

    @classmethod
    def of(cls, text: str) -> "Figures":
        """Every text has figures of its own, or nearly."""
        random = Random(text)
        return cls(random.randrange(1, 5000), random.randrange(1000))


def answer(request: dict[str, Any]) -> Answer:
    """What the model says to a question."""
    question = request["messages"][-1]["content"]
    figures = Figures.of(question)
    return Answer(content=f"Re: {question}", usage=usage(figures.input_tokens, figures.output_tokens), delay=0.01)


@dataclass
class Callers:
    """Everyone who uses the server, what they sent, and what they were told was stored."""

    address: str
    users: list[Caller]
    service: Caller
    stopped: bool = False
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Acknowledged records by their id."""
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Acknowledged messages of `POST /chat` by their id."""
    questions: dict[str, int] = field(default_factory=dict)
    """What was asked, and by whom, acknowledged or not."""
    acknowledged: int = 0
    """Requests that were answered well."""
    failed: int = 0
    """Questions that a crash left without an answer, as their callers were told."""
    interrupted: int = 0
    """Requests of which the server was killed before their callers had an answer."""

    def __str__(self) -> str:
        return (
            f"acknowledged: {len(self.records)} records and {len(self.answers)} answers of {len(self.questions)} "
            f"questions; {self.interrupted} requests were cut off, and {self.failed} found that their answer had failed"
        )

    async def run(self, senders: int = 4, askers: int = 8) -> None:
        """Lets them call, all at once, until `stopped`; then each still gets an answer to its last request."""
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(base_url=self.address, trust_env=False, timeout=30, limits=limits) as client,
            asyncio.TaskGroup() as group,
        ):
            for number in range(senders):
                group.create_task(self._send(client, number))
            for number in range(askers):
                group.create_task(self._ask(client, number))

    async def _send(self, client: httpx.AsyncClient, number: int) -> None:
        random, sent = Random(number), 0
        while not self.stopped:
            records = []
            for _ in range(random.randint(1, 3)):
                records.append(self._record(f"{number}-{sent}", random))
                sent += 1
            told = await self._insist(client, "/usage/records", self.service, {"records": records})
            assert told.status_code == 200, told.text
            assert sum(told.json().values()) == len(records), told.text
            self.records.update({record["id"]: record for record in records})
            self.acknowledged += 1

    def _record(self, id_: str, random: Random) -> dict[str, Any]:
        figures = Figures.of(id_)
        return {
            "id": id_,
            "user_id": random.choice(self.users).id,
            "model": MODEL,
            "input_tokens": figures.input_tokens,
            "output_tokens": figures.output_tokens,
            "created_at": random.choice(MONTHS),
        }

    async def _ask(self, client: httpx.AsyncClient, number: int) -> None:
        asked = 0
        while not self.stopped:
            asked += 1
            question, user = f"question {number}-{asked}", self.users[asked % len(self.users)]
            self.questions[question] = user.id
            key = f"{number}-{asked}" if asked % 2 else None
            body = {"message": question, "stream": False}
            if key is None:
                told = await self._post(client, "/chat", user, body)
            else:
                told = await self._insist(client, "/chat", user, body, key)
            if told is None:
                continue
            if told.status_code == 502:
                assert key is not None, told.text
                self.failed += 1
                continue
            assert told.status_code == 200, told.text
            message = told.json()["message"]
            assert message["content"] == f"Re: {question}"
            self.answers[message["id"]] = message
            self.acknowledged += 1

    async def _insist(
        self, client: httpx.AsyncClient, path: str, caller: Caller, body: dict[str, Any], key: str | None = None
    ) -> httpx.Response:
        while True:
            told = await self._post(client, path, caller, body, key)
            if told is not None:
                return told
            await asyncio.sleep(PAUSE_SECONDS)

    async def _post(
        self, client: httpx.AsyncClient, path: str, caller: Caller, body: dict[str, Any], key: str | None = None
    ) -> httpx.Response | None:
        """The answer; None where the request should be sent again."""
        headers = caller.headers | ({"Idempotency-Key": key} if key else {})
        try:
            told = await client.post(path, headers=headers, json=body)
        except httpx.ConnectError:
            return None
        except httpx.TransportError:
            self.interrupted += 1
            return None
        if told.status_code in (409, 503):
            problems.check(told, told.status_code)
            assert int(told.headers["retry-after"]) >= 0
            return None
        return told


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Waits for something that should happen soon."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not await condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} seconds: {what}"
        await asyncio.sleep(0.02)

"""Simulate the callers of the mixed load.

Users chat, hang up, retry and delete conversations; an admin removes users.
"""

import asyncio
import itertools
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

from app import clock

_PASSWORD = "correct horse battery"
# The maximum seconds between two requests of a caller; the mean is half of it.
_PAUSE_SECONDS = 0.2
# Seconds between two users that the admin removes.
_REMOVAL_SECONDS = 2.0
_GONE = 401
"""The status of every request of a user who was removed."""


@dataclass
class Findings:
    """Collect the responses by request and status, and all errors."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def check(self, what: str, answer: httpx.Response, *expected: int) -> bool:
        """Count a response, and return whether it is a success.

        An unexpected status is recorded as wrong.
        """
        self.statuses[what, answer.status_code] += 1
        if answer.status_code not in (200, 201, 204, _GONE, *expected):
            self.wrong.append(f"{what}: {answer.status_code}")
        return answer.is_success


@dataclass
class Load:
    """Run all callers of one server, until `stopped`."""

    client: httpx.AsyncClient
    admin: dict[str, str]
    service: dict[str, str]
    findings: Findings = field(default_factory=Findings)
    callers: list["Caller"] = field(default_factory=list)
    stopped: bool = False

    async def run(self, count: int, seconds: float) -> None:
        """Run `count` callers for the given seconds."""
        self.callers = [Caller(self, Random(number), f"caller{number}") for number in range(count)]
        async with asyncio.TaskGroup() as group:
            for caller in self.callers:
                group.create_task(caller.run())
            group.create_task(self._remove_users())
            await asyncio.sleep(seconds)
            self.stopped = True

    async def check_counts(self) -> None:
        """Compare each user's counted answers with the confirmed ones."""
        for caller in self.callers:
            answer = await self.client.get("/auth/me", headers=caller.headers)
            if not self.findings.check("GET /auth/me", answer):
                continue
            counted = sum(month["message_count"] for month in answer.json()["token_stats"]["monthly_stats"])
            if not caller.confirmed <= counted <= caller.sent:
                told = f"{caller.confirmed} of {caller.sent} requests were confirmed"
                self.findings.wrong.append(f"{caller.name}: {counted} answers are counted, {told}")

    async def _remove_users(self) -> None:
        random = Random(0)
        while not self.stopped:
            await asyncio.sleep(_REMOVAL_SECONDS)
            caller = random.choice([caller for caller in self.callers if caller.id] or [None])
            if caller is None:
                continue
            answer = await self.client.delete(f"/admin/users/{caller.id}", headers=self.admin)
            self.findings.check("DELETE /admin/users", answer, 404)


class Caller:
    """Simulate a user, who registers again under a new name if removed."""

    def __init__(self, load: Load, random: Random, name: str) -> None:
        self.load, self.random = load, random
        self.names = (f"{name}-{number}" for number in itertools.count(1))
        self.name = ""
        self.id = 0
        self.headers: dict[str, str] = {}
        self.confirmed = 0
        self.sent = 0
        """Answers that may be counted: confirmed ones, and those whose caller hung up."""

    async def run(self) -> None:
        """Perform random actions one after the other."""
        things: dict[Callable[[], Awaitable[bool]], int] = {
            self.stream: 4,
            self.ask: 3,
            self.hang_up: 3,
            self.retry: 2,
            self.report: 6,
            self.look: 6,
            self.forget: 2,
            self.log_in_again: 1,
        }
        is_known = False
        while not self.load.stopped:
            if not is_known:
                await self.register()
            (thing,) = self.random.choices([*things], [*things.values()])
            is_known = await thing()
            await asyncio.sleep(self.random.uniform(0, _PAUSE_SECONDS))

    async def call(self, method: str, path: str, what: str = "", *expected: int, **options: Any) -> httpx.Response:
        """Send a request of this user, and count its response."""
        options.setdefault("headers", self.headers)
        answer = await self.load.client.request(method, path, **options)
        self.load.findings.check(what or f"{method} {path}", answer, *expected)
        return answer

    async def register(self) -> None:
        """Register a new user, and log in."""
        self.name, self.confirmed, self.sent = next(self.names), 0, 0
        body = {"username": self.name, "email": f"{self.name}@example.com", "password": _PASSWORD}
        answer = await self.call("POST", "/auth/register", json=body)
        self.id = answer.json()["id"]
        await self.log_in()

    async def log_in(self) -> bool:
        """Log in for a new token."""
        answer = await self.call("POST", "/auth/login", json={"username": self.name, "password": _PASSWORD})
        if answer.is_success:
            self.headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        return answer.is_success

    async def log_in_again(self) -> bool:
        """Log out and in."""
        await self.call("POST", "/auth/logout")
        return await self.log_in()

    async def stream(self) -> bool:
        """Chat, and read the stream to its end."""
        return await self._stream({}, hang_up=False)

    async def hang_up(self) -> bool:
        """Chat, and close the connection during the stream."""
        return await self._stream({}, hang_up=True)

    async def _stream(self, headers: dict[str, str], *, hang_up: bool) -> bool:
        self.sent += 1
        pieces = self.random.randint(0, 30) if hang_up else None
        what = "POST /chat, left" if hang_up else "POST /chat, streamed"
        sending = self.load.client.stream("POST", "/chat", headers=self.headers | headers, json={"message": "Hi"})
        async with sending as answer:
            is_answered = self.load.findings.check(what, answer)
            lines: list[str] = []
            async for line in answer.aiter_lines():
                lines.append(line)
                if pieces is not None and len(lines) > 3 * pieces:
                    return is_answered
        return is_answered and self._has_ended(lines)

    def _has_ended(self, lines: list[str]) -> bool:
        if "event: done" in lines:
            self.confirmed += 1
            return True
        if not any('"status":4' in line for line in lines[-3:]):  # the admin removed the user concurrently
            self.load.findings.wrong.append(f"a stream without an end: {lines[-3:]}")
        return False

    async def ask(self) -> bool:
        """Chat, and wait for the whole answer."""
        self.sent += 1
        body = {"message": "Hi", "stream": False}
        answer = await self.call("POST", "/chat", "POST /chat, whole", 404, json=body)
        self.confirmed += answer.is_success
        return answer.is_success

    async def retry(self) -> bool:
        """Hang up, then retry with the same key until a response arrives.

        The request counts once.
        """
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        if not await self._stream(headers, hang_up=True):
            return False
        confirmed, body = self.confirmed, {"message": "Hi", "stream": False}
        while True:
            options = {"headers": self.headers | headers, "json": body}
            answer = await self.call("POST", "/chat", "POST /chat, again", 404, 409, **options)
            if answer.status_code != 409:
                break
            await asyncio.sleep(0.05)
        self.confirmed = min(confirmed + answer.is_success, self.sent)
        return answer.is_success

    async def report(self) -> bool:
        """Report the same usage twice as a service; it counts once."""
        usage = {"user_id": self.id, "model": "gpt-4o-mini", "input_tokens": 12, "output_tokens": 5}
        batch = [usage | {"id": str(uuid.uuid4()), "created_at": clock.now().isoformat()} for _ in range(3)]
        self.sent += len(batch)
        for _ in range(2):
            options = {"headers": self.load.service, "json": {"records": batch}}
            answer = await self.call("POST", "/usage/records", "", 404, 422, **options)
            if not answer.is_success:
                return False
        if answer.json() != {"recorded": 0, "duplicates": len(batch)}:
            self.load.findings.wrong.append(f"records that were sent twice: {answer.text}")
        self.confirmed += len(batch)
        return True

    async def look(self) -> bool:
        """Read the months, the days and today's conversations."""
        today = clock.now().date()
        month = f"/auth/token-stats/monthly/{today.year}/{today.month}/daily"
        answers = [
            await self.call("GET", "/auth/me"),
            await self.call("GET", month, "GET the days of a month"),
            await self.call("GET", f"/auth/token-stats/daily/{today}/conversations", "GET the conversations of a day"),
        ]
        return answers[-1].is_success

    async def forget(self) -> bool:
        """Read a conversation, and delete it."""
        answer = await self.call("GET", "/conversations?limit=5", "GET /conversations")
        found = answer.json()["conversations"] if answer.is_success else []
        for conversation in found[:1]:
            path = f"/conversations/{conversation['id']}"
            await self.call("GET", path, "GET a conversation", 404)
            answer = await self.call("DELETE", path, "DELETE a conversation", 404, 409)
        return answer.status_code != _GONE

"""`python -m benchmarks.mixed`: check counts and memory after minutes of mixed load.

Callers chat, hang up, retry, report usage, delete conversations, read and log in; an admin removes users. The exit code
is 1 if a response was a 5xx or another unexpected status, or the server's memory grew. The exit code is also 1 if
`migrate_token_data.py --verify` found a difference, or the server failed to shut down cleanly.
"""

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import httpx
import psutil
from sqlalchemy import insert

from app import BASE_DIR, clock
from app.db import migrations
from app.db.database import Database
from benchmarks import databases, servers
from benchmarks.callers import Findings, Load
from models import User

CALLERS = 32
SAMPLE_SECONDS = 1.0
# The maximum ratio of the memory in the last third of a run to the first third.
MEMORY_RATIO = 1.1
# Shorter runs are not judged by their memory.
LEAST_MINUTES = 1.0
UNLIMITED = {"MAX_REGISTRATIONS_PER_ADDRESS": "0", "MAX_FAILED_LOGINS_PER_ADDRESS": "0"}


@dataclass(frozen=True)
class Outcome:
    """Hold the findings of one run.

    `memory` is in MiB, with one sample per second.
    """

    findings: Findings
    memory: Sequence[float]
    verified: int
    ended: int

    def memory_of(self, part: int, parts: int) -> float:
        """Return the median memory of one of `parts` equal parts, in MiB."""
        size = len(self.memory) / parts
        return statistics.median(self.memory[int(part * size) : max(int((part + 1) * size), int(part * size) + 1)])

    @property
    def growth(self) -> float:
        """Return the ratio of the last third's memory to the first's."""
        return self.memory_of(2, 3) / self.memory_of(0, 3)

    def problems(self, minutes: float) -> list[str]:
        """List the problems of the run."""
        found = [f"{count} × {text}" for text, count in Counter(self.findings.wrong).most_common(10)]
        if self.verified:
            found.append(f"--verify ended with exit code {self.verified}")
        if self.ended:
            found.append(f"the server ended with exit code {self.ended}")
        if minutes >= LEAST_MINUTES and self.growth > MEMORY_RATIO:
            found.append("memory grew")
        return found


def main() -> int:
    """Print the findings on each kind of database; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixed", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="minutes for each kind of database (%(default)s)")
    parser.add_argument("--callers", type=int, default=CALLERS, help="concurrent callers (%(default)s)")
    parser.add_argument("--only", choices=["SQLite", "PostgreSQL"], help="measure only this kind of database")
    flags = parser.parse_args()
    wrong: list[str] = []
    with databases.urls() as urls:
        for kind, url in urls.items():
            if flags.only in (None, kind):
                outcome = _run(url, flags.callers, flags.minutes * 60)
                found = outcome.problems(flags.minutes)
                print(_report(kind, outcome, found), flush=True)  # noqa: T201
                wrong += found
    return 1 if wrong else 0


def _report(kind: str, outcome: Outcome, problems: list[str]) -> str:
    statuses = outcome.findings.statuses
    lines = [f"{kind}: {statuses.total():,} answers"]
    lines += [f"  {what} → {status}: {count:,}" for (what, status), count in sorted(statuses.items())]
    tenths = " ".join(f"{outcome.memory_of(part, 10):.0f}" for part in range(10))
    lines.append(f"  memory by tenths of the time: {tenths} MiB; the last third is {outcome.growth:.2f} × the first")
    lines.append(f"  --verify: exit code {outcome.verified}")
    return "\n".join(lines + [f"  WRONG: {problem}" for problem in problems])


def _run(url: str, callers: int, seconds: float) -> Outcome:
    admin, service = asyncio.run(_prepare(url))
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(servers.model())
        settings = {"LLM_BASE_URL": model, "LLM_API_KEY": "none", "LLM_MODEL": "gpt-4o-mini", **UNLIMITED}
        server = stack.enter_context(servers.started(url, **settings))
        address = server.wait_until_ready()
        with _sampled(server.process.pid) as sizes:
            findings = asyncio.run(_load(address, admin, service, callers, seconds))
        server.process.terminate()
        ended = server.process.wait()
    return Outcome(findings, sizes, _verify(url), ended)


async def _prepare(url: str) -> tuple[int, int]:
    """Create the tables and two accounts; return their ids.

    The accounts are an admin and a service.
    """
    await migrations.upgrade(url)
    database = Database.open(url)
    try:
        async with database.sessions.begin() as session:
            common = {"hashed_password": "!", "is_active": True, "created_at": clock.now()}
            values = [{"username": role, "email": f"{role}@example.com", "role": role} for role in ("admin", "service")]
            made = [insert(User).values(**common, **value).returning(User.id) for value in values]
            first, second = [(await session.execute(statement)).scalar_one() for statement in made]
            return first, second
    finally:
        await database.close()


async def _load(address: str, admin: int, service: int, callers: int, seconds: float) -> Findings:
    first, second = ({"Authorization": f"Bearer {databases.token(id_)}"} for id_ in (admin, service))
    limits = httpx.Limits(max_connections=2 * callers, max_keepalive_connections=callers)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=60, trust_env=False) as client:
        load = Load(client, admin=first, service=second)
        await load.run(callers, seconds)
        await load.check_counts()
        return load.findings


@contextlib.contextmanager
def _sampled(pid: int) -> Iterator[list[float]]:
    """Yield a list of samples of a process's resident memory, in MiB."""
    sizes: list[float] = []
    stop = threading.Event()
    process = psutil.Process(pid)

    def sample() -> None:
        while True:
            sizes.append(process.memory_info().rss / 2**20)
            if stop.wait(SAMPLE_SECONDS):
                return

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield sizes
    finally:
        stop.set()
        thread.join()


def _verify(url: str) -> int:
    command = [sys.executable, "migrate_token_data.py", "--verify", "--quiet", "--database-url", url]
    return subprocess.run(command, cwd=BASE_DIR, check=False, stdout=subprocess.DEVNULL).returncode


if __name__ == "__main__":
    sys.exit(main())

"""The product's scripts, started again and again, each time as a new process.

As a program (`python -m tests.support.launching`) it forks them from one process that has imported everything
already, which takes a tenth of the time. In these processes the migration script takes small
steps, so that there are many.
"""

import itertools
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app import BASE_DIR, clock
from app.db import wide_ids
from app.settings import Settings
from services.backfill import old_rows, reconciliation, runs
from services.backfill.deficits import Deficits
from services.chat import leases
from services.usage import rollups, time_zone
from tests.support import archives
from tests.support.accounts import SECRET_KEY

DEADLINE_SECONDS = 60

_OVERWRITE = text("""
    UPDATE user_monthly_token_usage AS t SET (input_tokens, output_tokens, total_tokens, total_cost, message_count,
        unpriced_count, estimated_count) = (
        SELECT coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),
            coalesce(sum(CAST(input_tokens AS BIGINT) + coalesce(output_tokens, 0)), 0),
            coalesce(sum(cost), 0), count(*), count(*) - count(cost), coalesce(sum(usage_estimated::int), 0)
        FROM messages AS m WHERE m.user_id = t.user_id AND m.usage_date >= make_date(t.year, t.month, 1)
            AND m.usage_date < make_date(t.year, t.month, 1) + INTERVAL '1 month'
    ) WHERE t.user_id = ANY(:users)
""")


class Launcher:
    """The process from which the others are forked."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.log = log
        self._process = process

    def start(self, *command: str, overwriting: bool = False, **settings: str) -> int:
        """Starts a script with its flags; the id of its process.

        Args:
            *command: no word of which holds a space.
            overwriting: the migration script sets months to the sums of their messages, instead of adding deficits.
            **settings: of this process alone; no value of them holds a space.
        """
        own = [f"{name}={value}" for name, value in settings.items()]
        return int(self._tell(" ".join(["start-overwriting" if overwriting else "start", *own, *command])))

    def wait(self, pid: int) -> int:
        """Waits until nothing is left of a process; its exit code, negative for a signal.

        It is killed where it does not end within `DEADLINE_SECONDS`.
        """
        return int(self._tell(f"wait {pid}"))

    def _tell(self, command: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(command, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the launcher died"
        return answer


@contextmanager
def launcher(database_url: str, log: Path, **settings: str) -> Iterator[Launcher]:
    """A launcher with these settings; what the scripts print goes to the log."""
    settings |= {"DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY}
    settings |= {"LOG_LEVEL": "WARNING", "USAGE_TIMEZONE": "UTC"}
    names = {name.upper() for name in Settings.model_fields}
    environment = {name: value for name, value in os.environ.items() if name.upper() not in names}
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.launching"],
            cwd=BASE_DIR,
            env=environment | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        yield Launcher(process, log)


def launch(orders: IO[str]) -> None:
    """Follows the orders of a `Launcher`, until there are no more."""
    _prepare()
    running: set[int] = set()
    for order in orders:
        name, *arguments = order.split()
        if name.startswith("start"):
            pid = os.fork() or _run(*arguments, overwriting=name != "start")
            running.add(pid)
            print(pid, flush=True)  # noqa: T201
        else:
            pid = int(arguments[0])
            code = _end_of(pid)
            running.remove(pid)
            print(code, flush=True)  # noqa: T201
    for pid in running:  # the test died
        os.kill(pid, signal.SIGKILL)


def _end_of(pid: int) -> int:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def _prepare() -> None:
    import main  # noqa: F401
    import migrate_token_data  # noqa: F401
    from services.chat import tokenizer
    from services.usage import pricing

    tokenizer.count("and its tables, which take most of a second")
    pricing.PriceList().price(pricing.Priced("gpt-4o", clock.now(), 1, 1))
    leases.HEARTBEAT_SECONDS = 0.2
    wide_ids.FIRST_PAGES = wide_ids.MOST_PAGES = 2
    old_rows.BATCH_ROWS = time_zone.BATCH_ROWS = 20
    reconciliation.LEAST_ROWS, reconciliation.ROWS, reconciliation.MOST_ROWS = 10, 20, 40
    reconciliation.MOST_READ, reconciliation.SECONDS = 40, 0.001
    archives.take_small_steps(setattr, rows=30, file_bytes=100_000)
    runs.LEAST_ROWS, runs.ADOPTING_SECONDS = 10, dict.fromkeys(runs.ADOPTING_SECONDS, 0.001)


async def _overwrite(session: AsyncSession, found: Deficits, _plans: object) -> None:
    """What the backfill does not do: sets the months to the sums of the messages, by one statement."""
    missing = {key: pair.expected for key, pair in found.months.items() if pair.found is None and not pair.in_sync}
    await rollups.add_months(session, missing)
    users = sorted({user_id for user_id, _ in found.months})
    await session.execute(_OVERWRITE, {"users": users})


def _run(*words: str, overwriting: bool) -> NoReturn:
    code: Any = 1
    settings = list(itertools.takewhile(lambda word: not word.endswith(".py"), words))
    os.environ.update((name, value) for name, _, value in (word.partition("=") for word in settings))
    script, *arguments = words[len(settings) :]
    if overwriting:
        reconciliation._correct_months = _overwrite  # type: ignore[assignment]
    os.dup2(2, 1)
    try:
        sys.argv = [script, *arguments]
        runpy.run_path(str(BASE_DIR / script), run_name="__main__")
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    launch(sys.stdin)

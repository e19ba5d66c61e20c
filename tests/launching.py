"""The product's scripts, started again and again, each time as a new process.

As a program (`python -m tests.launching`) it forks them from one process that has imported everything already, which
takes a tenth of the time. In these processes the migration script takes small steps, so that there are many.
"""

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from app import clock
from app.settings import BASE_DIR
from tests.accounts import SECRET_KEY

OVERWRITING = "OVERWRITING"
"""In the environment: the script overwrites months with the sums that it read, instead of adding deficits."""


class Launcher:
    """The process from which the others are forked."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, *command: str) -> int:
        """Starts a script with its flags; the id of its process."""
        return int(self._tell(f"start {' '.join(command)}"))

    def wait(self, pid: int) -> int:
        """Waits until nothing is left of a process; its exit code, negative for a signal."""
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
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "tests.launching"],
            cwd=BASE_DIR,
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        yield Launcher(process)


def launch(orders: IO[str]) -> None:
    """Follows the orders of a `Launcher`, until there are no more."""
    _prepare()
    running: set[int] = set()
    for order in orders:
        name, *arguments = order.split()
        if name == "start":
            pid = os.fork() or _run(*arguments)
            running.add(pid)
            print(pid, flush=True)  # noqa: T201
        else:
            pid = int(arguments[0])
            _, status = os.waitpid(pid, 0)
            running.remove(pid)
            print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201
    for pid in running:  # the test died
        os.kill(pid, signal.SIGKILL)


def _prepare() -> None:
    import main  # noqa: F401
    import migrate_token_data  # noqa: F401
    from services import adoption, backfill, pricing, tokenizer

    tokenizer.count("and its tables, which take most of a second")
    pricing.PriceList().price(pricing.Priced("gpt-4o", clock.now(), 1, 1))
    adoption.BATCH_ROWS = 20
    backfill._LEAST_MESSAGES, backfill._MOST_MESSAGES = 10, 40
    backfill._COUNTING_SECONDS = 0.001
    backfill._ADOPTING_SECONDS = dict.fromkeys(backfill._ADOPTING_SECONDS, 0.001)
    if OVERWRITING in os.environ:
        from tests.test_backfill import overwrite

        backfill._apply_to_months = overwrite


def _run(script: str, *arguments: str) -> NoReturn:
    code: Any = 1
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

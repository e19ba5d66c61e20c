"""Fill, repair and verify `user_monthly_token_usage` from `messages`.

This operator's command holds flags, progress and messages; `services.backfill` does the work. Exit codes: 0 done, or
verified with no difference; 1 `--verify` found a difference, a month was left, or the run was stopped; 2 bad usage, no
database, or a failure.
"""

import argparse
import asyncio
import contextlib
import gc
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from app import __version__, console, logs, redaction, setting_names
from app.clock import Month
from app.db import database, migrations, search_index
from app.db.database import Database
from app.errors import ConfigurationError, FoundationError
from app.settings import Settings
from services import backfill, earlier_backend
from services.backfill import Listener, Mode, Policy, Progress, Report, Scope

MAX_USER_ID = 2**63 - 1
# Seconds that a batch may continue after Ctrl-C or SIGTERM. Then the script rolls it back.
STOP_SECONDS = 10.0
# Seconds that the rollback may take. Then the process exits as if it were killed, which is harmless at any point.
END_SECONDS = 2.0
LOCK_TIMEOUT = "2s"
"""The maximum wait for a lock on PostgreSQL, because other sessions queue behind the waiting script."""
# Seconds that the script retries to acquire a lock.
PATIENCE_SECONDS = 3600.0
# Pages, some 200 MB, of SQLite's write-ahead log before a checkpoint: the script writes large batches.
PRAGMAS = {"wal_autocheckpoint": 50_000}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message} (--help lists the flags)")


def _month(text: str) -> Month:
    try:
        return Month.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _whole(least: int, most: int) -> Any:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 19 and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return parse


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the flags.

    Raises:
        ConfigurationError: bad usage, described in one line.
    """
    parser = _Parser(
        prog="migrate_token_data.py",
        allow_abbrev=False,
        description="Fill and repair the monthly token usage from the messages. Run it as often as needed,"
        " also while servers run; it can be stopped or killed at any point.",
        epilog="Exit codes: 0 done, or verified with no difference; 1 --verify found a difference, or stopped before"
        " the end; 2 bad usage, no database, or a failure.",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="report what would change; write nothing")
    mode.add_argument(
        "--redate",
        action="store_true",
        help="date all messages again in USAGE_TIMEZONE, then fill; stop the servers first",
    )
    mode.add_argument(
        "--verify", action="store_true", help="only compare, and list the differences; exit code 1 if any"
    )
    user = _whole(1, MAX_USER_ID)
    parser.add_argument("--user", type=user, action="append", metavar="ID", help="only this user (repeatable)")
    parser.add_argument("--from", type=_month, dest="since", metavar="YYYY-MM", help="count only this month and newer")
    parser.add_argument("--to", type=_month, dest="until", metavar="YYYY-MM", help="count only this month and older")
    parser.add_argument(
        "--batch-size",
        type=_whole(1, 1_000_000),
        default=backfill.DEFAULT_BATCH_SIZE,
        metavar="N",
        help="maximum number of users in one transaction (%(default)s)",
    )
    parser.add_argument(
        "--recount",
        action="store_true",
        help="at adoption: count messages only, carry nothing over from an earlier backend's months",
    )
    parser.add_argument(
        "--accept-missing",
        action="store_true",
        help="follow the ledger where a month and its days count messages that no longer exist",
    )
    parser.add_argument(
        "--finish",
        action="store_true",
        help="the earlier backend's processes are gone: hash passwords with argon2, leave its columns alone",
    )
    parser.add_argument("--database-url", metavar="URL", help="use this database instead of DATABASE_URL")
    parser.add_argument(
        "--json", action="store_true", help="print only the summary, as one JSON object, on standard output"
    )
    parser.add_argument("--all", action="store_true", help="list every difference as text, not only the first 100")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--version", action="version", version=__version__)
    parsed = parser.parse_args(arguments)
    if parsed.since and parsed.until and parsed.since > parsed.until:
        parser.error("--from must not be later than --to")
    if parsed.finish and (parsed.dry_run or parsed.verify):
        parser.error("--finish writes: leave out --dry-run and --verify")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    for name in ("stdout", "stderr"):  # the parent process may have closed them
        if getattr(sys, name) is None:
            setattr(sys, name, io.StringIO())
    try:
        flags = parse_arguments(arguments)
        settings = Settings.load(**({"database_url": flags.database_url} if flags.database_url is not None else {}))
        logs.configure("WARNING", settings.log_format)
        setting_names.log_misread(settings)
        started = time.monotonic()
        with database.failures_as_configuration_errors(settings.database_url):
            report = asyncio.run(_run(flags, settings))
    except FoundationError as error:
        print(f"migrate_token_data.py: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except (Stopped, KeyboardInterrupt) as stop:
        _say_stopped(str(stop))
        return 1
    except Exception as error:
        print(f"migrate_token_data.py: {redaction.one_line(error)}", file=sys.stderr)  # noqa: T201
        return 2
    try:
        _show(report, Mode(flags.dry_run, flags.verify, flags.all), flags.json, time.monotonic() - started)
        sys.stdout.flush()
    except OSError as error:
        print(f"migrate_token_data.py: standard output: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 2
    for (user_id, month), reason in sorted(report.left.items()):
        print(f"user {user_id}, {month}: left as it is: {reason}", file=sys.stderr)  # noqa: T201
    return 1 if report.left or (flags.verify and not backfill.is_right(report)) else 0


def _say_stopped(where: str) -> None:
    print(f"migrate_token_data.py: stopped{where}; committed work is kept, run it again to continue", file=sys.stderr)  # noqa: T201


async def _run(flags: argparse.Namespace, settings: Settings) -> Report:
    report = await _work(flags, settings)
    if not (flags.dry_run or flags.verify):
        with _stopping(lambda _progress: None):
            await _build_search_index(settings.database_url, flags.quiet)
    return report


async def _work(flags: argparse.Namespace, settings: Settings) -> Report:
    only_compare = flags.dry_run or flags.verify
    missing = database.missing_file(settings.database_url)
    if missing is not None and only_compare:
        raise ConfigurationError(f"there is no database at {missing}")
    zone = settings.usage_timezone
    scope = Scope(sorted(set(flags.user)) if flags.user else None, flags.since, flags.until)
    server_settings = {"jit": "off"}  # JIT compilation of the statement of a range costs more than it saves
    if not only_compare:  # no session waits behind one that only reads
        server_settings["lock_timeout"] = LOCK_TIMEOUT
    opened = Database.open(settings.database_url, pragmas=PRAGMAS, patience_seconds=PATIENCE_SECONDS, **server_settings)
    if flags.user and max(flags.user) > backfill.highest_id(opened):
        raise ConfigurationError(f"--user: {max(flags.user)} is more than any id of this database")
    work = backfill.verify if only_compare else backfill.run
    policy = Policy(carry_over=not flags.recount, accept_missing=flags.accept_missing)
    try:
        with console.progress(flags.quiet) as shown, _stopping(shown) as listener:
            await _refuse_unknown_users(opened, scope, missing is not None)
            if not only_compare:
                await migrations.upgrade(settings.database_url)
            if flags.finish:
                await opened.transaction(earlier_backend.finish, repeatable=True)
            if flags.redate:
                await backfill.redate(opened, zone, listener)
            report = await work(opened, scope, flags.batch_size, zone, policy, listener)
            if flags.dry_run:  # a run would not change the months that it leaves
                report.differences = [
                    item for item in report.differences if (item.user_id, item.month) not in report.left
                ]
            return report
    finally:
        await opened.close()


async def _build_search_index(url: str, quiet: bool) -> None:
    opened = Database.open(url)  # without the lock timeout of the run: no session waits behind this build
    try:
        if opened.engine.dialect.name == "postgresql" and not await search_index.is_complete(opened):
            async with migrations.alone(opened):
                await search_index.build(opened, lambda line: None if quiet else print(line, file=sys.stderr))  # noqa: T201
    finally:
        await opened.close()


async def _refuse_unknown_users(opened: Database, scope: Scope, is_new: bool) -> None:
    wanted = scope.users or ()
    unknown = wanted if is_new else await backfill.unknown_users(opened, wanted)
    if unknown:
        raise ConfigurationError(f"--user: there is no user {', '.join(map(str, unknown))}")


def _show(report: Report, mode: Mode, as_json: bool, seconds: float) -> None:
    if as_json:
        print(json.dumps(backfill.as_json(report, mode, seconds)))  # noqa: T201
    else:
        backfill.show(report, mode, seconds)


class Stopped(Exception):
    """Report that the operator stopped the run.

    The run stopped between two transactions, or rolled back the current one.
    """


class _Signals:
    """Handle Ctrl-C and SIGTERM.

    The first signal requests the end of the work; the next one has its default effect.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._end = threading.Timer(STOP_SECONDS + END_SECONDS, _end)
        self._end.daemon = True
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._heard: list[signal.Signals] = []
        with contextlib.suppress(RuntimeError, NotImplementedError):  # not the main thread, or Windows
            for number in (signal.SIGINT, signal.SIGTERM):
                self._loop.add_signal_handler(number, self._stop)
                self._heard.append(number)

    def _stop(self) -> None:
        self.wanted = True
        self._hear_no_more()
        self._end.start()
        if self._task:
            self._loop.call_later(STOP_SECONDS, self._task.cancel)

    def forget(self) -> None:
        """Remove the handlers, and cancel the forced exit."""
        self._end.cancel()
        self._hear_no_more()

    def _hear_no_more(self) -> None:
        for number in self._heard:
            self._loop.remove_signal_handler(number)


def _end() -> None:
    _say_stopped(" while the script waited")
    sys.stderr.flush()
    os._exit(1)


@contextmanager
def _stopping(listener: Listener) -> Iterator[Listener]:
    """Yield a listener that stops the run after Ctrl-C or SIGTERM.

    The current transaction commits first. It is rolled back if it takes longer than `STOP_SECONDS`, for example while
    another session holds a lock.

    Raises:
        Stopped: the run was stopped.
    """
    signals = _Signals()

    def heard(progress: Progress) -> None:
        listener(progress)
        if signals.wanted:
            raise Stopped(f" while {progress.phase}, {progress.done:,} of {progress.total:,} messages done")

    try:
        yield heard
    except asyncio.CancelledError:
        raise Stopped(" while the script waited") from None
    finally:
        signals.forget()


if __name__ == "__main__":
    gc.freeze()  # else each garbage collection, also the one at exit, scans the permanent objects that the imports made
    sys.exit(main())

"""The operator's command: fills and repairs `user_monthly_token_usage` from `messages`, and proves it right.

Flags, progress and words; the work is in `services.backfill`. Exit codes: 0 done, or verified with no difference; 1
`--verify` found a difference, or the run was broken off; 2 bad usage, no database, or a failure.
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
from app.db import database, migrations
from app.db.database import Database
from app.errors import ConfigurationError, FoundationError
from app.settings import Settings
from services import backfill
from services.backfill import Listener, Mode, Policy, Progress, Report, Scope

MAX_USER_ID = 2**63 - 1
STOP_SECONDS = 10.0
"""How long a batch may go on after Ctrl-C or SIGTERM; then it is rolled back."""
END_SECONDS = 2.0
"""How long the rollback may take; then the process exits as if it were killed, which is harmless at any moment."""
LOCK_TIMEOUT = "2s"
"""How long the script waits for a lock on PostgreSQL, while other sessions queue behind it."""
PATIENCE_SECONDS = 3600.0
"""How long the script retries to get a lock."""
PRAGMAS = {"wal_autocheckpoint": 50_000}
"""Of SQLite, for large pieces of work: some 200 MB of log before it is put in place."""


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
    """Reads the flags.

    Raises:
        ConfigurationError: bad usage, in one line.
    """
    parser = _Parser(
        prog="migrate_token_data.py",
        allow_abbrev=False,
        description="Fill and repair the monthly token usage from the messages. Run it at any time, again and again,"
        " while servers run; it can be stopped or killed at any point.",
        epilog="Exit codes: 0 done, or verified with no difference; 1 --verify found a difference, or stopped before"
        " the end; 2 bad usage, no database, or a failure.",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="say what would change; write nothing")
    mode.add_argument(
        "--redate",
        action="store_true",
        help="date all messages anew by USAGE_TIMEZONE, then fill; stop the servers before",
    )
    mode.add_argument("--verify", action="store_true", help="compare only, list the differences; exit code 1 if any")
    user = _whole(1, MAX_USER_ID)
    parser.add_argument("--user", type=user, action="append", metavar="ID", help="only this user (repeatable)")
    parser.add_argument("--from", type=_month, dest="since", metavar="YYYY-MM", help="count only this month and newer")
    parser.add_argument("--to", type=_month, dest="until", metavar="YYYY-MM", help="count only this month and older")
    parser.add_argument(
        "--batch-size",
        type=_whole(1, 1_000_000),
        default=backfill.DEFAULT_BATCH_SIZE,
        metavar="N",
        help="users in one transaction, at most (%(default)s)",
    )
    parser.add_argument(
        "--recount",
        action="store_true",
        help="at adoption: trust messages alone, carry nothing over from an old backend's months",
    )
    parser.add_argument(
        "--accept-missing",
        action="store_true",
        help="where month and days agree that messages are gone: follow the ledger",
    )
    parser.add_argument("--database-url", metavar="URL", help="instead of DATABASE_URL")
    parser.add_argument(
        "--json", action="store_true", help="the summary as one JSON object, and nothing else on standard output"
    )
    parser.add_argument("--all", action="store_true", help="list every difference in the text, not only the first 100")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--version", action="version", version=__version__)
    parsed = parser.parse_args(arguments)
    if parsed.since and parsed.until and parsed.since > parsed.until:
        parser.error("--from must not be later than --to")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; answers with the exit code."""
    for name in ("stdout", "stderr"):  # closed by whoever started this
        if getattr(sys, name) is None:
            setattr(sys, name, io.StringIO())
    try:
        flags = parse_arguments(arguments)
        settings = Settings.load(**({"database_url": flags.database_url} if flags.database_url is not None else {}))
        logs.configure("WARNING", settings.log_format)
        setting_names.log_misread(settings)
        started = time.monotonic()
        with database.failures_as_configuration_errors(settings.database_url):
            report = asyncio.run(_work(flags, settings))
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
    print(f"migrate_token_data.py: stopped{where}; what is done stays done, run it again to go on", file=sys.stderr)  # noqa: T201


async def _work(flags: argparse.Namespace, settings: Settings) -> Report:
    only_compare = flags.dry_run or flags.verify
    missing = database.missing_file(settings.database_url)
    if missing is not None and only_compare:
        raise ConfigurationError(f"there is no database at {missing}")
    zone = settings.usage_timezone
    scope = Scope(sorted(set(flags.user)) if flags.user else None, flags.since, flags.until)
    server_settings = {"jit": "off"}  # compiling the statement of a range takes longer than it saves
    if not only_compare:  # behind one who only reads nobody has to wait
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
            if flags.redate:
                await backfill.redate(opened, zone, listener)
            report = await work(opened, scope, flags.batch_size, zone, policy, listener)
            if flags.dry_run:  # a run changes nothing there
                report.differences = [
                    item for item in report.differences if (item.user_id, item.month) not in report.left
                ]
            return report
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
    """Somebody wanted the run to end; it did so between two transactions."""


class _Signals:
    """Hears Ctrl-C and SIGTERM: the first wants the work to end, for the next it is as if nobody heard."""

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
        """Hears nothing any more, and does nothing more about what it has heard."""
        self._end.cancel()
        self._hear_no_more()

    def _hear_no_more(self) -> None:
        for number in self._heard:
            self._loop.remove_signal_handler(number)


def _end() -> None:
    _say_stopped(" while it waited")
    sys.stderr.flush()
    os._exit(1)


@contextmanager
def _stopping(listener: Listener) -> Iterator[Listener]:
    """A listener that ends the run after Ctrl-C or SIGTERM, when the transaction of that moment is committed.

    Where that takes too long, as while others hold a lock, the transaction is rolled back.
    """
    signals = _Signals()

    def heard(progress: Progress) -> None:
        listener(progress)
        if signals.wanted:
            raise Stopped(f" while {progress.phase}, {progress.done:,} of {progress.total:,} messages done")

    try:
        yield heard
    except asyncio.CancelledError:
        raise Stopped(" while it waited") from None
    finally:
        signals.forget()


if __name__ == "__main__":
    gc.freeze()  # else what the imports made, which stays for good, is gone through time and again, and at the end
    sys.exit(main())

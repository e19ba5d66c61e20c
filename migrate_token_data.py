"""Fill, repair and verify `user_monthly_token_usage` from `messages`.

This operator's command holds progress and messages; `services.backfill` does the work. Exit codes: 0 done, or
verified with no difference; 1 `--verify` found a difference, a month was left, or the run was stopped; 2 bad usage, no
database, or a failure.
"""

if __name__ == "__main__":
    from app import starting

    starting.end_on_interrupt("migrate_token_data.py")

import argparse
import asyncio
import gc
import io
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

import backfill_flags
from app import console, logs, redaction, setting_names, stopping
from app.db import database, identity, migrations, search_index, wide_ids
from app.db.database import Database
from app.db.urls import Target
from app.errors import ConfigurationError, FoundationError
from app.settings import Settings
from services import backfill, earlier_backend
from services.backfill import Mode, Moved, Policy, Report, Scope

LOCK_TIMEOUT = "2s"
"""The maximum wait for a lock on PostgreSQL, because other sessions queue behind the waiting script."""
# Seconds that the script retries to acquire a lock.
PATIENCE_SECONDS = 3600.0
# Pages, some 200 MB, of SQLite's write-ahead log before a checkpoint: the script writes large batches.
PRAGMAS = {"wal_autocheckpoint": 50_000}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    for name in ("stdout", "stderr"):  # the parent process may have closed them
        if getattr(sys, name) is None:
            setattr(sys, name, io.StringIO())
    try:
        flags = backfill_flags.parse(arguments)
        settings = Settings.load(**_overrides(flags))
        logs.configure("WARNING", settings.log_format)
        setting_names.log_misread(settings)
        started = time.monotonic()
        with database.failures_as_configuration_errors(settings.direct_target().url):
            ended = asyncio.run(_run(flags, settings))
    except FoundationError as error:
        print(f"migrate_token_data.py: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except (stopping.Stopped, KeyboardInterrupt) as stop:
        stopping.say(str(stop))
        return 1
    except Exception as error:
        print(f"migrate_token_data.py: {redaction.one_line(error)}", file=sys.stderr)  # noqa: T201
        return 2
    try:
        ended.show(time.monotonic() - started)
        sys.stdout.flush()
    except OSError as error:
        print(f"migrate_token_data.py: standard output: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 2
    for line in ended.left:
        print(line, file=sys.stderr)  # noqa: T201
    return ended.code


class _Ended(NamedTuple):
    """Describe the end of a run; `show` receives its seconds."""

    show: Callable[[float], None]
    code: int = 0
    left: Sequence[str] = ()
    """A line for each month that was left unchanged."""


def _overrides(flags: argparse.Namespace) -> dict[str, str]:
    url = flags.database_url
    return {} if url is None else {"database_url": url, "database_direct_url": "", "database_read_url": ""}


async def _run(flags: argparse.Namespace, settings: Settings) -> _Ended:
    await _refuse_another_database(settings)
    if flags.widen_ids:
        return await _widen_ids(flags, settings)
    if flags.archive_before or flags.import_archive:
        return await _move(flags, settings)
    report = await _work(flags, settings)
    if not (flags.dry_run or flags.verify):
        with stopping.between_transactions(lambda _progress: None):
            await _build_search_index(settings.direct_target(), flags.quiet)
    left = [f"user {user_id}, {month}: left as it is: {why}" for (user_id, month), why in sorted(report.left.items())]
    code = 1 if left or (flags.verify and not report.is_right) else 0
    mode = Mode(flags.dry_run, flags.verify, flags.all)
    return _Ended(
        _shown(flags, partial(backfill.as_json, report, mode), partial(backfill.show, report, mode)), code, left
    )


async def _refuse_another_database(settings: Settings) -> None:
    if settings.database_direct_url:
        opened = Database.open(settings.direct_target())
        try:
            await identity.check(opened, settings.target(), "DATABASE_DIRECT_URL")
        finally:
            await opened.close()


@asynccontextmanager
async def _opened(
    flags: argparse.Namespace, target: Target, *, may_be_new: bool = False, **options: Any
) -> AsyncIterator[tuple[Database, console.Listener]]:
    """Yield the database, and what shows the progress and stops the run.

    Raises:
        ConfigurationError: there is no such database, or no such user.
    """
    missing = database.missing_file(target.url)
    if missing is not None and not may_be_new:
        raise ConfigurationError(f"there is no database at {missing}")
    opened = Database.open(target, patience_seconds=PATIENCE_SECONDS, **options)
    try:
        with console.progress(flags.quiet) as shown, stopping.between_transactions(shown) as listener:
            await _refuse_unknown_users(opened, flags.user or (), missing is not None)
            yield opened, listener
    finally:
        await opened.close()


async def _refuse_unknown_users(opened: Database, wanted: Sequence[int], is_new: bool) -> None:
    if wanted and wanted[-1] > backfill.highest_id(opened):
        raise ConfigurationError(f"--user: {wanted[-1]} is more than any id of this database")
    if unknown := wanted if is_new else await backfill.unknown_users(opened, wanted):
        raise ConfigurationError(f"--user: there is no user {', '.join(map(str, unknown))}")


def _server_settings(waits: bool) -> dict[str, str]:
    # JIT compilation of the statement of a range costs more than it saves. No session waits behind one that only reads.
    return {"jit": "off"} if waits else {"jit": "off", "lock_timeout": LOCK_TIMEOUT}


async def _work(flags: argparse.Namespace, settings: Settings) -> Report:
    only_compare = flags.dry_run or flags.verify
    target, zone = settings.direct_target(), settings.usage_timezone
    work = backfill.verify if only_compare else backfill.run
    policy = Policy(carry_over=not flags.recount, accept_missing=flags.accept_missing)
    options: dict[str, Any] = {"pragmas": PRAGMAS, **_server_settings(waits=only_compare)}
    async with _opened(flags, target, may_be_new=not only_compare, **options) as (opened, listener):
        if not only_compare:
            await migrations.upgrade(target)
        if flags.finish:
            await opened.transaction(earlier_backend.finish, repeatable=True)
        redated = await backfill.redate(opened, zone, listener) if flags.redate else None
        scope = Scope(flags.user, flags.since, flags.until)
        report = await work(opened, scope, flags.batch_size, zone, policy, listener)
        report.redated = redated
    if flags.dry_run:  # a run would not change the months that it leaves
        report.differences = [item for item in report.differences if (item.user_id, item.month) not in report.left]
    return report


async def _widen_ids(flags: argparse.Namespace, settings: Settings) -> _Ended:
    target = settings.direct_target()
    async with _opened(flags, target) as (opened, listener):
        await migrations.upgrade(target)
        widened = await wide_ids.widen(opened, listener, partial(_say, quiet=flags.quiet))
    said = f"widened to 64 bits: {', '.join(widened)}" if widened else "ids of messages have 64 bits already"
    return _Ended(lambda _seconds: print(said))  # noqa: T201


def _say(line: str, *, quiet: bool) -> None:
    if not quiet:
        print(line, file=sys.stderr)  # noqa: T201


async def _move(flags: argparse.Namespace, settings: Settings) -> _Ended:
    """Archive or import messages."""
    target, zone = settings.direct_target(), settings.usage_timezone
    # In old databases a message may name an archived one; PostgreSQL has no such key any more (revision 0017).
    options: dict[str, Any] = {"pragmas": {**PRAGMAS, "foreign_keys": 0}, **_server_settings(waits=False)}
    async with _opened(flags, target, **options) as (opened, listener):
        if flags.archive_before:
            backfill.check_months(flags.archive_before, zone)
        await migrations.upgrade(target)
        moved: Moved
        if flags.import_archive:
            moved = await backfill.import_archive(opened, flags.import_archive, zone, listener)
        else:
            old = backfill.Old(flags.archive_before, flags.user, zone)
            moved = await backfill.archive(opened, old, flags.directory, listener)
    return _Ended(_shown(flags, partial(backfill.moved_as_json, moved), partial(backfill.show_moved, moved)))


async def _build_search_index(target: Target, quiet: bool) -> None:
    opened = Database.open(target)  # without the lock timeout of the run: no session waits behind this build
    try:
        if opened.engine.dialect.name == "postgresql" and not await search_index.is_complete(opened):
            async with migrations.alone(opened):
                await search_index.build(opened, partial(_say, quiet=quiet))
    finally:
        await opened.close()


def _shown(
    flags: argparse.Namespace, as_json: Callable[[float], dict[str, Any]], show: Callable[[float], None]
) -> Callable[[float], None]:
    return (lambda seconds: print(json.dumps(as_json(seconds)))) if flags.json else show  # noqa: T201


if __name__ == "__main__":
    gc.freeze()  # else each garbage collection, also the one at exit, scans the permanent objects that the imports made
    sys.exit(main())

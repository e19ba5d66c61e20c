"""Fill, repair and verify `user_monthly_token_usage` from `messages`.

This operator's command holds progress and messages; `services.backfill` does the work. Exit codes: 0 done, or
verified with no difference; 1 `--verify` found a difference, a month was left, or the run was stopped; 2 bad usage, no
database, or a failure.
"""

import argparse
import asyncio
import gc
import io
import json
import sys
import time
from collections.abc import Sequence

import backfill_flags
from app import console, logs, redaction, setting_names, stopping
from app.db import database, migrations, search_index, urls
from app.db.database import Database
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
        settings = Settings.load(**({"database_url": flags.database_url} if flags.database_url is not None else {}))
        logs.configure("WARNING", settings.log_format)
        setting_names.log_misread(settings)
        started = time.monotonic()
        with database.failures_as_configuration_errors(settings.database_url):
            report = asyncio.run(_run(flags, settings))
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
        _show(report, flags, time.monotonic() - started)
        sys.stdout.flush()
    except OSError as error:
        print(f"migrate_token_data.py: standard output: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 2
    return 0 if isinstance(report, Moved) else _exit_code(report, flags.verify)


def _exit_code(report: Report, verify: bool) -> int:
    for (user_id, month), reason in sorted(report.left.items()):
        print(f"user {user_id}, {month}: left as it is: {reason}", file=sys.stderr)  # noqa: T201
    return 1 if report.left or (verify and not backfill.is_right(report)) else 0


async def _run(flags: argparse.Namespace, settings: Settings) -> Report | Moved:
    if flags.archive_before or flags.import_archive:
        return await _move(flags, settings)
    report = await _work(flags, settings)
    if not (flags.dry_run or flags.verify):
        with stopping.between_transactions(lambda _progress: None):
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
    _refuse_high_users(opened, flags)
    work = backfill.verify if only_compare else backfill.run
    policy = Policy(carry_over=not flags.recount, accept_missing=flags.accept_missing)
    try:
        with console.progress(flags.quiet) as shown, stopping.between_transactions(shown) as listener:
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


async def _move(flags: argparse.Namespace, settings: Settings) -> Moved:
    """Archive or import messages."""
    url, zone = settings.database_url, settings.usage_timezone
    if (missing := database.missing_file(url)) is not None:
        raise ConfigurationError(f"there is no database at {missing}")
    if flags.archive_before:
        backfill.check_months(flags.archive_before, zone)
    # In old databases a message may name an archived one; PostgreSQL has no such key any more (revision 0017).
    pragmas = {**PRAGMAS, "foreign_keys": 0}
    server_settings = {"jit": "off", "lock_timeout": LOCK_TIMEOUT}
    opened = Database.open(url, pragmas=pragmas, patience_seconds=PATIENCE_SECONDS, **server_settings)
    tag = backfill.tag_of(str(urls.parse(url)))
    users = sorted(set(flags.user)) if flags.user else None
    try:
        with console.progress(flags.quiet) as shown, stopping.between_transactions(shown) as listener:
            _refuse_high_users(opened, flags)
            await _refuse_unknown_users(opened, Scope(users), is_new=False)
            await migrations.upgrade(url)
            if flags.import_archive:
                return await backfill.import_archive(opened, flags.import_archive, zone, tag, listener)
            old = backfill.Old(flags.archive_before, users, zone)
            return await backfill.archive(opened, old, flags.directory, tag, listener)
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


def _refuse_high_users(opened: Database, flags: argparse.Namespace) -> None:
    if flags.user and max(flags.user) > backfill.highest_id(opened):
        raise ConfigurationError(f"--user: {max(flags.user)} is more than any id of this database")


async def _refuse_unknown_users(opened: Database, scope: Scope, is_new: bool) -> None:
    wanted = scope.users or ()
    unknown = wanted if is_new else await backfill.unknown_users(opened, wanted)
    if unknown:
        raise ConfigurationError(f"--user: there is no user {', '.join(map(str, unknown))}")


def _show(report: Report | Moved, flags: argparse.Namespace, seconds: float) -> None:
    if isinstance(report, Moved):
        _show_moved(report, flags.json, seconds)
        return
    mode = Mode(flags.dry_run, flags.verify, flags.all)
    if flags.json:
        print(json.dumps(backfill.as_json(report, mode, seconds)))  # noqa: T201
    else:
        backfill.show(report, mode, seconds)


def _show_moved(moved: Moved, as_json: bool, seconds: float) -> None:
    if as_json:
        print(json.dumps(backfill.moved_as_json(moved, seconds)))  # noqa: T201
    else:
        backfill.show_moved(moved, seconds)


if __name__ == "__main__":
    gc.freeze()  # else each garbage collection, also the one at exit, scans the permanent objects that the imports made
    sys.exit(main())

"""Define the flags of `migrate_token_data.py`."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from app import BASE_DIR, __version__
from app.clock import Month
from app.errors import ConfigurationError
from services import backfill

MAX_USER_ID = 2**63 - 1
DEFAULT_DIRECTORY = "archive"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message} (--help lists the flags)")


def _month(text: str) -> Month:
    try:
        return Month.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return BASE_DIR / text


def _whole(least: int, most: int) -> Any:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 19 and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return parse


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the flags.

    Raises:
        ConfigurationError: bad usage, described in one line.
    """
    parser = _parser()
    parsed = parser.parse_args(arguments)
    _read_to(parser, parsed)
    for mode, refused in _REFUSED.items():
        given = [flag for flag in refused if _is_given(parser, parsed, flag)]
        if given and _is_given(parser, parsed, mode):
            parser.error(f"{mode} cannot be combined with {', '.join(given)}")
    if parsed.since and parsed.until and parsed.since > parsed.until:
        parser.error("--from must not be later than --to")
    parsed.user = sorted(set(parsed.user)) if parsed.user else None
    return parsed


_MONTHS = ("--recount", "--accept-missing", "--finish", "--batch-size", "--from", "--all")
_REFUSED = {
    "--finish": ("--dry-run", "--verify"),
    "--archive-before": _MONTHS,
    "--import-archive": (*_MONTHS, "--to", "--user"),
    "--widen-ids": (*_MONTHS, "--to", "--user", "--json"),
}
"""The flags that each flag refuses."""


def _is_given(parser: _Parser, parsed: argparse.Namespace, flag: str) -> bool:
    name = {"--from": "since"}.get(flag, flag.removeprefix("--").replace("-", "_"))
    return bool(getattr(parsed, name) != parser.get_default(name))


def _parser() -> _Parser:
    parser = _Parser(
        prog="migrate_token_data.py",
        allow_abbrev=False,
        description="Fill and repair the monthly token usage from the messages. Run it as often as needed,"
        " also while servers run; it can be stopped or killed at any point.",
        epilog="Exit codes: 0 done, or verified with no difference; 1 --verify found a difference, or stopped before"
        " the end; 2 bad usage, no database, or a failure.",
    )
    mode = parser.add_mutually_exclusive_group()
    switch, mode_switch = (partial(group.add_argument, action="store_true") for group in (parser, mode))
    mode_switch("--dry-run", help="report what would change; write nothing")
    mode_switch("--redate", help="date all messages again in USAGE_TIMEZONE, then fill; stop the servers first")
    mode_switch("--verify", help="only compare, and list the differences; exit code 1 if any")
    mode_switch(
        "--widen-ids", help="only widen adopted 32-bit ids of messages to 64 bits, while servers run; PostgreSQL"
    )
    mode.add_argument(
        "--archive-before",
        type=_month,
        metavar="YYYY-MM",
        help="move the messages of earlier months to files in the directory --to; keep their usage",
    )
    mode.add_argument(
        "--import-archive",
        type=_path,
        metavar="PATH",
        help="bring archived messages back from a file, or from all files of a directory",
    )
    user, users = _whole(1, MAX_USER_ID), _whole(1, 1_000_000)
    parser.add_argument("--user", type=user, action="append", metavar="ID", help="only this user (repeatable)")
    parser.add_argument("--from", type=_month, dest="since", metavar="YYYY-MM", help="count only this month and newer")
    parser.add_argument(
        "--to",
        metavar="YYYY-MM|DIR",
        help="count only this month and older; with --archive-before: the directory of the files (default: archive,"
        " beside main.py)",
    )
    batch, most = backfill.DEFAULT_BATCH_SIZE, "maximum number of users in one transaction (%(default)s)"
    parser.add_argument("--batch-size", type=users, default=batch, metavar="N", help=most)
    switch("--recount", help="at adoption: count messages only, carry nothing over from an earlier backend's months")
    switch("--accept-missing", help="follow the ledger where a month and its days count messages that no longer exist")
    switch(
        "--finish", help="the earlier backend's processes are gone: hash passwords with argon2, leave its columns alone"
    )
    parser.add_argument("--database-url", metavar="URL", help="use this database instead of DATABASE_URL")
    switch("--json", help="print only the summary, as one JSON object, on standard output")
    switch("--all", help="list every difference as text, not only the first 100")
    switch("--quiet", help="show no progress")
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def _read_to(parser: _Parser, parsed: argparse.Namespace) -> None:
    """Read `--to`: a directory with `--archive-before`, otherwise a month."""
    parsed.until, parsed.directory = None, _path(DEFAULT_DIRECTORY)
    if parsed.to is None:
        return
    try:
        if parsed.archive_before:
            parsed.directory = _path(parsed.to)
        else:
            parsed.until = _month(parsed.to)
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument --to: {error}")

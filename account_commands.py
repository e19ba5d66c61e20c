"""Run the operator's commands for accounts and API keys: `python main.py COMMAND`."""

import argparse
import getpass
import secrets
import sys
from collections.abc import Sequence
from typing import NoReturn

from pydantic import TypeAdapter, ValidationError

from app import __version__
from app.db.database import Database
from app.db.urls import Target
from app.errors import ConfigurationError, NotFound
from app.security import passwords
from routers.accounts import Registration
from routers.logins import NewPassword
from services import earlier_backend
from services.accounts import api_keys, logins, users
from services.accounts.users import NewAccount

_MAX_ID_DIGITS = 10


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message} (see python main.py --help)")


def _text(value: str) -> str:
    if not value.isprintable():  # includes bytes of the terminal that are not UTF-8
        raise argparse.ArgumentTypeError("it must not contain control characters")
    return value


def _id(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= _MAX_ID_DIGITS and int(value) <= 2**31 - 1):
        raise argparse.ArgumentTypeError(f"{value!r} is not the number of a key")
    return int(value)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command and its flags; without arguments `command` is None.

    Raises:
        ConfigurationError: the usage is wrong.
        SystemExit: the help was shown.
    """
    parser = _Parser(
        prog="python main.py",
        allow_abbrev=False,
        description="Without a command: migrate the database and serve.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    admin = commands.add_parser("create-admin", help="create an admin, or promote a user")
    admin.add_argument("--email", type=_text, help="the address of a new account")
    service = commands.add_parser("create-service", help="create a service account, or convert a user")
    service.add_argument("--email", type=_text, help="the address of a new account; generated if left out")
    issue = commands.add_parser("issue-key", help="create an API key for POST /usage/records; it is shown once")
    issue.add_argument("--label", type=_text, default="", help="what the key is for")
    for command in (admin, service, issue):
        command.add_argument("name", type=_text, metavar="NAME", help="the username")
    password = commands.add_parser("set-password", help="set a forgotten password, and end every login of its user")
    password.add_argument("name", type=_text, metavar="NAME", help="the username")
    commands.add_parser("list-keys", help="list all API keys, without their secrets")
    commands.add_parser("revoke-key", help="revoke an API key").add_argument("id", metavar="ID", type=_id)
    return parser.parse_args(list(arguments))


async def run(arguments: argparse.Namespace, target: Target) -> None:
    """Run a command on a migrated database; print the result.

    Raises:
        ConfigurationError: a value is invalid.
        ProblemError: the command is impossible.
    """
    opened = Database.open(target)
    try:
        await _COMMANDS[arguments.command](opened, arguments)
    finally:
        await opened.close()


async def _create_admin(database: Database, arguments: argparse.Namespace) -> None:
    await _create(database, arguments, "admin")


async def _create_service(database: Database, arguments: argparse.Namespace) -> None:
    await _create(database, arguments, "service")


async def _create(database: Database, arguments: argparse.Namespace, role: str) -> None:
    name = arguments.name
    if await database.transaction(lambda session: users.promote(session, name, role), repeatable=True):
        _say(f"{name} is an active user with the role {role} now")
        return
    new = await (_new_admin if role == "admin" else _new_service)(database, arguments)
    made = await database.transaction(lambda session: users.register(session, new, role))
    _say(f"made {made.username} (id {made.id}) with the role {role}")


async def _new_admin(database: Database, arguments: argparse.Namespace) -> NewAccount:
    if arguments.email is None:
        raise ConfigurationError(f"there is no user {arguments.name}: add --email ADDRESS to create one")
    password = _read_password()
    valid = _valid(arguments.name, arguments.email, password)
    _refuse_weak(password, valid.username, valid.email)
    return NewAccount(valid.username, valid.email, await earlier_backend.hash_password(database, password))


async def _new_service(database: Database, arguments: argparse.Namespace) -> NewAccount:
    """Describe an account for API keys alone; its password is never shown."""
    password = secrets.token_urlsafe(32)
    valid = _valid(arguments.name, arguments.email or "service@example.com", password)
    email = (
        valid.email if arguments.email else f"service-{secrets.token_hex(8)}@localhost"
    )  # no other account can have it
    return NewAccount(valid.username, email, await earlier_backend.hash_password(database, password))


def _valid(username: str, email: str, password: str) -> Registration:
    try:
        return Registration(username=username, email=email, password=password)
    except ValidationError as error:
        messages = [f"{item['loc'][0]}: {item['msg'].removeprefix('Value error, ')}" for item in error.errors()]
        raise ConfigurationError("; ".join(messages)) from None


def _refuse_weak(password: str, *about: str) -> None:
    if weakness := passwords.weakness(password, *about):
        raise ConfigurationError(f"this password cannot be used: {weakness}")


async def _set_password(database: Database, arguments: argparse.Namespace) -> None:
    account = await database.read(lambda session: users.find(session, arguments.name))
    if account is None:
        raise NotFound(f"There is no user {arguments.name}.")
    password = _read_password()
    try:
        TypeAdapter(NewPassword).validate_python(password)
    except ValidationError as error:
        raise ConfigurationError(f"password: {error.errors()[0]['msg']}") from None
    _refuse_weak(password, account.username, account.email)
    new_hash = await earlier_backend.hash_password(database, password)
    await database.transaction(lambda session: logins.set_password(session, account.id, new_hash), repeatable=True)
    _say(f"the password of {account.username} is set, and every login of this user has ended")


def _read_password() -> str:
    """Ask twice on a terminal; elsewhere read a line of standard input."""
    if sys.stdin is None or not sys.stdin.isatty():
        line = sys.stdin.readline() if sys.stdin else ""  # None: standard input is closed
        if not line:
            raise ConfigurationError("no password was given")
        return line.rstrip("\r\n")
    try:
        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            raise ConfigurationError("the passwords are not the same")
    except EOFError:
        raise ConfigurationError("no password was given") from None
    return password


async def _issue_key(database: Database, arguments: argparse.Namespace) -> None:
    issued = await database.transaction(lambda session: api_keys.issue(session, arguments.name, arguments.label))
    _say(issued.key)
    print(f"key {issued.id} of {arguments.name}; it is not shown again", file=sys.stderr)  # noqa: T201


async def _list_keys(database: Database, _arguments: argparse.Namespace) -> None:
    for key in await database.read(api_keys.listed):
        state = f"revoked {key.revoked_at:%Y-%m-%d}" if key.revoked_at else "good"
        made = f"{key.created_at:%Y-%m-%d}"
        _say("\t".join((str(key.id), key.username, f"{key.prefix}…", made, state, key.name)).rstrip())


async def _revoke_key(database: Database, arguments: argparse.Namespace) -> None:
    await database.transaction(lambda session: api_keys.revoke(session, arguments.id))
    _say(f"key {arguments.id} is revoked")


def _say(text: str) -> None:
    print(text)  # noqa: T201


_COMMANDS = {
    "create-admin": _create_admin,
    "create-service": _create_service,
    "set-password": _set_password,
    "issue-key": _issue_key,
    "list-keys": _list_keys,
    "revoke-key": _revoke_key,
}

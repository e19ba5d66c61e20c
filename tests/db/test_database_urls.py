"""All forms of `DATABASE_URL` that people have."""

import inspect
from pathlib import Path
from urllib.parse import quote

import pytest
from asyncpg import connect_utils
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from app import BASE_DIR
from app.db import urls
from app.db.database import Database
from tests.conftest import UrlOf

DRIVERS = [
    "postgres",
    "postgresql",
    "postgresql+asyncpg",
    "postgresql+psycopg",
    "postgresql+psycopg2",
    "postgres+pg8000",
]


async def connects_to(url: str) -> str:
    """The name of the database to which a URL leads."""
    database = Database.open(url)
    try:
        async with database.engine.connect() as connection:
            statement = "SELECT current_database()"
            if database.engine.dialect.name == "sqlite":
                statement = "SELECT file FROM pragma_database_list WHERE name = 'main'"
            return str((await connection.execute(text(statement))).scalar_one())
    finally:
        await database.close()


@pytest.mark.parametrize("driver", ["sqlite", "sqlite+aiosqlite", "sqlite+pysqlite"])
async def test_sqlite_may_be_named_with_any_driver(driver: str, tmp_path: Path) -> None:
    for name in ("app.db", "with space.db", "ümläut.db", "no-suffix"):
        path = tmp_path / name
        assert await connects_to(f"{driver}:///{path}") == str(path)
        assert path.exists()


def test_a_relative_path_lies_beside_main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url, path in (
        ("sqlite:///app.db", BASE_DIR / "app.db"),
        ("sqlite:///data/app.db", BASE_DIR / "data" / "app.db"),
        ("sqlite:////var/app.db", Path("/var/app.db")),
        ("sqlite:///app.db?timeout=5", BASE_DIR / "app.db"),
        (urls.DEFAULT, BASE_DIR / "app.db"),
    ):
        assert urls.parse(url).database == str(path)
    assert Path(str(urls.parse("sqlite:///./app.db").database)).resolve() == BASE_DIR / "app.db"


@pytest.mark.parametrize("driver", DRIVERS)
async def test_postgresql_urls_may_name_drivers_and_unix_sockets(driver: str, postgresql: UrlOf) -> None:
    url = postgresql("postgres")
    assert "host=/" in url, "the server of the tests listens on a Unix socket"
    assert await connects_to(driver + url[url.index("://") :]) == "postgres"


async def test_the_directory_of_a_unix_socket_may_be_percent_encoded(postgresql: UrlOf) -> None:
    address, _, directory = postgresql("postgres").partition("host=")
    assert await connects_to(f"{address}host={quote(directory, safe='')}") == "postgres"


@pytest.mark.parametrize(
    "parameter", ["application_name=x", "sslmode=prefer", "connect_timeout=5", "channel_binding=prefer", "keepalives=1"]
)
async def test_libpq_parameters_in_urls_of_providers_are_understood(postgresql: UrlOf, parameter: str) -> None:
    assert await connects_to(f"{postgresql('postgres')}&{parameter}") == "postgres"


async def test_the_code_chooses_the_driver(postgresql: UrlOf) -> None:
    for url, driver in ((postgresql("postgres"), "asyncpg"), ("sqlite:///app.db", "aiosqlite")):
        database = Database.open(url)
        assert database.engine.dialect.driver == driver
        await database.close()


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=30))
def test_percent_encoded_passwords_work_and_are_not_shown(password: str) -> None:
    url = urls.parse(f"postgres://user:{quote(password, safe='')}@db.example.com:5433/name")
    assert url.password == password
    assert (url.drivername, url.username, url.host, url.port) == ("postgresql", "user", "db.example.com", 5433)
    assert url.database == "name"
    shown = urls.shown(url)
    assert shown == "postgresql://user:***@db.example.com:5433/name"
    in_query = urls.parse(f"postgresql://user@/name?host=/run&password={quote(password, safe='')}")
    assert urls.shown(in_query) == "postgresql://user@/name?host=/run"
    several = urls.parse(f"postgresql://user:{quote(password, safe='')}@h1:1,h2:2/name?sslmode=disable")
    assert urls.shown(several) == "postgresql://user:***@/name?host=h1:1,h2:2"


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("postgresql://u@h1:1,h2:2/name", [("h1", 1), ("h2", 2)]),
        ("postgres://u@h1,h2/name?sslmode=disable", [("h1", 5432), ("h2", 5432)]),
        ("postgresql://u@/name?host=h1:1&host=h2:2", [("h1", 1), ("h2", 2)]),
        ("postgresql://u@/name?host=h1,h2&port=1,2", [("h1", 1), ("h2", 2)]),
        ("postgresql://u@/name?host=h1&host=h2&port=7", [("h1", 7), ("h2", 7)]),
        ("postgresql://u@[::1]:1,[::2]:2/name", [("::1", 1), ("::2", 2)]),
        ("postgresql://u@/name?host=/a&host=/b", ["/a/.s.PGSQL.5432", "/b/.s.PGSQL.5432"]),
        ("postgresql://u:a,b@h1/name", [("h1", 5432)]),
    ],
)
def test_a_url_may_name_several_servers(text: str, addresses: list[object]) -> None:
    found = [read_by_asyncpg(server) for server in urls.servers(urls.parse(text))]
    assert [address for addresses, _attribute in found for address in addresses] == addresses
    expected = "read-write" if len(addresses) > 1 else "any"
    assert {attribute for _addresses, attribute in found} == {expected}


def read_by_asyncpg(dsn: str) -> tuple[list[object], str]:
    names = inspect.signature(connect_utils._parse_connect_dsn_and_args).parameters
    addresses, found = connect_utils._parse_connect_dsn_and_args(**{**dict.fromkeys(names), "dsn": dsn})
    return list(addresses), found.target_session_attrs.value


@given(st.lists(st.sampled_from(["h1", "h2:5433", "/run", "[::1]"]), min_size=2, max_size=4))
def test_the_two_forms_of_several_servers_are_the_same(hosts: list[str]) -> None:
    both = f"postgresql://u@{','.join(quote(host, safe=':[]') for host in hosts)}/name"
    listed = f"postgresql://u@/name?{'&'.join(f'host={quote(host)}' for host in hosts)}"
    assert urls.servers(urls.parse(both)) == urls.servers(urls.parse(listed))


def test_a_port_for_some_servers_only_is_refused() -> None:
    with pytest.raises(ValueError, match="not one for each host"):
        urls.parse("postgresql://u@/name?host=h1,h2,h3&port=1,2")


def test_special_characters_of_passwords_reach_the_driver() -> None:
    url = urls.parse("postgresql://us%40er:p%40ss%3A%2F%3F%23%25w%20rd@[::1]:5433/my%20db?sslmode=require")
    assert (url.username, url.password, url.host, url.port) == ("us@er", "p@ss:/?#%w rd", "::1", 5433)
    again = urls.parse(url.render_as_string(hide_password=False))
    assert again == url
    assert url.query == {"sslmode": "require"}


BAD = [
    "",
    "app.db",
    "/var/app.db",
    "sqlite",
    "sqlite:",
    "sqlite://",
    "sqlite:///",
    "sqlite://app.db",
    "sqlite:///:memory:",
    "sqlite:///file:app.db?uri=true",
    "postgresql://",
    "postgresql://user:hunter2@host",
    "postgresql://user:hunter2@host/",
    "postgresql://user:hunter2@host:port/name",
    "mysql://user:hunter2@host/name",
    "oracle+x://user:hunter2@host/name",
    "http://user:hunter2@host/name",
    "://user:hunter2@host/name",
    "postgresql//user:hunter2@host/name",
]


@pytest.mark.parametrize("url", BAD)
def test_what_is_no_database_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refusal:
        urls.check(url)
    assert "hunter2" not in str(refusal.value)
    assert str(refusal.value).isprintable()


@given(st.text())
def test_no_text_is_more_than_refused(url: str) -> None:
    try:
        parsed = urls.parse(url)
    except ValueError as error:
        said = str(error)
    else:
        said = parsed.drivername
        assert said in ("sqlite", "postgresql")
    assert said.isprintable()

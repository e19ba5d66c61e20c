"""Convert rows to JSON and back, exactly as they are stored.

A value has its plain form: an integer, a boolean, a text, money as a decimal text, an instant as ISO 8601 with a `Z`,
bytes as base64. A value of SQLite that would not come back from its plain form, such as a text in a column of numbers,
is an object of one field, which names the value's type.
"""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from sqlalchemy import (
    Boolean,
    ColumnElement,
    LargeBinary,
    Select,
    Table,
    TextClause,
    literal_column,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncSession

from app import money
from app.clock import UtcDateTime
from app.db.database import is_sqlite
from app.errors import ConfigurationError
from app.money import UsdAmount

Kind = Literal["integer", "boolean", "instant", "money", "bytes", "other"]
Values = Mapping[str, Any]

_KINDS: Mapping[type, Kind] = {Boolean: "boolean", UtcDateTime: "instant", UsdAmount: "money", LargeBinary: "bytes"}
_POSTGRESQL_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("smallint", "integer", "bigint"), "integer"),
    "boolean": "boolean",
    "bytea": "bytes",
}
_COLUMNS = {
    True: text("SELECT name, type FROM pragma_table_info(:table)"),
    False: text("""
        SELECT attname AS name, format_type(atttypid, atttypmod) AS type FROM pg_attribute
        WHERE attrelid = to_regclass(:table) AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
    """),
}
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?(\+00)?")
_ISO = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d\.\d{6})Z")


class Columns(NamedTuple):
    """Describe all columns of a table, also those without a model."""

    table: str
    kinds: Mapping[str, Kind]
    types: Mapping[str, str]
    sqlite: bool

    def select(self, table: Table) -> Select[*tuple[Any, ...]]:
        """Select the rows for `encode`."""
        return select(*(self._stored(name) for name in self.kinds)).select_from(table)

    def _stored(self, name: str) -> ColumnElement[Any]:
        own = f'{self.table}."{name}"'
        if self.sqlite:
            return literal_column(own).label(name)
        # The text of any type of PostgreSQL is exact; drivers cannot represent some values.
        text_of = f"encode({own}, 'hex')" if self.kinds[name] == "bytes" else f"CAST({own} AS text)"
        return literal_column(text_of).label(name)

    def encode(self, row: Mapping[Any, Any]) -> dict[str, Any]:
        """Return the JSON object of a row."""
        encode = _encode_sqlite if self.sqlite else _encode_postgresql
        return {name: None if row[name] is None else encode(kind, row[name]) for name, kind in self.kinds.items()}

    def decode(self, values: Values) -> dict[str, Any]:
        """Return the stored values of a JSON object.

        Raises:
            ConfigurationError: the table lacks a column.
        """
        decode = _decode_sqlite if self.sqlite else _decode_postgresql
        known = {name: value for name, value in values.items() if name in self.kinds}
        if lacking := [name for name in values if name not in known and values[name] is not None]:
            raise ConfigurationError(
                f"the table {self.table} has no column {', '.join(lacking)}, which the archive has"
            )
        return {name: None if value is None else decode(self.kinds[name], value) for name, value in known.items()}

    def insert(self, names: Sequence[str], more: str = "") -> TextClause:
        """Return an INSERT with the parameters `p0`, `p1` and so on.

        Their values are those of `decode`.
        """
        values = ", ".join(f":p{i}" if self.sqlite else self._cast(f":p{i}", name) for i, name in enumerate(names))
        overriding = "" if self.sqlite else " OVERRIDING SYSTEM VALUE"
        into = ", ".join(f'"{name}"' for name in names)
        return text(f"INSERT INTO {self.table} ({into}){overriding} VALUES ({values}) {more}")  # noqa: S608 - names of the catalogue

    def _cast(self, parameter: str, name: str) -> str:
        return f"CAST(CAST({parameter} AS text) AS {self.types[name]})"


async def columns_of(session: AsyncSession, table: Table) -> Columns:
    """Return the columns of a table as the database has them."""
    sqlite = is_sqlite(session)
    found = (await session.execute(_COLUMNS[sqlite], {"table": table.name})).all()
    # An unfinished `--widen-ids` has copies of ids, such as `id_wide`, and a trigger that fills them.
    copies = {f"{row.name}_wide" for row in found}
    rows = [row for row in found if row.name not in copies]
    kinds = {row.name: _kind(row.type, table, row.name, sqlite) for row in rows}
    return Columns(table.name, kinds, {row.name: row.type for row in rows}, sqlite)


def _kind(declared: str, table: Table, name: str, sqlite: bool) -> Kind:
    if not sqlite:
        return "instant" if declared.startswith("timestamp") else _POSTGRESQL_KINDS.get(declared, "other")
    if name not in table.c:
        return "other"
    return next((kind for type_, kind in _KINDS.items() if isinstance(table.c[name].type, type_)), "other")


def _encode_postgresql(kind: Kind, stored: str) -> Any:
    if kind == "integer":
        return int(stored)
    if kind == "boolean":
        return stored == "true"
    if kind == "bytes":
        return base64.b64encode(bytes.fromhex(stored)).decode()
    if kind == "instant" and _INSTANT.fullmatch(stored):
        return f"{stored.removesuffix('+00').replace(' ', 'T')}Z"
    return stored


def _decode_postgresql(kind: Kind, value: Any) -> str:
    if isinstance(value, dict):  # of SQLite: the column must accept its text
        return str(*value.values())
    if kind == "bytes":
        return f"\\x{base64.b64decode(value).hex()}"
    return str(value).lower() if kind == "boolean" else str(value)


def _encode_sqlite(kind: Kind, stored: Any) -> Any:
    plain = _plain(kind, stored)
    if plain is not None and _is_same(_decode_sqlite(kind, plain), stored):
        return plain
    shown = base64.b64encode(stored).decode() if isinstance(stored, bytes) else str(stored)
    return {type(stored).__name__: shown}


def _plain(kind: Kind, stored: Any) -> Any:
    """Return a plain form of a value, or None; `_decode_sqlite` may differ."""
    if kind == "bytes":
        return base64.b64encode(stored).decode() if isinstance(stored, bytes) else None
    if kind == "money":
        return f"{money.of_units(stored):f}" if isinstance(stored, int) else None
    if kind == "instant" and isinstance(stored, str):
        return f"{stored.replace(' ', 'T')}Z"
    if kind == "boolean" and stored in (0, 1):
        return bool(stored)
    return stored if isinstance(stored, int | str) else None


def _is_same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def _decode_sqlite(kind: Kind, value: Any) -> Any:
    if isinstance(value, dict):
        ((name, shown),) = value.items()
        return _FROM_TEXT[name](shown)
    if kind == "bytes" and isinstance(value, str):
        return base64.b64decode(value)
    if kind == "instant" and isinstance(value, str) and (match := _ISO.fullmatch(value)):
        return " ".join(match.groups())
    if kind == "money" and isinstance(value, str):
        return int(Decimal(value).scaleb(money.DECIMAL_PLACES))
    return int(value) if isinstance(value, bool) else value


_FROM_TEXT: Mapping[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "bytes": base64.b64decode,
}

"""The messages of an old database, made from real requests by a fixed rule, and what they amount to.

What they amount to is worked out here from the values as they were chosen, with no code of the product.
"""

import csv
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

from app import BASE_DIR

REQUESTS = BASE_DIR / "tests" / "data"
ALL = 28_185

USERS = (1, 2, 3, 5, 8, 13, 21)
GONE_USER = 999
TIE = 2.0**-11
"""Dollars: 4,882,812.5 units of 1e-10, which half to even makes 4,882,812."""

_COSTS: dict[int, float | None] = {
    1: None,
    2: TIE,
    3: 3 * TIE,
    4: 0.0,
    # Ties as they are written, and none as they are stored: each lies a little above or below.
    **dict(enumerate((1.00000000005, 0.30000000005, 5e-11, 1.5e-10, 2.5e-10, 3.5e-10), start=5)),
    11: 123_456.789_012_345_65,
}

OF_NOBODY = str(uuid.uuid5(uuid.NAMESPACE_URL, "a conversation without a user"))
OF_GONE_USER = str(uuid.uuid5(uuid.NAMESPACE_URL, "a conversation whose user is gone"))
GONE = str(uuid.uuid5(uuid.NAMESPACE_URL, "a conversation that is gone"))

EDGES = [
    datetime.fromisoformat(f"{text}+00:00")
    for text in (
        "2023-12-31 23:59:59.999999",
        "2024-01-01 00:00:00",
        "2024-02-29 23:59:59.999999",
        "2024-03-01 00:00:00",
        "2023-12-31 14:59:59.999999",  # 2024 in Tokyo begins a microsecond later
        "2023-12-31 15:00:00",
        "2024-04-01 03:59:59.999999",  # so does April in New York, on summer time
        "2024-04-01 04:00:00",
        "2023-10-31 22:59:59.999999",  # and November in Berlin, off summer time
        "2023-10-31 23:00:00",
    )
]


@dataclass(frozen=True)
class OldMessage:
    """A row of the old table; `instant` and `owner` are what `written` and the conversation stand for.

    `reason` is why it cannot be counted though it carries usage.
    """

    id: int
    conversation_id: str
    owner: int | None
    role: str | None = "assistant"
    instant: datetime | None = None
    written: Any = None
    parent_message_id: int | None = None
    input_tokens: Any = None
    output_tokens: Any = None
    total_tokens: Any = None
    model_cost: Any = None
    reason: str | None = None

    @property
    def carries_usage(self) -> bool:
        """The contract's definition."""
        return self.role == "assistant" and self.input_tokens is not None


class Month(NamedTuple):
    """What a user's messages of a month amount to; the cost in dollars, exact to 1e-10."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost: Decimal = Decimal(0)
    messages: int = 0


Months = dict[tuple[int, str], Month]


def months(messages: Iterable[OldMessage], zone: tzinfo = UTC) -> Months:
    """The months by user and `YYYY-MM`."""
    found: Months = {}
    for message in messages:
        if not message.carries_usage or message.reason or message.instant is None or message.owner is None:
            continue
        key = message.owner, f"{message.instant.astimezone(zone):%Y-%m}"
        month = found.get(key, Month())
        found[key] = Month(
            month.input_tokens + message.input_tokens,
            month.output_tokens + (message.output_tokens or 0),
            month.cost + dollars(message.model_cost or 0.0),
            month.messages + 1,
        )
    return found


def uncountable(messages: Iterable[OldMessage]) -> Counter[tuple[int, str]]:
    """How many messages of a month (UTC) carry usage that cannot be counted; those of a known user and instant."""
    return Counter(
        (message.owner, f"{message.instant:%Y-%m}")
        for message in messages
        if message.carries_usage and message.reason and message.owner is not None and message.instant is not None
    )


def skipped(messages: Iterable[OldMessage]) -> dict[str, int]:
    """How many messages carry usage that cannot be counted, by reason."""
    return dict(Counter(message.reason for message in messages if message.carries_usage and message.reason))


def dollars(cost: float) -> Decimal:
    """The exact value of a float, half to even at 1e-10."""
    return Decimal(round(Fraction(cost) * 10**10)).scaleb(-10)


def make(rows: int, kind: str, *, time_zone: bool) -> tuple[list[OldMessage], dict[str, int | None]]:
    """Return the messages of `rows` requests and the damaged ones, and the users of their conversations."""
    messages = [message for pair in map(_turn, range(rows), _requests(rows)) for message in pair]
    messages += _odd_ones(kind, first_id=len(messages) + 1)
    owners: dict[str, int | None] = {message.conversation_id: message.owner for message in messages}
    owners.pop(GONE, None)
    owners[OF_NOBODY] = None
    owners[OF_GONE_USER] = GONE_USER
    if kind == "postgresql":  # which enforces foreign keys
        del owners[OF_GONE_USER]
    return [replace(message, written=_written(message, kind, time_zone)) for message in messages], owners


def _requests(rows: int) -> Sequence[Mapping[str, str]]:
    every = _every_request()
    assert len(every) == ALL
    step = ALL // rows
    return every[: step * rows : step]


@cache
def _every_request() -> Sequence[Mapping[str, str]]:
    found: list[Mapping[str, str]] = []
    for name in ("conv", "code"):
        with (REQUESTS / f"azure-llm-inference-2023-{name}.csv").open(encoding="ascii") as file:
            found += csv.DictReader(file)
    return found


def _turn(index: int, request: Mapping[str, str]) -> tuple[OldMessage, OldMessage]:
    """A user's question and the assistant's answer to it."""
    user = USERS[index % len(USERS)] if index % 3 else USERS[0]
    conversation = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{user} {index // 40}"))
    instant = _instant(index, request["TIMESTAMP"])
    tokens, generated = int(request["ContextTokens"]), int(request["GeneratedTokens"])
    question = OldMessage(2 * index + 1, conversation, user, "user", instant)
    return question, OldMessage(
        2 * index + 2,
        conversation,
        user,
        instant=instant,
        parent_message_id=question.id,
        input_tokens=tokens,
        output_tokens=None if index % 19 == 18 else generated,
        total_tokens=(tokens + generated, None, tokens, tokens + generated + 1)[index % 4],
        model_cost=_COSTS.get(index % 23, tokens * 2.5e-06 + generated * 1e-05),
    )


def _instant(index: int, timestamp: str) -> datetime:
    """The time of day is the request's; the day is spread over 27 months, with edges of months among the first."""
    if index < 4 * len(EDGES):
        return EDGES[index % len(EDGES)]
    time = datetime.fromisoformat(timestamp[:26])
    year, month = divmod(12 * 2022 + 9 + index * 11 % 27, 12)
    return time.replace(year=year, month=month + 1, day=1 + index * 5 % 28, hour=index * 7 % 24, tzinfo=UTC)


def _odd_ones(kind: str, first_id: int) -> list[OldMessage]:
    usual = OldMessage(
        first_id,
        str(uuid.uuid5(uuid.NAMESPACE_URL, "odd")),
        USERS[1],
        instant=datetime(2024, 5, 5, 12, tzinfo=UTC),
        input_tokens=100,
        output_tokens=10,
        total_tokens=110,
        model_cost=0.5,
    )
    chosen = _ODD_EVERYWHERE + (_ODD_ON_SQLITE if kind == "sqlite" else _ODD_ON_POSTGRESQL)
    return [replace(usual, id=first_id + index, **changes) for index, changes in enumerate(chosen)]


_LARGEST = {"input_tokens": 2**31 - 1, "output_tokens": 2**31 - 1, "total_tokens": None}
_ODD_EVERYWHERE: list[dict[str, Any]] = [
    {},
    _LARGEST | {"instant": datetime(2024, 6, 1, tzinfo=UTC)},
    _LARGEST | {"instant": datetime(2024, 6, 30, 23, 59, 59, 999_999, tzinfo=UTC), "model_cost": 1_000_000.0},
    {"input_tokens": 0, "output_tokens": 0, "model_cost": None, "instant": datetime(2020, 2, 29, tzinfo=UTC)},
    {"instant": datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)},
    {"instant": datetime(2014, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)},
    {"instant": datetime(2015, 1, 1, tzinfo=UTC)},
    {"instant": datetime(2099, 7, 31, 23, 59, 59, 999_999, tzinfo=UTC)},
    {"model_cost": 5e-324},
    {"role": "user"},
    {"role": "system"},
    {"role": None},
    {"input_tokens": None},
    {"input_tokens": None, "output_tokens": -3, "owner": None, "conversation_id": OF_NOBODY},
    {"input_tokens": -5, "reason": "negative_tokens"},
    {"output_tokens": -1, "reason": "negative_tokens"},
    {"instant": None, "reason": "no_created_at"},
    {"owner": None, "conversation_id": OF_NOBODY, "reason": "user_gone"},
    {"model_cost": -0.01, "reason": "negative_cost"},
    {"model_cost": 1_000_000.01, "reason": "absurd_cost"},
    {"model_cost": float("inf"), "reason": "absurd_cost"},
]
_ODD_ON_POSTGRESQL: list[dict[str, Any]] = [{"model_cost": float("nan"), "reason": "absurd_cost"}]
_ODD_ON_SQLITE: list[dict[str, Any]] = [
    {"input_tokens": 2**31, "reason": "absurd_tokens"},
    {"output_tokens": 2**40, "reason": "absurd_tokens"},
    {"input_tokens": 2**63 - 1, "reason": "absurd_tokens"},
    {"input_tokens": "many", "reason": "unreadable_tokens"},
    {"output_tokens": 12.5, "reason": "unreadable_tokens"},
    {"model_cost": "n/a", "reason": "unreadable_cost"},
    {"instant": None, "written": "yesterday", "reason": "unreadable_created_at"},
    {"instant": None, "written": "", "reason": "unreadable_created_at"},
    {"instant": None, "written": "2024-02-30 00:00:00", "reason": "unreadable_created_at"},
    {"instant": None, "written": 1_700_000_000, "reason": "unreadable_created_at"},
    {"owner": None, "conversation_id": GONE, "reason": "conversation_gone"},
    {"owner": None, "conversation_id": GONE, "reason": "conversation_gone", "input_tokens": 3},
    {"owner": None, "conversation_id": GONE, "role": "user", "input_tokens": None},
    {"owner": None, "conversation_id": OF_GONE_USER, "reason": "user_gone"},
]


def _written(message: OldMessage, kind: str, time_zone: bool) -> Any:
    """How the instant stands in the database: on SQLite as text of the forms that were found."""
    if message.written is not None or message.instant is None:
        return message.written
    naive = message.instant.replace(tzinfo=None)
    if kind == "postgresql":
        return message.instant if time_zone else naive
    forms = {
        3: naive.isoformat(" "),  # no fraction where it is zero
        4: naive.isoformat(),
        5: f"{naive.isoformat(timespec='microseconds')}Z",
        6: message.instant.astimezone(timezone(timedelta(hours=2))).isoformat(" ", "microseconds"),
        7: message.instant.astimezone(timezone(-timedelta(hours=5, minutes=30))).isoformat(),
    }
    return forms.get(message.id // 2 % 8, naive.isoformat(" ", "microseconds"))

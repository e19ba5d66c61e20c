"""`POST /usage/records`: money to the last digit, and numbers at and beyond their bounds."""

from decimal import Decimal
from fractions import Fraction

import httpx
import pytest
from sqlalchemy import select, text

from app.db.database import Database
from models import Message
from tests.support import invariants, problems, records
from tests.support.accounts import Caller
from tests.support.invariants import Totals
from tests.support.records import post, post_text, record

JUNE = "2024-06-15T12:00:00Z"
PER_TOKEN = {"input": Decimal("0.15e-6"), "cached": Decimal("0.075e-6"), "output": Decimal("0.60e-6")}
"""OpenAI's price of gpt-4o-mini in dollars: https://openai.com/api/pricing"""


async def costs(database: Database) -> list[Decimal | None]:
    """The costs of all messages in the order in which they were stored; the invariants are checked with it."""
    await invariants.check(database)
    async with database.reads() as session:
        return list(await session.scalars(select(Message.cost).order_by(Message.id)))


KEPT = {
    "123456.1234567891": "123456.1234567891",
    '"123456.1234567891"': "123456.1234567891",
    "0.0000000001": "0.0000000001",
    "1e-10": "0.0000000001",
    "0.1": "0.1",
    "0.30000000000000004": "0.3",
    "999999.9999999999": "999999.9999999999",
    "1000000": "1000000",
    "1E+6": "1000000",
    "0": "0",
    "-0.0": "0",
    "0.00000000005": "0",
    "0.00000000015": "0.0000000002",
    "0.00000000025": "0.0000000002",
    "0.000000000250000000000000000000000000000000001": "0.0000000003",
    "1e-400": "0",
}
"""Costs as JSON, and what is stored: rounded half to even at 1e-10."""


async def test_a_cost_is_kept_to_the_last_digit(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    expected = {}
    for i, (sent, kept) in enumerate(KEPT.items()):
        item = record(ayu, created_at=f"{2000 + i}-06-15T12:00:00Z")
        for duplicates in (0, 1):
            answer = await post_text(client, service, item, cost=sent)
            assert answer.status_code == 200, answer.text
            assert answer.json()["duplicates"] == duplicates
        expected[ayu.id, f"{2000 + i}-06"] = Totals(10, 5, 15, Fraction(kept), 1)
    assert await costs(database) == [Decimal(kept) for kept in KEPT.values()]
    assert await invariants.check(database) == expected


async def test_sums_of_costs_are_exact_where_floats_are_not(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    amounts = ["999999.9999999999", "0.0000000001", "0.1", "0.2", "0.7", *(["0.0000000001"] * 95)]
    await records.store(client, service, [record(ayu, cost=amount, created_at=JUNE) for amount in amounts])
    months = await invariants.check(database)
    assert months[ayu.id, "2024-06"].total_cost == sum(map(Fraction, amounts)) == Fraction("1000001.0000000095")
    me = await client.get("/auth/me", headers=ayu.headers)
    assert '"total_cost":1000001.0000000095,' in me.text.replace(" ", "")


async def test_without_a_cost_the_price_list_says(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    counts = [(1, 0, 0), (0, 1, 0), (1, 0, 1), (1234567, 7654321, 234567), (2**31 - 1, 2**31 - 1, 2**31 - 1), (0, 0, 0)]
    batch = [
        record(ayu, model=model, input_tokens=read, output_tokens=written, cached_input_tokens=cached, created_at=JUNE)
        for model in ("gpt-4o-mini", "openai/gpt-4o-mini")
        for read, written, cached in counts
    ]
    await records.store(client, service, batch)
    expected = [
        (read - cached) * PER_TOKEN["input"] + cached * PER_TOKEN["cached"] + written * PER_TOKEN["output"]
        for read, written, cached in counts
    ]
    assert await costs(database) == expected * 2
    months = await invariants.check(database)
    assert months[ayu.id, "2024-06"].total_cost == 2 * sum(map(Fraction, expected))


async def test_a_model_without_a_price_costs_null_and_adds_nothing(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    known = record(ayu, cost="0.25", created_at=JUNE)
    unknown = [record(ayu, model=model, created_at=JUNE) for model in ("no such model", "openai/", "/", "a/b/c", "💸")]
    await records.store(client, service, [known, *unknown])
    assert await costs(database) == [Decimal("0.25"), None, None, None, None, None]
    me = await client.get("/auth/me", headers=ayu.headers)
    [month] = me.json()["token_stats"]["monthly_stats"]
    assert (month["total_cost"], month["message_count"]) == (0.25, 6)


async def test_the_greatest_counts_are_accepted_and_summed(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    most = 2**31 - 1
    great = {"input_tokens": most, "output_tokens": most, "cached_input_tokens": most, "cost": "0"}
    await records.store(client, service, [record(ayu, created_at=JUNE, **great) for _ in range(1000)])
    await records.store(client, service, [record(ayu, created_at=JUNE, input_tokens=0, output_tokens=0, cost=0)])
    totals = Totals(1000 * most, 1000 * most, 2000 * most, Fraction(0), 1001)
    assert await invariants.check(database) == {(ayu.id, "2024-06"): totals}
    [month] = (await client.get("/auth/me", headers=ayu.headers)).json()["token_stats"]["monthly_stats"]
    assert month["total_tokens"] == 4_294_967_294_000


async def test_a_month_that_costs_more_than_its_column_is_a_conflict(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    def dear(count: int) -> list[dict[str, object]]:
        return [record(ayu, cost=1_000_000, created_at=JUNE) for _ in range(count)]

    await records.store(client, service, dear(900))
    problems.check(await post(client, service, dear(1)), 409)
    problems.check(await post(client, service, [record(ayu, cost="1e-10", created_at=JUNE)]), 409)
    await records.store(client, service, [record(ayu, cost="0", created_at=JUNE)])
    months = await invariants.check(database)
    assert months == {(ayu.id, "2024-06"): Totals(9010, 4505, 13515, Fraction(900_000_000), 901)}


@pytest.mark.parametrize("days", [1, 2])
@pytest.mark.sampled(1)
async def test_a_request_that_costs_more_than_64_bits_is_a_conflict(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller, days: int
) -> None:
    dear = [record(ayu, cost=1_000_000, created_at=f"2024-06-{1 + i % days:02}T12:00:00Z") for i in range(1000)]
    problems.check(await post(client, service, dear), 409)
    assert await costs(database) == []
    await records.store(client, service, dear[:900])


TOKENS = [str(2**31), str(2**63), str(10**400), "-1", "-0.5", "1.5", "1e400", "NaN", "Infinity", "-Infinity"]
TOKENS += ["true", "false", '"many"', '""', "[1]", "{}"]
AMOUNTS = ["-0.0000000001", "-1", "1000000.0000000001", "1e400", "1e999999999", "NaN", "Infinity", "-Infinity"]
AMOUNTS += [
    '"1_0"',
    '" 1 "',
    '"1 "',
    '"+1"',
    '"1."',
    '".5"',
    '"0x1"',
    '"\\u0661"',
    '"1\\n"',
    '"1e1e1"',
    '"NaN"',
    '"Infinity"',
    '"-1"',
    '"1,5"',
    '"$1"',
    '""',
    "true",
    "[1]",
    "{}",
    str(2**63),
]
IDS = ['""', '"' + "x" * 256 + '"', '"a\\u0000"', '"\\ud800"', "7", "null", "true"]


@pytest.mark.any_database
@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        (["input_tokens", "output_tokens"], [*TOKENS, "null"]),
        (["cached_input_tokens"], TOKENS),
        (["user_id"], [*TOKENS, "null", "0"]),
        (["cost"], AMOUNTS),
        (["id"], IDS),
        (["model", "conversation_id"], [text for text in IDS if text != "null"]),
        (["content"], ['"a\\u0000"', '"\\ud800"', "7", "true", '"' + "x" * 1_000_001 + '"']),
        (["role"], ['""', '"Assistant"', '"assistant "', "null", "7", "true"]),
    ],
    ids=["tokens", "cached tokens", "users", "costs", "ids", "names", "contents", "roles"],
)
async def test_values_beyond_their_bounds_are_refused_with_the_field(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller, fields: list[str], texts: list[str]
) -> None:
    taken = []
    for field in fields:
        for value in texts:
            answer = await post_text(client, service, record(ayu), **{field: value})
            if answer.status_code == 200:
                taken.append((field, value))
                continue
            errors = problems.check(answer, 422)["errors"]
            not_json = value in ("NaN", "Infinity", "-Infinity") or len(value) > 5000 or value.startswith("1e9")
            assert list(errors) == [f"records.0.{field}"] or not_json, errors
    assert taken == []
    assert await costs(database) == []


UNREADABLE = {
    "nothing": b"",
    "cut short": b'{"records": ',
    "null": b"null",
    "a list": b"[]",
    "a text": b'"x"',
    "records as an object": b'{"records": {}}',
    "records as a text": b'{"records": "x"}',
    "records as null": b'{"records": null}',
    "records as numbers": b'{"records": [1]}',
    "a hundred thousand lists": b"[" * 100_000,
    "lists in records": b'{"records": ' + b"[" * 3000 + b"]" * 3000 + b"}",
    "objects in objects": b'{"a":' * 2000 + b"1" + b"}" * 2000,
    "UTF-16": '{"records": []}'.encode("utf-16"),
    "bad UTF-8": b"\x80",
    "bad UTF-8 in a text": b'{"records": [{"id": "\xc3\x28"}]}',
    "a huge number": b"1" * 10_000,
    "a huge number in records": b'{"records": [' + b"1" * 5000 + b"]}",
}


async def test_a_body_that_cannot_be_read_is_refused(
    client: httpx.AsyncClient, database: Database, service: Caller
) -> None:
    headers = service.headers | {"Content-Type": "application/json"}
    for name, body in UNREADABLE.items():
        answer = await client.post("/usage/records", headers=headers, content=body)
        assert answer.status_code == 422, f"{name}: {answer.text}"
        problems.check(answer, 422)
    assert await costs(database) == []


async def test_money_is_stored_as_no_float(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    await records.store(client, service, [record(ayu, cost="0.1", created_at=JUNE)])
    kind = "typeof" if database.engine.dialect.name == "sqlite" else "pg_typeof"
    statement = f"SELECT {kind}(m.cost), {kind}(u.total_cost) FROM messages m, user_monthly_token_usage u"
    async with database.reads() as session:
        kinds = set((await session.execute(text(statement))).one())
    assert kinds <= {"integer", "numeric"}

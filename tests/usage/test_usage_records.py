"""`POST /usage/records`: who may, what is counted, and that it is counted once."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import event, text

from app import clock
from app.db.database import Database
from tests.support import accounts, invariants, problems, records
from tests.support.accounts import Caller
from tests.support.invariants import Totals
from tests.support.records import post, record

JSON = {"Content-Type": "application/json"}
JUNE = "2024-06-15T12:00:00Z"


async def count_of(database: Database) -> int:
    """How many messages are stored; the invariants are checked with it."""
    await invariants.check(database)
    async with database.reads() as session:
        return int((await session.execute(text("SELECT count(*) FROM messages"))).scalar_one())


async def add_conversation(database: Database, owner: Caller, conversation_id: str) -> None:
    async with database.sessions.begin() as session:
        await session.execute(
            text("INSERT INTO conversations (id, user_id, title, model_type) VALUES (:id, :owner, 't', 'Standard')"),
            {"id": conversation_id, "owner": owner.id},
        )


async def set_user(database: Database, user: Caller, assignment: str) -> None:
    async with database.sessions.begin() as session:
        await session.execute(text(f"UPDATE users SET {assignment} WHERE id = :id"), {"id": user.id})


@pytest.mark.parametrize("role", ["service", "admin"])
async def test_backends_and_admins_report_usage(
    client: httpx.AsyncClient, database: Database, ayu: Caller, role: str
) -> None:
    sender = await accounts.add(database, role, role=role)
    answer = await post(client, sender, [record(ayu, created_at=JUNE)])
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"recorded": 1, "duplicates": 0}
    assert await invariants.check(database) == {(ayu.id, "2024-06"): Totals(10, 5, 15, message_count=1)}


async def test_users_may_not_report_usage_and_nothing_is_stored(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    problems.check(await post(client, ayu, [record(ayu)]), 403)
    problems.check(await client.post("/usage/records", json={"records": [record(ayu)]}), 401)
    await set_user(database, service, "role = 'user'")
    problems.check(await post(client, service, [record(ayu)]), 403)
    await set_user(database, service, "role = NULL")
    problems.check(await post(client, service, [record(ayu)]), 403)
    await set_user(database, service, "role = 'service', is_active = false")
    problems.check(await post(client, service, [record(ayu)]), 401)
    assert await count_of(database) == 0


async def test_a_record_sent_again_counts_once(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    first, second = record(ayu, created_at=JUNE), record(ayu, input_tokens=3, created_at=JUNE)
    assert (await post(client, service, [first])).json() == {"recorded": 1, "duplicates": 0}
    assert (await post(client, service, [first])).json() == {"recorded": 0, "duplicates": 1}
    assert (await post(client, service, [second, first])).json() == {"recorded": 1, "duplicates": 1}
    assert await invariants.check(database) == {(ayu.id, "2024-06"): Totals(13, 10, 23, message_count=2)}


async def test_a_record_that_is_twice_in_a_request_counts_once(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    same = record(ayu, created_at=JUNE)
    assert (await post(client, service, [same, same, same])).json() == {"recorded": 1, "duplicates": 2}
    assert (await post(client, service, [same, same])).json() == {"recorded": 0, "duplicates": 2}
    assert await invariants.check(database) == {(ayu.id, "2024-06"): Totals(10, 5, 15, message_count=1)}


async def test_a_cost_that_differs_within_a_request_is_a_conflict(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    bare = record(ayu, model="gpt-4o-mini")
    priced = bare | {"cost": 1.5}
    for batch in ([bare, priced], [bare, bare, priced]):
        problems.check(await post(client, service, batch), 409)
    assert await count_of(database) == 0


async def test_a_record_without_time_or_price_is_a_duplicate(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    bare = record(ayu, model="gpt-4o-mini")
    for duplicates in (0, 1, 1):
        assert (await post(client, service, [bare])).json() == {"recorded": 1 - duplicates, "duplicates": duplicates}
    assert await count_of(database) == 1


async def test_each_user_has_ids_of_their_own(
    client: httpx.AsyncClient, database: Database, ayu: Caller, bela: Caller, service: Caller
) -> None:
    batch = [
        record(owner, id=id_) for owner in (ayu, bela) for id_ in ("a", "A", " a", "a ", "ä", "a\u0308", "x" * 255)
    ]
    await records.store(client, service, batch)
    assert (await post(client, service, batch)).json() == {"recorded": 0, "duplicates": 14}
    assert await count_of(database) == 14


async def test_requests_at_once_with_the_same_records_count_each_once(
    client: httpx.AsyncClient, database: Database, ayu: Caller, bela: Caller, service: Caller
) -> None:
    batch = [
        record(owner, cost="0.0000000001", created_at=f"2024-{month:02d}-01T00:00:00Z")
        for owner in (ayu, bela)
        for month in range(1, 13)
    ]
    orders: list[Sequence[dict[str, Any]]] = [batch, batch[::-1], batch[::2] + batch[1::2], batch[12:] + batch[:12]]
    answers = await asyncio.gather(*(post(client, service, order) for order in orders))
    assert [answer.status_code for answer in answers] == [200] * 4, [answer.text for answer in answers]
    assert all(answer.json()["recorded"] + answer.json()["duplicates"] == 24 for answer in answers)
    assert sum(answer.json()["recorded"] for answer in answers) == 24
    assert await count_of(database) == 24


async def test_concurrent_requests_for_one_month_are_all_counted(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    batches = [[record(ayu, created_at=JUNE) for _ in range(5)] for _ in range(8)]
    answers = await asyncio.gather(*(post(client, service, batch) for batch in batches))
    assert [answer.json() for answer in answers] == [{"recorded": 5, "duplicates": 0}] * 8
    assert await invariants.check(database) == {(ayu.id, "2024-06"): Totals(400, 200, 600, message_count=40)}


OTHER_FIGURES: dict[str, Any] = {
    "input_tokens": 11,
    "output_tokens": 6,
    "cached_input_tokens": 1,
    "cost": "0.0000000002",
    "model": "another model",
    "role": "user",
    "created_at": "2024-06-15T12:00:00.000001Z",
}


@pytest.mark.parametrize("field", OTHER_FIGURES)
@pytest.mark.sampled(3)
async def test_an_id_with_other_figures_rolls_the_request_back(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller, field: str
) -> None:
    changes = {field: OTHER_FIGURES[field]}
    first = record(ayu, cost="0.0000000001", created_at=JUNE)
    new = [record(ayu, created_at=JUNE), record(ayu, created_at="2024-07-01T00:00:00Z")]
    within_one_request = await post(client, service, [new[0], first, first | changes])
    assert first["id"] in problems.check(within_one_request, 409)["detail"]
    assert await count_of(database) == 0
    await records.store(client, service, [first])
    problems.check(await post(client, service, [new[0], first | changes, new[1]]), 409)
    assert await count_of(database) == 1
    await records.store(client, service, new)
    assert await count_of(database) == 3


async def test_one_of_two_concurrent_conflicting_requests_counts(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    one = [record(ayu, created_at=JUNE) for _ in range(3)]
    other = [one[0] | {"input_tokens": 11}, *(record(ayu, created_at=JUNE) for _ in range(2))]
    answers = await asyncio.gather(post(client, service, one), post(client, service, other))
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    assert await count_of(database) == 3


async def test_with_one_bad_record_none_is_stored(
    client: httpx.AsyncClient, database: Database, ayu: Caller, bela: Caller, service: Caller
) -> None:
    await add_conversation(database, bela, "of-bela")
    unknown_user = Caller(max(ayu.id, bela.id, service.id) + 1, "nobody")
    for bad, field in (
        (record(unknown_user), "user_id"),
        (record(ayu, conversation_id="of-bela"), "conversation_id"),
        (record(ayu, conversation_id="of-nobody"), "conversation_id"),
        (record(ayu, cached_input_tokens=11), "cached_input_tokens"),
        (record(ayu, input_tokens=None), "input_tokens"),
        (record(ayu, role="robot"), "role"),
        ({}, "id"),
        (None, ""),
    ):
        answer = await post(client, service, [record(ayu), bad, record(bela)])
        errors = problems.check(answer, 422)["errors"]
        assert all(name.startswith("records.1") for name in errors), errors
        assert field in str(errors)
    assert await count_of(database) == 0


async def test_an_unknown_field_is_refused_as_a_misspelt_cost(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    answer = await post(client, service, [record(ayu), record(ayu, costs="0.5")])
    assert list(problems.check(answer, 422)["errors"]) == ["records.1.costs"]
    body = {"records": [record(ayu)], "dry_run": True}
    answer = await client.post("/usage/records", headers=service.headers, json=body)
    assert list(problems.check(answer, 422)["errors"]) == ["dry_run"]
    assert await count_of(database) == 0


@pytest.mark.parametrize("name", ["input_tokens", "cost", "user_id", "id", "records"])
@pytest.mark.sampled(2)
async def test_a_field_that_is_there_twice_is_refused(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller, name: str
) -> None:
    once = json.dumps({"records": [record(ayu, cost="0.5")]})
    twice = once.replace(f'"{name}": ', f'"{name}": 1, "{name}": ')
    for times, errors in ((0, None), (1, {name: ["This field is there more than once."]})):
        answer = await client.post("/usage/records", content=(once, twice)[times], headers=service.headers | JSON)
        if errors is not None:
            assert problems.check(answer, 422)["errors"] == errors
    assert await count_of(database) == 1


@pytest.mark.parametrize(("name", "shown"), [("\\ud800", "?"), ("x" * 300, "x" * 100)], ids=["unreadable", "long"])
async def test_an_odd_field_that_is_there_twice_is_named(
    client: httpx.AsyncClient, service: Caller, name: str, shown: str
) -> None:
    body = f'{{"records": [], "{name}": 1, "{name}": 2}}'
    answer = await client.post("/usage/records", content=body, headers=service.headers | JSON)
    assert list(problems.check(answer, 422)["errors"]) == [shown]


async def test_null_is_the_same_as_not_given(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    optional = ("cached_input_tokens", "cost", "conversation_id", "content", "created_at")
    bare = record(ayu)
    assert (await post(client, service, [bare | dict.fromkeys(optional)])).json() == {"recorded": 1, "duplicates": 0}
    assert (await post(client, service, [bare])).json() == {"recorded": 0, "duplicates": 1}
    assert await count_of(database) == 1


async def test_the_conversation_of_a_record_may_be_told(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    await add_conversation(database, ayu, "of-ayu")
    content = "Ach, \U0001f984 \u2028 'quoted' \\ \"so\""
    await records.store(client, service, [record(ayu, conversation_id="of-ayu", content=content)])
    async with database.reads() as session:
        stored = (await session.execute(text("SELECT conversation_id, content, user_id FROM messages"))).one()
    assert tuple(stored) == ("of-ayu", content, ayu.id)
    assert await count_of(database) == 1


async def test_a_request_has_one_to_a_thousand_records(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    many = [record(ayu, created_at=JUNE) for _ in range(1001)]
    for wrong in ([], many):
        assert list(problems.check(await post(client, service, wrong), 422)["errors"]) == ["records"]
    assert await count_of(database) == 0
    await records.store(client, service, many[:1000])
    await records.store(client, service, many[1000:])
    assert await invariants.check(database) == {(ayu.id, "2024-06"): Totals(10010, 5005, 15015, message_count=1001)}


@pytest.mark.parametrize("role", ["user", "system", "tool"])
async def test_what_no_model_said_is_stored_and_not_counted(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller, role: str
) -> None:
    said = record(ayu, role=role, model="gpt-4o-mini", cost="0.5")
    assert (await post(client, service, [said])).json() == {"recorded": 1, "duplicates": 0}
    assert (await post(client, service, [said])).json() == {"recorded": 0, "duplicates": 1}
    assert await count_of(database) == 1
    assert await invariants.check(database) == {}
    me = await client.get("/auth/me", headers=ayu.headers)
    assert me.json()["token_stats"] == {"monthly_stats": [], "total_months": 0, "has_more": False}


async def test_usage_without_a_time_counts_now(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    before = clock.now()
    await records.store(client, service, [record(ayu)])
    possible = {f"{instant:%Y-%m}" for instant in (before, clock.now())}
    [(owner, month)] = await invariants.check(database)
    assert owner == ayu.id
    assert month in possible


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_repeated_records_are_found_by_their_key(
    app: FastAPI, client: httpx.AsyncClient, service: Caller, ayu: Caller
) -> None:
    plans: dict[str, list[str]] = {}

    def explain(connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().startswith(("SELECT", "WITH")) and statement not in plans:
            plans[statement] = []
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans[statement] = [row[3] for row in rows]

    sent = [records.record(ayu), records.record(service)]
    await records.store(client, service, sent)
    event.listen(app.state.foundation.database.engine.sync_engine, "before_cursor_execute", explain)
    assert (await records.post(client, service, sent)).json() == {"recorded": 0, "duplicates": 2}
    await records.store(client, service, [records.record(ayu), records.record(service)])
    await records.store(client, service, [records.record(ayu)])
    steps = [step for plan in plans.values() for step in plan]
    for table in ("messages", "archived_keys"):
        assert [step for step in steps if step.startswith(f"SEARCH {table} USING")]
        assert not [step for step in steps if step.startswith(f"SCAN {table}")]
    assert not [step for step in steps if "archived_keys" in step and "idempotency_key=?" not in step]

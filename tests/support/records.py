"""Usage records for tests, sent as a backend sends them."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import httpx

from tests.support.accounts import Caller

_numbers = itertools.count(1)


def record(owner: Caller, **changes: Any) -> dict[str, Any]:
    """A record with an id of its own, which sorts after earlier ones; `changes` sets or adds fields."""
    usage = {"model": "a model without a price", "input_tokens": 10, "output_tokens": 5}
    return {"id": f"record-{next(_numbers):06d}", "user_id": owner.id, **usage, **changes}


async def post(client: httpx.AsyncClient, sender: Caller, records: Sequence[Any]) -> httpx.Response:
    """Sends records."""
    return await client.post("/usage/records", headers=sender.headers, json={"records": list(records)})


async def post_text(client: httpx.AsyncClient, sender: Caller, record: dict[str, Any], **texts: str) -> httpx.Response:
    """Sends one record with some fields in just this JSON, such as a number with all of its digits."""
    fields = {name: json.dumps(value) for name, value in record.items()} | texts
    item = ", ".join(f"{json.dumps(name)}: {text}" for name, text in fields.items())
    return await client.post(
        "/usage/records",
        headers=sender.headers | {"Content-Type": "application/json"},
        content=f'{{"records": [{{{item}}}]}}'.encode(),
    )


async def store(client: httpx.AsyncClient, sender: Caller, records: Sequence[Any]) -> None:
    """Sends records of which each must be new."""
    answer = await post(client, sender, records)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"recorded": len(records), "duplicates": 0}

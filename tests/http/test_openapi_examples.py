"""The examples in `/openapi.json` succeed as they are, so that "Try it out" in `/docs` does."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.db.database import Database
from services.accounts import users as service
from tests.support import accounts
from tests.support.accounts import PASSWORD

pytestmark = pytest.mark.any_database

IN_ORDER = (
    *(
        "register",
        "login",
        "login_with_form",
        "refresh",
        "change_preferences",
        "chat",
        "edit_message",
        "give_feedback",
        "record_usage",
    ),
    *("add_model_category", "change_model_category", "estimate_cost", "change_account"),
    *("change_password", "reset_password"),
)
"""Each operation with a body: after these, in this order, its examples succeed on a new server."""

GIVEN = {"refresh": "refresh_token", "reset_password": "token"}
"""What an example cannot know: a secret of an earlier answer."""


@pytest.fixture
async def description(client: httpx.AsyncClient) -> dict[str, Any]:
    """The OpenAPI description."""
    found: dict[str, Any] = (await client.get("/openapi.json")).json()
    return found


def operations_of(description: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def examples_of(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The media type of each body, and each example of it."""
    for kind, content in operation["requestBody"]["content"].items():
        assert content["examples"], operation["operationId"]
        for example in content["examples"].values():
            yield kind, example["value"]


async def send(
    client: httpx.AsyncClient, method: str, path: str, kind: str, example: dict[str, Any], token: str
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    body: Any = {"json": example} if kind == "application/json" else {"data": example}
    if kind == "multipart/form-data":
        body = {"files": {name: (None, value) for name, value in example.items()}}
    return await client.request(method, path, headers=headers, **body)


async def test_each_example_succeeds_in_order(
    client: httpx.AsyncClient, database: Database, description: dict[str, Any]
) -> None:
    found = {
        operation["operationId"]: (method, path, operation)
        for method, path, operation in operations_of(description)
        if "requestBody" in operation
    }
    assert found.keys() == set(IN_ORDER)
    given = {"access_token": ""}
    for name in IN_ORDER:
        if name == "change_account":
            bela = await accounts.register(client, "bela")
        if name == "reset_password":
            admin = {"Authorization": f"Bearer {given['access_token']}"}
            given |= (await client.post(f"/admin/users/{bela.id}/reset-password", headers=admin)).json()
        method, path, operation = found[name]
        for kind, example in examples_of(operation):
            if name in GIVEN:
                assert GIVEN[name] in example
                example = example | {GIVEN[name]: given[GIVEN[name]]}
            url = path.replace("{user_id}", str(bela.id)) if "{user_id}" in path else path
            url = url.replace("{category_id}", str(given.get("id"))).replace("{message_id}", "1")
            answer = await send(client, method, url, kind, example, given["access_token"])
            assert 200 <= answer.status_code < 300, f"{name} {example}: {answer.text}"
            if answer.content and answer.headers["content-type"] == "application/json":
                given |= answer.json()
            assert "event: error" not in answer.text
        if name == "register":
            async with database.sessions.begin() as session:
                await service.promote(session, given["username"], "admin")


async def test_fields_of_forms_have_examples_of_their_own(
    client: httpx.AsyncClient, description: dict[str, Any]
) -> None:
    # Swagger UI fills each field of a form by its own schema, also the optional ones.
    schema = description["components"]["schemas"]["LoginForm"]
    fields = {name: field.get("examples", ["string"])[0] for name, field in schema["properties"].items()}
    caller = await accounts.register(client, "ayu")
    answer = await client.post("/auth/token", data=fields)
    assert answer.status_code == 200, answer.text
    assert (fields["username"], fields["password"]) == (caller.username, PASSWORD)


async def test_parameters_that_must_be_given_have_examples(
    client: httpx.AsyncClient, description: dict[str, Any]
) -> None:
    from_answers = {"conversation_id", "user_id", "message_id", "feedback_id", "category_id", "branch_id"}
    for _, path, operation in operations_of(description):
        for parameter in operation.get("parameters", []):
            if parameter["required"] and parameter["name"] not in from_answers:
                assert parameter["schema"]["examples"], f"{path} {parameter['name']}"
            else:
                assert "examples" not in parameter["schema"], "it would be sent unasked"

"""`/openapi.json`: what it says of each operation is complete, and is what the server does."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.db.database import Database
from tests.support import accounts, problems
from tests.support.accounts import PASSWORD

CONTRACT = {
    ("post", "/auth/register"): {403, 409, 422, 429},
    ("post", "/auth/login"): {401, 422, 429},
    ("post", "/auth/token"): {401, 422, 429},
    ("post", "/auth/refresh"): {401, 422},
    ("post", "/auth/logout"): {401},
    ("post", "/auth/password"): {401, 422, 429},
    ("post", "/auth/reset-password"): {401, 422, 429},
    ("get", "/auth/me"): {401, 422},
    ("post", "/chat"): {401, 404, 422, 502},
    ("post", "/chat/{id}/stop"): {401, 404, 422},
    ("put", "/messages/{id}"): {400, 401, 404, 422, 502},
    ("get", "/conversations/{id}/branches"): {401, 404},
    ("post", "/conversations/{id}/branches/{id}/activate"): {401, 404},
    ("get", "/conversations"): {401, 422},
    ("get", "/conversations/{id}"): {401, 404},
    ("delete", "/conversations/{id}"): {401, 404},
    ("get", "/auth/token-stats/monthly/{year}/{month}/daily"): {401, 422},
    ("get", "/auth/token-stats/daily/{date}/conversations"): {401, 422},
    ("post", "/usage/records"): {401, 403, 409, 422},
    ("get", "/admin/users"): {401, 403, 422},
    ("post", "/admin/users/{id}/deactivate"): {401, 403, 404, 409, 422},
    ("post", "/admin/users/{id}/activate"): {401, 403, 404, 422},
    ("post", "/admin/users/{id}/reset-password"): {401, 403, 404, 409, 422},
    ("delete", "/admin/users/{id}"): {401, 403, 404, 409, 422},
    ("get", "/admin/usage"): {401, 403, 422},
    ("get", "/admin/health"): {401, 403},
    ("get", "/auth/token-stats/daily"): {401, 422},
    ("get", "/auth/token-stats/models"): {401, 422},
    ("get", "/admin/token-stats/daily"): {401, 403, 422},
    ("get", "/admin/token-stats/models"): {401, 403, 422},
    ("get", "/admin/users/{id}/token-stats/daily"): {401, 403, 404, 422},
    ("get", "/admin/users/{id}/token-stats/models"): {401, 403, 404, 422},
    ("get", "/admin/users/{id}/token-stats/daily/{date}/conversations"): {401, 403, 404, 422},
    ("get", "/health"): set(),
    ("get", "/ready"): {503},
}
"""Each operation, and the errors that it must tell of."""

OPERATION_IDS = {
    "post /auth/register": "register",
    "post /auth/login": "login",
    "post /auth/token": "login_with_form",
    "post /auth/refresh": "refresh",
    "post /auth/logout": "logout",
    "post /auth/password": "change_password",
    "post /auth/reset-password": "reset_password",
    "get /auth/me": "get_me",
    "post /chat": "chat",
    "post /chat/{message_id}/stop": "stop_chat",
    "put /messages/{message_id}": "edit_message",
    "get /conversations/{conversation_id}/branches": "list_branches",
    "post /conversations/{conversation_id}/branches/{branch_id}/activate": "activate_branch",
    "get /conversations": "list_conversations",
    "get /conversations/{conversation_id}": "get_conversation",
    "delete /conversations/{conversation_id}": "delete_conversation",
    "post /feedback": "give_feedback",
    "get /feedback/message/{message_id}": "list_feedback",
    "delete /feedback/{feedback_id}": "delete_feedback",
    "get /uploads/images/{file}": "get_image",
    "get /models": "list_models",
    "get /models/search": "search_models",
    "get /models/{model_id}": "get_model",
    "get /user-model-categories": "list_model_categories",
    "post /user-model-categories": "add_model_category",
    "put /user-model-categories/{category_id}": "change_model_category",
    "delete /user-model-categories/{category_id}": "delete_model_category",
    "get /user-model-categories/{category_name}/pricing-info": "get_category_pricing",
    "post /user-model-categories/estimate-cost": "estimate_cost",
    "get /preferences": "get_preferences",
    "put /preferences": "change_preferences",
    "post /usage/records": "record_usage",
    "get /auth/token-stats/monthly/{year}/{month}/daily": "get_usage_by_day",
    "get /auth/token-stats/daily/{date}/conversations": "get_usage_by_conversation",
    "get /admin/users": "list_users",
    "post /admin/users/{user_id}/deactivate": "deactivate_user",
    "post /admin/users/{user_id}/activate": "activate_user",
    "post /admin/users/{user_id}/reset-password": "issue_password_reset",
    "delete /admin/users/{user_id}": "delete_user",
    "get /admin/usage": "get_usage_by_user",
    "get /admin/health": "get_counting_health",
    "get /auth/token-stats/daily": "get_daily_usage",
    "get /auth/token-stats/models": "get_model_usage",
    "get /admin/token-stats/daily": "get_daily_usage_of_all_users",
    "get /admin/token-stats/models": "get_model_usage_of_all_users",
    "get /admin/users/{user_id}/token-stats/daily": "get_daily_usage_of_user",
    "get /admin/users/{user_id}/token-stats/models": "get_model_usage_of_user",
    "get /admin/users/{user_id}/token-stats/daily/{date}/conversations": "get_usage_by_conversation_of_user",
    "get /auth/users": "list_accounts",
    "put /auth/users/{user_id}": "change_account",
    "delete /auth/users/{user_id}": "delete_account",
    "get /health": "get_health",
    "get /ready": "get_readiness",
    "get /metrics": "get_metrics",
}
"""The names that clients are generated with; a changed one breaks them."""

PASSWORD_FLOW: list[dict[str, list[str]]] = [{"OAuth2Password": []}]
OPEN = {"register", "login", "login_with_form", "refresh", "reset_password", "get_health", "get_readiness", "get_image"}
SECURITY = {
    "record_usage": [{"ApiKey": []}, *PASSWORD_FLOW],
    "get_metrics": [{"MetricsToken": []}, {}],
}
"""Of the operations that do not just want an access token."""


@pytest.fixture(params=["sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    """What is documented does not depend on the database."""
    return str(request.param)


@pytest.fixture
async def description(client: httpx.AsyncClient) -> dict[str, Any]:
    """The OpenAPI description."""
    answer = await client.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def operations_of(description: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def anonymous(path: str) -> str:
    """The path with its parameters' names left out, which are nobody's business."""
    return "/".join("{}" if part.startswith("{") else part for part in path.split("/"))


def errors_of(operation: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {int(status): response for status, response in operation["responses"].items() if int(status) >= 400}


def test_every_operation_of_the_contract_documents_its_problems(description: dict[str, Any]) -> None:
    found = {(method, anonymous(path)): operation for method, path, operation in operations_of(description)}
    for (method, path), statuses in CONTRACT.items():
        operation = found[method, anonymous(path)]
        assert statuses <= errors_of(operation).keys(), f"{method} {path}"


def test_every_error_is_documented_as_a_problem_alone(description: dict[str, Any]) -> None:
    for method, path, operation in operations_of(description):
        for status, response in errors_of(operation).items():
            where = f"{method} {path} {status}"
            assert list(response["content"]) == ["application/problem+json"], where
            schema = response["content"]["application/problem+json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Problem"}, where
    problem = description["components"]["schemas"]["Problem"]
    always = {"type", "title", "status", "detail", "error", "message"}
    assert set(problem["required"]) == always
    assert set(problem["properties"]) == always | {"errors"}
    assert problem["properties"]["errors"]["type"] == "object", "left out rather than null"
    assert "default" not in problem["properties"]["errors"]
    assert "ValidationError" not in json.dumps(description)


def test_operation_ids_are_functions_and_stable(description: dict[str, Any]) -> None:
    found = {f"{method} {path}": operation["operationId"] for method, path, operation in operations_of(description)}
    assert found == OPERATION_IDS
    assert len(set(found.values())) == len(found)
    for _, _, operation in operations_of(description):
        assert operation["summary"] == operation["operationId"].replace("_", " ").capitalize()


def test_every_operation_names_the_tokens_it_accepts(description: dict[str, Any]) -> None:
    for _, _, operation in operations_of(description):
        name = operation["operationId"]
        expected = None if name in OPEN else SECURITY.get(name, PASSWORD_FLOW)
        assert operation.get("security") == expected, name
    schemes = description["components"]["securitySchemes"]
    assert schemes["OAuth2Password"]["flows"]["password"]["tokenUrl"] == "auth/token"
    for name in ("ApiKey", "MetricsToken"):
        assert (schemes[name]["type"], schemes[name]["scheme"]) == ("http", "bearer")
        assert schemes[name]["description"]
    assert "fbk_" in schemes["ApiKey"]["bearerFormat"]


def test_headers_of_answers_are_documented(description: dict[str, Any]) -> None:
    wanted = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}
    for method, path, operation in operations_of(description):
        for status, response in operation["responses"].items():
            names = {"X-Request-ID"} | ({wanted[int(status)]} if int(status) in wanted else set())
            assert names <= response["headers"].keys(), f"{method} {path} {status}"
            for name, header in response["headers"].items():
                assert header == {"$ref": f"#/components/headers/{name}"}
                documented = description["components"]["headers"][name]
                assert documented["description"]
                assert documented["schema"]
    chat = description["paths"]["/chat"]["post"]
    assert "Retry-After" in chat["responses"]["409"]["headers"], "of an answer that is still being written"
    assert {parameter["name"] for parameter in chat["parameters"]} == {"Idempotency-Key"}


@pytest.mark.parametrize(
    ("schema", "field", "values"),
    [
        ("AccountView", "role", ["user", "service", "admin"]),
        ("Me", "role", ["user", "service", "admin"]),
        ("UserView", "role", ["user", "service", "admin"]),
        ("MessageView", "role", ["user", "assistant", "system", "tool"]),
        ("MessageView", "status", ["pending", "complete", "interrupted", "failed"]),
        ("UsageRecordBody", "role", ["assistant", "user", "system", "tool"]),
        ("AccessToken", "token_type", ["bearer"]),
        ("Status", "status", ["ok"]),
    ],
)
@pytest.mark.sampled(3)
def test_values_from_a_fixed_list_are_enums(
    description: dict[str, Any], schema: str, field: str, values: list[str]
) -> None:
    found = description["components"]["schemas"][schema]["properties"][field]
    assert found.get("enum", [found.get("const")]) == values


def test_the_events_of_the_stream_are_typed(description: dict[str, Any]) -> None:
    assert description["openapi"] == "3.2.0", "the first version that describes streams"
    schemas = description["components"]["schemas"]
    content = description["paths"]["/chat"]["post"]["responses"]["200"]["content"]
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/ChatAnswer"}
    sent = {item["properties"]["event"]["const"]: item for item in content["text/event-stream"]["itemSchema"]["oneOf"]}
    names = {"start": "ChatStart", "delta": "ChatDelta", "done": "ChatDone", "error": "ChatFailure"}
    assert sent.keys() == names.keys()
    parsed = [schemas[option["$ref"].rpartition("/")[2]] for option in schemas["ChatEvent"]["oneOf"]]
    for event in parsed:
        kind = event["properties"]["event"]["const"]
        reference = {"$ref": f"#/components/schemas/{names[kind]}"}
        assert names[kind] in schemas
        assert event["properties"]["data"] == reference
        assert sent[kind]["required"] == event["required"] == ["event", "data"]
        data = sent[kind]["properties"]["data"]
        assert data == {"type": "string", "contentMediaType": "application/json", "contentSchema": reference}
    assert len(parsed) == len(names)
    assert schemas["ChatEvent"]["discriminator"]["propertyName"] == "event"


def test_every_operation_that_can_be_refused_says_so(description: dict[str, Any]) -> None:
    for method, path, operation in operations_of(description):
        documented = errors_of(operation)
        if "security" in operation:
            assert 401 in documented, f"{method} {path}"
        if "parameters" in operation or "requestBody" in operation:
            assert 422 in documented, f"{method} {path}"
        assert operation["summary"], f"{method} {path}"


async def test_what_is_answered_is_what_is_documented(
    client: httpx.AsyncClient, database: Database, description: dict[str, Any]
) -> None:
    ayu = await accounts.add(database, "ayu")
    bodies: list[dict[str, Any] | None] = [None, {}, {"records": [{}]}, {"message": ""}]
    for method, path, operation in operations_of(description):
        concrete = path.replace("{year}", "2024").replace("{month}", "13")
        concrete = "/".join("no-such-thing" if part.startswith("{") else part for part in concrete.split("/"))
        for headers in ({}, ayu.headers):
            for body in bodies:
                answer = await client.request(method, concrete, headers=headers, json=body)
                assert str(answer.status_code) in operation["responses"], f"{method} {path}: {answer.text}"
                if answer.status_code >= 400:
                    problems.check(answer, answer.status_code)
        if {} not in operation.get("security", [{}]):
            problems.check(await client.request(method, concrete), 401)


async def test_the_authorize_button_gets_a_token(client: httpx.AsyncClient, description: dict[str, Any]) -> None:
    flow = description["components"]["securitySchemes"]["OAuth2Password"]["flows"]["password"]
    assert "offline_access" in flow["scopes"]
    caller = await accounts.register(client, "ayu")
    form = {"grant_type": "password", "username": "ayu", "password": PASSWORD, "scope": "offline_access"}
    headers = {"Authorization": "Basic Og==", "X-Requested-With": "XMLHttpRequest"}  # what Swagger UI sends
    answer = await client.post(f"/{flow['tokenUrl']}", data=form, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["refresh_token"]
    token = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    assert (await client.get("/auth/me", headers=token)).json()["id"] == caller.id

"""Request bodies: credentials before content, a limit for each route, and errors of a bounded size."""

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.db.database import Database
from routers.chat import LARGEST_BODY_BYTES
from routers.http.problems import MAX_ERRORS
from routers.http.requests import MAX_VALUES, SMALL_BODY_BYTES, UNCHECKED_BYTES
from tests.support import accounts, problems, records
from tests.support.accounts import PASSWORD, SECRET_KEY, Caller
from tests.support.records import record

LIMIT = 600_000
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
WIDE = "\U0001f984"
"""A character that takes 12 bytes in JSON of ASCII, and in a form."""
INVENTED_KEY = {"Authorization": "Bearer fbk_1_invented"}
PIECE = 1000


@pytest.fixture(params=["sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    """Bodies do not depend on the database."""
    return str(request.param)


@pytest.fixture
def app_settings(database_url: str) -> dict[str, Any]:
    """The settings of the application under test."""
    return {"database_url": database_url, "secret_key": SECRET_KEY, "max_body_bytes": LIMIT}


class Pieces:
    """A body without Content-Length, and how much of it was read."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.read < self.size:
            self.read += PIECE
            yield b" " * PIECE


def padded(body: Any, size: int) -> bytes:
    text = json.dumps(body).encode()
    return text + b" " * (size - len(text))


LIMITS = {
    "/auth/register": SMALL_BODY_BYTES,
    "/auth/login": SMALL_BODY_BYTES,
    "/auth/refresh": SMALL_BODY_BYTES,
    "/auth/password": SMALL_BODY_BYTES,
    "/chat": LARGEST_BODY_BYTES,
    "/usage/records": LIMIT,
}


async def test_each_route_has_its_own_limit_however_the_body_comes(client: httpx.AsyncClient, service: Caller) -> None:
    headers = service.headers | JSON
    for path, limit in LIMITS.items():
        problems.check(await client.post(path, headers=headers, content=b" " * limit), 422)
        problems.check(await client.post(path, headers=headers, content=b" " * (limit + 1)), 413)
        answer = await client.post(path, headers=headers, content=Pieces(limit + PIECE))
        problems.check(answer, 413)
        assert answer.headers["connection"] == "close", "the server does not read the rest"
        problems.check(await client.post(path, headers=headers | {"Content-Length": "9" * 30}, content=b"{}"), 413)
        for odd in ("-1", "x", "1e9", "+1"):
            problems.check(await client.post(path, headers=headers | {"Content-Length": odd}, content=b"{}"), 422)
    problems.check(await client.post("/auth/token", headers=FORM, content=Pieces(SMALL_BODY_BYTES + PIECE)), 413)


async def test_the_largest_legal_body_of_each_route_is_accepted(
    client: httpx.AsyncClient, ayu: Caller, service: Caller
) -> None:
    login = {"username": WIDE * 255, "password": WIDE * 4096, "scope": WIDE * 1024}
    change = {"current_password": WIDE * 4096, "new_password": WIDE * 1024, "scope": WIDE * 1024}
    form = login | {"grant_type": "password", "client_id": WIDE * 255, "client_secret": WIDE * 255}
    chat = {"message": WIDE * 100_000, "conversation_id": WIDE * 255, "model": WIDE * 255, "stream": False}
    assert (await client.post("/auth/login", headers=JSON, content=json.dumps(login))).status_code == 401
    assert (await client.post("/auth/token", data=form)).status_code == 401
    answer = await client.post("/auth/password", headers=ayu.headers | JSON, content=json.dumps(change))
    assert answer.status_code == 401
    answer = await client.post("/chat", headers=ayu.headers | JSON, content=json.dumps(chat))
    assert answer.status_code == 404, "no such conversation"
    batch = padded({"records": [record(ayu)]}, LIMIT)
    assert (await client.post("/usage/records", headers=service.headers | JSON, content=batch)).status_code == 200


async def test_credentials_and_role_are_checked_before_the_body(
    client: httpx.AsyncClient, ayu: Caller, database: Database
) -> None:
    gone = Caller(99, "gone")
    for path, headers, status in (
        ("/usage/records", {}, 401),
        ("/usage/records", {"Authorization": "Bearer x"}, 401),
        ("/usage/records", INVENTED_KEY, 401),
        ("/usage/records", gone.headers, 401),
        ("/usage/records", ayu.headers, 403),
        ("/chat", {}, 401),
        ("/chat", INVENTED_KEY, 401),
        ("/chat", gone.headers, 401),
        ("/auth/password", {}, 401),
        ("/auth/password", gone.headers, 401),
    ):
        body = Pieces(LIMIT)
        problems.check(await client.post(path, headers=headers | JSON, content=body), status)
        assert body.read <= UNCHECKED_BYTES + PIECE, f"{path} {headers}"
        announced = {"Content-Length": str(SMALL_BODY_BYTES)}
        body = Pieces(SMALL_BODY_BYTES)
        problems.check(await client.post(path, headers=headers | JSON | announced, content=body), status)
        assert body.read == 0, f"{path} {headers}"


async def test_at_most_a_hundred_errors_are_listed(client: httpx.AsyncClient, ayu: Caller, service: Caller) -> None:
    long = "n" * 5000
    bodies: list[dict[str, Any]] = [
        {"records": [{} for _ in range(1000)]},
        {"records": [{f"{long}{i}": 0 for i in range(30)}]},
        {f"field {i}": 0 for i in range(10_000)},
        {"records": [record(ayu, input_tokens="x", cost="y" * 200) for _ in range(1000)]},
        {"records": [record(ayu, role=long) for _ in range(30)]},
        {"records": [record(ayu, created_at=long) for _ in range(30)]},
        {"records": [record(Caller(99, "gone")) for _ in range(1000)]},
    ]
    for body in bodies:
        answer = await client.post("/usage/records", headers=service.headers, json=body)
        told = problems.check(answer, 422)
        assert sum(map(len, told["errors"].values())) <= MAX_ERRORS
        assert len(answer.content) < 65_536
    many = await client.post("/usage/records", headers=service.headers, json={"records": [{} for _ in range(1000)]})
    assert many.json()["detail"] == "The request is not valid. Listed are the first 100 of 5000 errors."
    one = await client.post("/usage/records", headers=service.headers, json={"records": []})
    assert one.json()["detail"] == "The request is not valid."


async def test_a_large_body_may_not_have_many_values(client: httpx.AsyncClient, service: Caller) -> None:
    numbers: bytes = b",".join([b"0"] * (MAX_VALUES + 100))
    hidden = rb'{"a": "\\\\", "b": "\\\"", "c": ["' + rb"\"," * 10 + b'", ' + numbers + b"]}"
    for body in (
        b"[" + numbers + b" " * UNCHECKED_BYTES + b"]",
        b"[" + b"[" * 100_000,
        b"[" + b"{}," * 30_000 + b"0]",
        b"{" + b",".join(b'"%d":0' % i for i in range(20_000)) + b"}",
        b'["' + b'","' * 30_000 + b'"]',
        hidden + b" " * UNCHECKED_BYTES,
        ("\ufeff" + "[" + "0," * 60_000 + "0]").encode("utf-16-le"),
        b"[" + b"9" * 200_000 + b"]",
        b"[0." + b"9" * 200_000 + b"]",
    ):
        answer = await client.post("/usage/records", headers=service.headers | JSON, content=body)
        problems.check(answer, 422)
    answer = await client.post("/usage/records", headers=service.headers | JSON, content=b"[" + b"{}," * 30_000)
    assert problems.check(answer, 422)["errors"] == {"body": [f"JSON decode error: more than {MAX_VALUES} values"]}


@pytest.mark.parametrize("number", ["1e999999999", "-1e999999999", "0e999999999", "1e-999999999", "1e1001"])
async def test_a_number_with_a_huge_exponent_is_refused_at_once(
    client: httpx.AsyncClient, ayu: Caller, number: str
) -> None:
    body = f'{{"message": "Hi", "stream": false, "category_id": {number}}}'
    answer = await client.post("/chat", headers={**ayu.headers, **JSON}, content=body)
    problems.check(answer, 422)
    assert "category_id" in answer.text


async def test_text_may_hold_as_many_commas_and_brackets_as_it_likes(
    client: httpx.AsyncClient, ayu: Caller, service: Caller
) -> None:
    odd = '[{"a": 1, "b": [1, 2]}]\\' * 2000
    every = {"cached_input_tokens": 1, "cost": "0.5", "conversation_id": None, "role": "assistant", "content": odd}
    every["created_at"] = "2024-12-31T23:59:59Z"
    await records.store(client, service, [record(ayu, **every)])
    small = every | {"content": "a, b"}
    await records.store(client, service, [record(ayu, **small) for _ in range(1000)])


async def test_compressed_bodies_are_refused(client: httpx.AsyncClient, ayu: Caller) -> None:
    bomb = gzip.compress(b" " * 10_000_000)
    for encoding in ("gzip", "br", "deflate", "x-gzip", "identity, gzip", "GZIP", "zstd", "aes128gcm"):
        headers = ayu.headers | JSON | {"Content-Encoding": encoding}
        answer = await client.post("/chat", headers=headers, content=bomb)
        problems.check(answer, 415)
        assert answer.headers["accept-encoding"] == "identity"
        problems.check(
            await client.post("/auth/login", headers=JSON | {"Content-Encoding": encoding}, content=bomb), 415
        )
    for harmless in ("identity", ""):
        headers = ayu.headers | JSON | {"Content-Encoding": harmless}
        answer = await client.post("/chat", headers=headers, content=b'{"message": "Hi", "stream": false}')
        assert answer.status_code == 200


async def test_a_form_has_few_fields_of_a_bounded_size(client: httpx.AsyncClient) -> None:
    await accounts.register(client, "ayu")
    good = f"username=ayu&password={PASSWORD.replace(' ', '+')}"
    assert (await client.post("/auth/token", headers=FORM, content=good + "&a=b" * 10)).status_code == 200
    for body in ("a&" * 30_000, "=&" * 30, good + "&a=b" * 20, "username=" + "x" * 70_000, "x" * 70_000):
        problems.check(await client.post("/auth/token", headers=FORM, content=body), 422)
    part = '--x\r\nContent-Disposition: form-data; name="a{}"\r\n\r\nb\r\n'
    file = '--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\nc\r\n'
    multipart = {"Content-Type": "multipart/form-data; boundary=x"}
    for text in ("".join(part.format(i) for i in range(1000)) + "--x--\r\n", file + "--x--\r\n", "--" * 30_000):
        problems.check(await client.post("/auth/token", headers=multipart, content=text), 422)


@pytest.mark.any_database
@pytest.mark.parametrize("end", ["", "\r\n", "\r\n--x", "\r\n--x-", "\r\n--x\r\n"])
async def test_a_form_that_is_cut_short_is_refused(client: httpx.AsyncClient, ayu: Caller, end: str) -> None:
    """Its last part would be lost: an image, or the conversation to go on with."""
    part = '--x\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}'
    texts = [part.format(*pair) for pair in (("stream", "false"), ("message", "Hi"))]
    headers = ayu.headers | {"Content-Type": "multipart/form-data; boundary=x"}
    whole = "\r\n".join(texts)
    problem = problems.check(await client.post("/chat", headers=headers, content=whole + end), 422)
    assert "cut short" in problem["errors"]["body"][0]
    for good in ("\r\n--x--", "\r\n--x--\r\n", "\r\n--x--\r\nan epilogue"):
        assert (await client.post("/chat", headers=headers, content=whole + good)).status_code == 200


async def test_every_operation_with_a_body_documents_its_refusals(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    operations = [(path, operation) for path, methods in paths.items() for operation in methods.values()]
    with_body = {path for path, operation in operations if "requestBody" in operation}
    for status in ("413", "415"):
        assert with_body == {path for path, operation in operations if status in operation["responses"]} != set()


BODIES = {
    "text/plain": b'{"message": "Hi"}',
    "application/xml": b"<message>Hi</message>",
    "application/json; charset=utf-16": b'{"message": "Hi"}',
    "application/octet-stream": b"\x00\xff",
    "multipart/form-data": b"--x\r\n",
    "multipart/form-data; boundary=x": b"--x\r\nContent-Disposition: form-data\r\n\r\nx\r\n--x--\r\n",
    "multipart/form-data; boundary=": b"x",
    "application/x-www-form-urlencoded": b"username=%00&password=%ff&grant_type=%ed%a0%80",
    "application/x-www-form-urlencoded; charset=nonsense": b"=&=&&;",
    "": b'{"message": "Hi"}',
    "\u00ff/\u00fe": b"{}",
    "application/json": b'{"a":' * 20_000,
}


async def test_a_body_of_a_wrong_or_odd_kind_is_never_our_error(client: httpx.AsyncClient, database: Database) -> None:
    caller = await accounts.add(database, "ayu", "service")
    for path in ("/auth/register", "/auth/login", "/auth/token", "/chat", "/usage/records"):
        for kind, body in BODIES.items():
            headers = [(b"authorization", caller.headers["Authorization"].encode()), (b"content-type", kind.encode())]
            answer = await client.post(path, headers=headers, content=body)
            assert answer.status_code in (200, 401, 422), f"{path} {kind}: {answer.text}"
            if answer.status_code != 200:
                problems.check(answer, answer.status_code)

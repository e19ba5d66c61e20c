"""Registration: `POST /auth/register`."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError

from app.db import failures
from app.db.database import Database
from app.security import passwords
from models import User
from tests.support import problems
from tests.support.accounts import PASSWORD


async def register(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    body = {"username": "ayu", "email": "ayu@example.com", "password": PASSWORD}
    # Not httpx's own JSON: that one refuses lone surrogates before the product can.
    content = json.dumps(body | fields).encode()
    return await client.post("/auth/register", content=content, headers={"Content-Type": "application/json"})


async def users(database: Database) -> int:
    async with database.reads() as session:
        return await session.scalar(select(func.count()).select_from(User)) or 0


async def test_a_registration_answers_with_the_account_alone(client: httpx.AsyncClient) -> None:
    answer = await register(client)
    assert answer.status_code == 201, answer.text
    assert isinstance(answer.json()["id"], int)
    assert answer.json() == {
        "id": answer.json()["id"],
        "username": "ayu",
        "email": "ayu@example.com",
        "role": "user",
        "is_active": True,
    }


async def test_what_was_registered_can_log_in(client: httpx.AsyncClient) -> None:
    registered = (await register(client)).json()
    login = await client.post("/auth/login", json={"username": "ayu", "password": PASSWORD})
    assert login.status_code == 200, login.text
    token = login.json()["access_token"]
    me = await client.get("/auth/me", headers={"Authorization": f"Bearer {token}"})
    assert me.json() == registered | {"token_stats": {"monthly_stats": [], "total_months": 0, "has_more": False}}


async def test_a_taken_username_or_email_is_a_conflict_that_says_which(
    client: httpx.AsyncClient, database: Database
) -> None:
    assert (await register(client)).status_code == 201
    same_name = problems.check(await register(client, email="other@example.com"), 409)
    assert "username" in same_name["detail"]
    same_address = problems.check(await register(client, username="other"), 409)
    assert "email" in same_address["detail"]
    problems.check(await register(client), 409)
    assert await users(database) == 1


@pytest.mark.parametrize("same", ["username", "email"])
async def test_one_of_simultaneous_registrations_wins(client: httpx.AsyncClient, database: Database, same: str) -> None:
    bodies: list[dict[str, str]] = [{"username": f"ayu{i}", "email": f"ayu{i}@example.com"} for i in range(4)]
    for body in bodies:
        del body[same]
    answers = await asyncio.gather(*(register(client, **body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    for answer in answers:
        if answer.status_code != 201:
            problems.check(answer, 409)
    assert await users(database) == 1


@pytest.mark.parametrize("same", ["id", "username", "email", "username_key"])
async def test_a_violated_constraint_names_its_column(database: Database, same: str) -> None:
    row = {"id": 1, "username": "a", "email": "a", "username_key": "a", "hashed_password": "!"}
    other = {"id": 2, "username": "b", "email": "b", "username_key": "b", "hashed_password": "!"}
    async with database.sessions() as session:
        await session.execute(insert(User).values(row))
        with pytest.raises(IntegrityError) as raised:
            await session.execute(insert(User).values(other | {same: row[same]}))
        name = failures.constraint_of(raised.value)
    assert ("username" in name or "email" in name) == (same != "id"), name
    assert same in name or name == "users_pkey"


async def test_simultaneous_forms_of_one_name_make_one_user(client: httpx.AsyncClient, database: Database) -> None:
    forms = ("stra\u00dfe", "STRASSE", "Strasse", "\uff33trasse", "\U0001d42ctrasse", "stras\u017fe", "stra\u1e9ee")
    bodies = [{"username": name, "email": f"{i}@example.com"} for i, name in enumerate(forms)]
    answers = await asyncio.gather(*(register(client, **body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [201, *[409] * (len(forms) - 1)]
    assert await users(database) == 1


async def test_nobody_can_choose_a_role(client: httpx.AsyncClient, database: Database) -> None:
    for role in ("admin", "service", "superuser", "Admin", "USER", " user", ""):
        problems.check(await register(client, role=role), 403)
    assert await users(database) == 0


async def test_the_role_user_may_be_said(client: httpx.AsyncClient) -> None:
    answer = await register(client, role="user")
    assert answer.status_code == 201
    assert answer.json()["role"] == "user"


async def test_other_fields_that_would_make_one_mightier_do_nothing(client: httpx.AsyncClient) -> None:
    answer = await register(client, id=77, roles=["admin"], is_admin=True, is_active=False)
    assert answer.status_code == 201
    assert (answer.json()["role"], answer.json()["is_active"]) == ("user", True)
    assert answer.json()["id"] != 77


async def test_text_that_cannot_be_stored_is_refused_by_field(client: httpx.AsyncClient, database: Database) -> None:
    bad: list[tuple[str, Any]] = [
        ("username", value)
        for value in (
            "",
            "a\x00b",
            "a\ud800b",
            "\udfff",
            "a\nb",
            "a\tb",
            "a\x1bb",
            "a\x7fb",
            "a\u0085b",
            " ayu",
            "ayu ",
        )
    ]
    bad += [("username", value) for value in ("a\u202eb", "\u200b", "x" * 65, 7, None, ["ayu"], True, {"a": 1})]
    bad += [("email", value) for value in ("", "ayu", "ayu@", "@example.com", "a b@example.com", "a@b@example.com")]
    bad += [("email", value) for value in ("ayu\x00@example.com", "ayu\ud800@example.com", "a\n@example.com", 7, None)]
    bad += [("email", "a@" + "b." * 125 + "com"), ("email", "a@" + "b" * 64 + ".com")]
    bad += [
        ("password", value) for value in ("", "seven77", "long\x00enough", "long\ud800enough", "x" * 1025, 12345678)
    ]
    for field, value in bad:
        answer = await register(client, **{field: value})
        errors = problems.check(answer, 422)["errors"]
        assert list(errors) == [field], f"{field}={value!r}: {errors}"
    assert await users(database) == 0


async def test_missing_fields_are_named_all_at_once(client: httpx.AsyncClient) -> None:
    answer = await client.post("/auth/register", json={})
    assert set(problems.check(answer, 422)["errors"]) == {"username", "email", "password"}


@pytest.mark.any_database
@pytest.mark.parametrize("role", [5, True, [], {}, "", "\x00", "Admin", "user "])
async def test_a_role_that_is_none_is_told_so(client: httpx.AsyncClient, role: Any) -> None:
    answer = await register(client, role=role)
    if isinstance(role, str) and "\x00" not in role:
        problems.check(answer, 403)
    else:
        assert list(problems.check(answer, 422)["errors"]) == ["role"]


async def test_lengths_are_told_in_plain_words(client: httpx.AsyncClient) -> None:
    errors = problems.check(await register(client, username="", password="short"), 422)["errors"]
    assert errors["username"] == ["String should have at least 1 character"]
    assert errors["password"] == ["String should have at least 8 characters"]


async def test_a_refusal_does_not_repeat_the_password(client: httpx.AsyncClient) -> None:
    for fields in ({"email": "no"}, {"password": "hunter2"}, {"role": "admin"}):
        answer = await register(client, **{"password": "hunter2 and more", **fields})
        assert answer.status_code in (403, 422)
        assert "hunter2" not in answer.text


async def test_a_body_that_is_no_object_is_refused(client: httpx.AsyncClient) -> None:
    bodies = [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b'{"username": "\xff"}', b"NaN"]
    for body in (*bodies, b"[" * 100_000, b"1" * 10_000):
        answer = await client.post("/auth/register", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422, f"{body[:20]!r}: {answer.text}"
        problems.check(answer, 422)


async def test_names_in_all_scripts_are_kept_as_they_are(client: httpx.AsyncClient) -> None:
    for i, name in enumerate(("アユ", "Ayu Übermut", "o'neil", 'x"; DROP TABLE users; --', "🦄", "x" * 64)):
        answer = await register(client, username=name, email=f"user{i}@example.com")
        assert answer.status_code == 201, answer.text
        assert answer.json()["username"] == name
        login = await client.post("/auth/login", json={"username": name, "password": PASSWORD})
        assert login.status_code == 200, login.text


async def test_every_valid_address_is_taken(client: httpx.AsyncClient) -> None:
    for i, address in enumerate(("a@" + "b" * 60 + ".example", "ayu+tag@sub.example.com", "ü@exämple.com")):
        answer = await register(client, username=f"user{i}", email=address)
        assert answer.status_code == 201, answer.text
        assert answer.json()["email"] == address


async def test_addresses_that_differ_only_in_case_are_one(client: httpx.AsyncClient, database: Database) -> None:
    forms = ("Ayu@X.example", "ayu@x.example", "AYU@x.example", "aYu@X.EXAMPLE")
    answers = await asyncio.gather(*(register(client, username=f"ayu{i}", email=form) for i, form in enumerate(forms)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    assert {answer.json()["email"] for answer in answers if answer.status_code == 201} == {"ayu@x.example"}
    assert "email" in problems.check(await register(client, email="AYU@X.example"), 409)["detail"]
    assert await users(database) == 1


async def test_old_addresses_that_differ_in_case_both_stay(client: httpx.AsyncClient, database: Database) -> None:
    hashed = await passwords.hash_password(PASSWORD)
    async with database.sessions.begin() as session:
        for name, address in (("one", "Ayu@x.example"), ("two", "ayu@x.example"), ("three", "Bob@x.example")):
            await session.execute(insert(User).values(username=name, email=address, hashed_password=hashed))
    for name in ("one", "two", "three"):
        login = await client.post("/auth/login", json={"username": name, "password": PASSWORD})
        assert login.status_code == 200
    for address in ("Ayu@x.example", "AYU@x.example", "Bob@x.example"):
        problems.check(await register(client, email=address), 409)
    assert await users(database) == 3


@pytest.mark.any_database
@pytest.mark.parametrize("password", ["password", "12345678", "PassWord", "iloveyou", "1q2w3e4r", "football"])
async def test_a_password_that_is_guessed_first_is_refused(client: httpx.AsyncClient, password: str) -> None:
    assert list(problems.check(await register(client, password=password), 422)["errors"]) == ["password"]


async def test_a_password_made_of_account_data_is_refused(client: httpx.AsyncClient) -> None:
    about = {"username": "Ayu Übermut", "email": "ayu.uebermut@example.com"}
    for password in ("ayu übermut", "AYU.UEBERMUT@example.com", "ayu.uebermut", "foundation-be"):
        assert list(problems.check(await register(client, password=password, **about), 422)["errors"]) == ["password"]
    assert (await register(client, password="ayu übermut and more", **about)).status_code == 201


@pytest.mark.any_database
@pytest.mark.parametrize(
    "password", ["allsmall", "        spaces", "ÜÜÜÜÜÜÜÜ", "\u202e\u202e\u202e\u202e tail", "x" * 1024]
)
async def test_there_is_no_rule_about_what_a_password_is_made_of(client: httpx.AsyncClient, password: str) -> None:
    assert (await register(client, password=password)).status_code == 201
    login = await client.post("/auth/login", json={"username": "ayu", "password": password})
    assert login.status_code == 200


async def test_a_name_can_be_typed_in_every_way_and_is_kept_in_one(client: httpx.AsyncClient) -> None:
    composed, decomposed = "J\u00f6rg", "Jo\u0308rg"
    answer = await register(client, username=decomposed)
    assert answer.json()["username"] == composed
    for name in (composed, decomposed, "\uff2a\u00f6rg"):
        login = await client.post("/auth/login", json={"username": name, "password": PASSWORD})
        assert login.status_code == 200, name
    expanded = await register(client, username="\ufdfa" * 10, email="long@example.com")
    assert list(problems.check(expanded, 422)["errors"]) == ["username"]


async def test_names_that_differ_only_in_case_or_typing_are_one_name(
    client: httpx.AsyncClient, database: Database
) -> None:
    assert (await register(client, username="Straße Ayu")).status_code == 201
    for name in ("straße ayu", "STRASSE AYU", "\uff33traße\u2003Ayu", "Straße Ayu"):
        taken = problems.check(await register(client, username=name, email="other@example.com"), 409)
        assert "username" in taken["detail"]
    assert await users(database) == 1


async def test_old_names_that_differ_in_case_both_log_in(client: httpx.AsyncClient, database: Database) -> None:
    hashed = await passwords.hash_password(PASSWORD)
    async with database.sessions.begin() as session:
        for name in ("ayu", "Ayu", "Jo\u0308rg", "J\u00f6rg"):
            await session.execute(insert(User).values(username=name, email=f"{name}@x", hashed_password=hashed))
    seen = set()
    for name in ("ayu", "Ayu", "Jo\u0308rg", "J\u00f6rg"):
        login = await client.post("/auth/login", json={"username": name, "password": PASSWORD})
        headers = {"Authorization": f"Bearer {login.json()['access_token']}"}
        seen.add((await client.get("/auth/me", headers=headers)).json()["username"])
    assert seen == {"ayu", "Ayu", "Jo\u0308rg", "J\u00f6rg"}
    problems.check(await register(client, username="AYU"), 409)

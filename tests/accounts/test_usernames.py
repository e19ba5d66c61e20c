"""Names of new accounts can be seen and told apart; names of old databases go on working."""

import unicodedata
from typing import Any

import httpx
import pytest
from sqlalchemy import insert

from app.db.database import Database
from app.security import passwords
from models import User
from services.accounts import usernames
from tests.support import problems
from tests.support.accounts import PASSWORD

INVISIBLE = [
    "\u3164",  # Hangul filler
    "\uffa0",
    "\u115f",
    "\u2800",  # Braille blank
    "\u00ad",
    "\u200b",
    "\ufeff",
    "\u2060",
    "a\ufe0f",  # variation selector
    "a\U000e0101",
    "a\u180b",
    "a\u200db",
    "a\u200cb",
    "a\u202eb",  # bidirectional controls
    "a\u2066b",
    "a\u061cb",
    "a\u034fb",
    "a\U000e0061b",  # tags
    "\u0301",  # nothing but a mark
    "\u0301a",
    "a\u3164",
    "\u20dd",
]
MIXED = [
    "\u0430yu",  # Cyrillic
    "p\u0430yp\u0430l",
    "\u03bfwner",  # Greek
    "adm\u0456n",
    "\u13aayu",  # Cherokee
    "ayu\u0561",  # Armenian
    "\u05d0\u0430",
    "\u30ab\ud55c",
]
FINE = [
    "ayu",
    "Ayu \u00dcbermut",
    "o\u0301",
    "\u0430\u043d\u043d\u0430",
    "\u03b1\u03b2\u03b3",
    "\u65e5\u672c\u8a9e",
    "\u6771\u4eac\u30bf\u30ef\u30fcx",
    "\u540d\u524dabc",
    "\uae40 kim",
    "\u0645\u062d\u0645\u062f",
    "\u0e2a\u0e21\u0e0a\u0e32\u0e22",
    "\u0939\u093f\u0928\u094d\u0926\u0940",
    "a_b-c.d@e",
    "12345",
    "\U0001f642",
    ".",
]


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", INVISIBLE + MIXED)
@pytest.mark.sampled(6)
async def test_a_new_name_can_be_seen_and_mixes_no_scripts(client: httpx.AsyncClient, name: str) -> None:
    body = {"username": name, "email": "a@example.com", "password": PASSWORD}
    answer = await client.post("/auth/register", json=body)
    assert list(problems.check(answer, 422)["errors"]) == ["username"]


@pytest.mark.parametrize("name", FINE)
def test_a_name_of_one_writing_system_is_fine(name: str) -> None:
    assert usernames.check_new(name) == unicodedata.normalize("NFKC", name)


def test_every_character_that_cannot_be_seen_is_refused() -> None:
    def is_refused(text: str) -> bool:
        try:
            usernames.check_new(text)
        except ValueError:
            return True
        return False

    every = map(chr, range(0x110000))
    hidden = [character for character in every if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert [character for character in hidden if not is_refused(f"a{character}b")] == []


async def test_old_names_go_on_logging_in(client: httpx.AsyncClient, database: Database) -> None:
    hashed = await passwords.hash_password(PASSWORD)
    for i, name in enumerate(INVISIBLE + MIXED):
        values: dict[str, Any] = {"username": name, "email": f"{i}@example.com", "hashed_password": hashed}
        async with database.sessions.begin() as session:
            await session.execute(insert(User).values(**values))
    for name in (*INVISIBLE[:3], *MIXED[:3]):
        answer = await client.post("/auth/login", json={"username": name, "password": PASSWORD})
        assert answer.status_code == 200, name

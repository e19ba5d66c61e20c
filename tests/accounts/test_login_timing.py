"""How long a failed login takes tells nothing: a test of minutes, run with `LONG_TESTS=1`."""

import os
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from app.db.database import Database
from models import User
from tests.support import accounts
from tests.support.accounts import SECRET_KEY

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("real_hashes")]

ROUNDS = 40
PERMUTATIONS = 5_000
LEAST_LIKELY = 0.001
"""The runs in which the test fails once by chance, for each of two comparisons."""


@pytest.fixture
def app_settings(database_url: str) -> dict[str, Any]:
    """The settings of the application under test."""
    names = ("max_failed_logins_per_account", "max_failed_logins_per_account_total", "max_failed_logins_per_address")
    return {"database_url": database_url, "secret_key": SECRET_KEY, **dict.fromkeys(names, 0)}


def likelihood(one: Sequence[float], other: Sequence[float]) -> float:
    """How often random groups of these times differ as much: a permutation test of the medians."""
    chance = random.Random(1)
    observed = abs(statistics.median(one) - statistics.median(other))
    both, as_much = [*one, *other], 0
    for _ in range(PERMUTATIONS):
        chance.shuffle(both)
        as_much += abs(statistics.median(both[: len(one)]) - statistics.median(both[len(one) :])) >= observed
    return as_much / PERMUTATIONS


@pytest.mark.skipif(not os.environ.get("LOGIN_TIMING"), reason="measures time: set LOGIN_TIMING=1 on a quiet machine")
async def test_unknown_users_and_wrong_passwords_take_the_same_time(
    client: httpx.AsyncClient, database: Database
) -> None:
    for name in ("ayu", "inactive"):
        await accounts.register(client, name)
    async with database.sessions.begin() as session:
        await session.execute(update(User).where(User.username == "inactive").values(is_active=False))
    passwords = {"ayu": "a wrong password", "nobody": "a wrong password", "inactive": accounts.PASSWORD}
    seconds: dict[str, list[float]] = {name: [] for name in passwords}
    for _ in range(ROUNDS):
        for name in random.sample(sorted(passwords), len(passwords)):
            begun = time.perf_counter()
            answer = await client.post("/auth/login", json={"username": name, "password": passwords[name]})
            seconds[name].append(time.perf_counter() - begun)
            assert answer.status_code == 401
    for name in ("nobody", "inactive"):
        assert likelihood(seconds["ayu"], seconds[name]) > LEAST_LIKELY, {
            name: statistics.median(times) for name, times in seconds.items()
        }


def test_a_difference_would_be_seen() -> None:
    chance = random.Random(2)
    fast = [chance.gauss(0.5, 0.001) for _ in range(ROUNDS)]
    slow = [chance.gauss(0.502, 0.001) for _ in range(ROUNDS)]
    assert likelihood(fast, slow) <= LEAST_LIKELY < likelihood(fast, fast[::-1])

"""Piecewise: what cannot be worked on is left out month by month, all else is done once."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.clock import Month
from services.backfill import piecewise
from services.backfill.deficits import KeyRange

KEYS = st.tuples(st.integers(-5, 40), st.builds(Month, st.integers(1, 9999), st.integers(1, 12)))
KeySet = frozenset[tuple[int, Month]]


def holds(key_range: KeyRange, key: tuple[int, Month]) -> bool:
    user, month = key
    since, until = key_range.since or Month(1, 1), key_range.until or Month(9999, 12)
    return key_range.first_user <= user <= key_range.last_user and since <= month <= until


@given(st.frozensets(KEYS, max_size=4), st.frozensets(KEYS, max_size=4))
@example(frozenset(), frozenset({(-5, Month(1, 1)), (40, Month(9999, 12))}))
async def test_each_month_is_done_once_or_left(good: KeySet, bad: KeySet) -> None:
    left: dict[tuple[int, Month], str] = {}

    async def work(key_range: KeyRange) -> list[tuple[int, Month]]:
        if any(holds(key_range, key) for key in bad):
            raise ArithmeticError("too much")
        return [key for key in good if holds(key_range, key)]

    parts = await piecewise.work_on(KeyRange(-5, 40), work, left.__setitem__)
    assert left == dict.fromkeys(bad, "it cannot be summed: too much")
    assert sorted(key for part in parts for key in part) == sorted(good - bad)


async def test_what_does_not_come_from_the_data_is_raised() -> None:
    async def work(_key_range: KeyRange) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await piecewise.work_on(KeyRange(1, 9), work, lambda *_: None)

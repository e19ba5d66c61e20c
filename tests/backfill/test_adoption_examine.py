"""Judging one old row: whatever is in it, and its cost to the last digit."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.backfill import old_rows

ZONES = st.sampled_from([ZoneInfo("UTC"), ZoneInfo("Asia/Tokyo"), ZoneInfo("America/New_York"), ZoneInfo("Etc/GMT+12")])
INSTANTS = st.datetimes(timezones=st.none() | st.timezones() | st.just(timezone(timedelta(hours=23, minutes=59))))
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.decimals(),
    st.dates(),
    INSTANTS,
    INSTANTS.map(str),
    st.lists(st.integers()),
)
COSTS = st.floats() | st.integers() | st.integers(-20, 20).map(lambda exponent: 1.5 * 2.0**exponent)


def row(**columns: Any) -> Any:
    """A row of an old table, as the driver gives it: one that counts, unless told otherwise."""
    usual: dict[str, Any] = {
        "id": 1,
        "owner": 7,
        "has_conversation": True,
        "role": "assistant",
        "created_at": "2024-05-05 12:00:00",
        "input_tokens": 10,
        "output_tokens": 5,
        "model_cost": None,
    }
    return SimpleNamespace(**usual | columns)


def rounded(cost: float) -> Decimal:
    """The exact value of the float, half to even at 1e-10 dollars, by rational numbers."""
    return Decimal(round(Fraction(cost) * 10**10)).scaleb(-10)


@given(
    columns=st.fixed_dictionaries(
        {},
        optional={
            "role": ANYTHING,
            "owner": st.none(),
            "has_conversation": st.just(False),
            "created_at": ANYTHING,
            "input_tokens": ANYTHING,
            "output_tokens": ANYTHING,
            "model_cost": ANYTHING,
        },
    ),
    zone=ZONES,
)
@example({"created_at": datetime(1, 1, 1)}, ZoneInfo("America/New_York"))  # noqa: DTZ001
@example({"created_at": datetime(9999, 12, 31, 23)}, ZoneInfo("Asia/Tokyo"))  # noqa: DTZ001
@example({"created_at": "9999-12-31T23:59:59-23:59", "model_cost": 10**400}, ZoneInfo("UTC"))
@example({"output_tokens": 10**400, "model_cost": float("nan")}, ZoneInfo("UTC"))
def test_no_row_makes_it_raise_and_each_is_counted_or_has_a_reason(columns: dict[str, Any], zone: ZoneInfo) -> None:
    old = row(**columns)
    finding = old_rows.examine(old, zone)
    assert (finding.message_id, finding.user_id) == (1, old.owner)
    if old.role != "assistant" or old.input_tokens is None:
        assert (finding.usage, finding.reason) == (None, None)
    elif finding.usage is None:
        assert finding.reason in get_args(old_rows.Reason)
    else:
        assert finding.reason is None
        assert old.owner is not None
        check_usage(finding.usage, old)


TOKENS = st.integers(-2, 2) | st.integers(2**31 - 2, 2**31 + 1) | st.integers()


@given(input_tokens=TOKENS, output_tokens=st.none() | TOKENS)
def test_tokens_count_from_zero_to_the_largest_and_not_beyond(input_tokens: int, output_tokens: int | None) -> None:
    old = row(input_tokens=input_tokens, output_tokens=output_tokens)
    finding = old_rows.examine(old, UTC)
    if all(0 <= tokens < 2**31 for tokens in (input_tokens, output_tokens or 0)):
        assert finding.usage is not None
        check_usage(finding.usage, old)
    else:
        assert finding.reason in ("negative_tokens", "absurd_tokens")


@given(instant=st.datetimes(timezones=st.timezones(), min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1)))  # noqa: DTZ001
def test_an_instant_has_the_same_day_in_whatever_form_it_is_written(instant: datetime) -> None:
    utc = instant.astimezone(UTC)
    plain = utc.replace(tzinfo=None)
    forms = (instant, plain, instant.isoformat(), plain.isoformat(" "), f"{plain.isoformat()}Z")
    for zone in (ZoneInfo("UTC"), ZoneInfo("Asia/Tokyo"), ZoneInfo("America/New_York")):
        found = [old_rows.examine(row(created_at=form), zone).usage for form in forms]
        assert [usage and usage.usage_date for usage in found] == [instant.astimezone(zone).date()] * len(forms)


def check_usage(usage: old_rows.Usage, old: Any) -> None:
    """Demands that what is counted is what the row says, and within what can be stored."""
    assert type(usage.usage_date) is date
    assert usage.input_tokens == old.input_tokens
    assert usage.output_tokens == (old.output_tokens or 0)
    assert all(isinstance(tokens, int) and 0 <= tokens < 2**31 for tokens in (usage.input_tokens, usage.output_tokens))
    if old.model_cost is None:
        assert usage.cost is None
    else:
        assert type(usage.cost) is Decimal
        assert usage.cost == rounded(old.model_cost)
        assert 0 <= usage.cost <= 1_000_000


@given(cost=COSTS)
@example(2.0**-11)
@example(3 * 2.0**-11)
@example(1.00000000005)
@example(0.30000000005)
@example(5e-324)
@example(-0.0)
@example(1_000_000.0)
def test_a_cost_is_the_exact_float_rounded_once_half_to_even(cost: float) -> None:
    finding = old_rows.examine(row(model_cost=cost), UTC)
    if finding.usage is None:
        assert finding.reason in ("negative_cost", "absurd_cost")
        assert not 0 <= cost <= 1_000_000
    else:
        assert type(finding.usage.cost) is Decimal
        assert finding.usage.cost == rounded(cost)
        assert finding.usage.cost.as_tuple().exponent == -10


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (2.0**-11, "0.0004882812"),
        (3 * 2.0**-11, "0.0014648438"),
        (1.00000000005, "1.0000000001"),
        (0.30000000005, "0.3"),
        (0.1 + 0.2, "0.3"),
        (5e-324, "0"),
    ],
)
def test_ties_go_to_the_even_digit_and_only_real_ties_are_ties(cost: float, expected: str) -> None:
    usage = old_rows.examine(row(model_cost=cost), UTC).usage
    assert usage is not None
    assert usage.cost == Decimal(expected)


@pytest.mark.parametrize(
    ("written", "day"),
    [
        ("2023-12-31 23:59:59.999999", "2023-12-31"),
        ("2024-01-01 00:00:00", "2024-01-01"),
        ("2024-01-01T00:00:00", "2024-01-01"),
        ("2024-01-01T00:00:00Z", "2024-01-01"),
        ("2024-01-01 00:30:00+01:00", "2023-12-31"),
        ("2023-12-31T22:30:00.5-05:30", "2024-01-01"),
        (" 2024-02-29 12:00:00.123 ", "2024-02-29"),
        (datetime(2024, 1, 1), "2024-01-01"),  # noqa: DTZ001
        (datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=2))), "2023-12-31"),
    ],
)
def test_every_form_of_an_instant_has_its_day_in_utc(written: Any, day: str) -> None:
    usage = old_rows.examine(row(created_at=written), UTC).usage
    assert usage is not None
    assert usage.usage_date == date.fromisoformat(day)

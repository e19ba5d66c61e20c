"""Money: decimal from the price to the sum, on both databases, to 1e-10 dollars."""

import json
from decimal import Decimal, InvalidOperation
from fractions import Fraction

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, Table, func, insert, select
from sqlalchemy.engine import Dialect, make_url
from sqlalchemy.exc import StatementError
from sqlalchemy.schema import CreateTable

from app import money
from app.db.database import Database
from app.money import UsdAmount

UNITS = 10**10
DIALECTS: dict[str, Dialect] = {name: make_url(f"{name}://").get_dialect()() for name in ("postgresql", "sqlite")}
MOST = 900_000_000  # dollars in a month

amounts = st.one_of(st.integers(-100 * UNITS, 100 * UNITS), st.integers(-MOST * UNITS, MOST * UNITS)).map(
    lambda units: Decimal(units).scaleb(-10)
)
decimals = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**17), max_value=10**17)
_purse = Table("purse", MetaData(), Column("id", Integer, primary_key=True), Column("amount", UsdAmount()))


@pytest.fixture
async def purse(database: Database) -> Database:
    """A database with a table of amounts."""
    async with database.sessions.begin() as session:
        await session.execute(CreateTable(_purse))
    return database


async def stored(database: Database, values: list[Decimal]) -> tuple[list[Decimal], Decimal]:
    """The amounts as they come back from the database, and their sum as it computes it."""
    async with database.sessions() as session:
        rows = [{"id": i, "amount": value} for i, value in enumerate(values)]
        await session.execute(insert(_purse), rows)
        back = list(await session.scalars(select(_purse.c.amount).order_by(_purse.c.id)))
        total = (await session.execute(select(func.sum(_purse.c.amount)))).scalar_one()
        await session.rollback()
    return back, total


@given(values=st.lists(amounts, min_size=1, max_size=9))
@settings(max_examples=40)
@example(values=[Decimal("0.0000000001")])
@example(values=[Decimal("0.1"), Decimal("0.2"), Decimal("-0.3")])
@example(values=[Decimal(MOST), Decimal("-0.0000000001")])
@example(values=[Decimal("1E+2"), Decimal("0E-30"), Decimal("-0"), Decimal("1.50000000000000")])
async def test_amounts_and_sums_keep_every_digit_in_the_database(purse: Database, values: list[Decimal]) -> None:
    assume(abs(sum(values, start=money.ZERO)) <= MOST)
    back, total = await stored(purse, values)
    assert back == values
    assert all(type(amount) is Decimal for amount in (*back, total))
    assert Fraction(total) == sum(map(Fraction, values))


@given(values=st.lists(st.integers(0, 10**6).map(lambda units: Decimal(units).scaleb(-10)), min_size=2, max_size=60))
def test_sums_in_python_are_exact_in_every_order(values: list[Decimal]) -> None:
    expected = sum(map(Fraction, values))
    for order in (values, values[::-1], sorted(values)):
        assert Fraction(sum((money.to_usd(value) for value in order), start=money.ZERO)) == expected
        assert Fraction(sum(order, start=Decimal(MOST))) == expected + MOST


async def test_a_null_stays_a_null(purse: Database) -> None:
    async with purse.sessions.begin() as session:
        await session.execute(insert(_purse).values(id=1, amount=None))
        assert (await session.execute(select(_purse.c.amount))).scalar_one() is None


async def test_a_float_is_refused_before_it_reaches_a_database(purse: Database) -> None:
    for wrong in (0.1, 1, True, "0.1", Fraction(1, 2)):
        async with purse.sessions() as session:
            with pytest.raises(StatementError) as refusal:
                await session.execute(insert(_purse).values(id=1, amount=wrong))
            assert isinstance(refusal.value.orig, TypeError)


@pytest.mark.parametrize("kind", DIALECTS)
@given(value=st.one_of(st.floats(), st.integers(), st.text(), st.booleans(), st.fractions()))
def test_nothing_but_decimals_is_bound(kind: str, value: object) -> None:
    with pytest.raises(TypeError):
        UsdAmount().process_bind_param(value, DIALECTS[kind])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", DIALECTS)
@given(value=decimals)
@example(value=Decimal("0.00000000001"))
@example(value=Decimal("0.00000000005"))
@example(value=Decimal("1E-1000"))
def test_amounts_finer_than_the_unit_are_refused_not_rounded(kind: str, value: Decimal) -> None:
    if (Fraction(value) * UNITS).denominator == 1:
        bound = UsdAmount().process_bind_param(value, DIALECTS[kind])
        assert type(bound) is (int if kind == "sqlite" else Decimal)
        assert UsdAmount().process_result_value(bound, DIALECTS[kind]) == value
    else:
        with pytest.raises(ValueError, match="finer"):
            UsdAmount().process_bind_param(value, DIALECTS[kind])


@pytest.mark.parametrize("kind", DIALECTS)
@pytest.mark.parametrize("value", ["NaN", "sNaN", "Infinity", "-Infinity", "1E+18", "1E+1000"])
def test_what_is_no_amount_is_refused(kind: str, value: str) -> None:
    with pytest.raises((ValueError, InvalidOperation)):
        UsdAmount().process_bind_param(Decimal(value), DIALECTS[kind])
    with pytest.raises(InvalidOperation):
        money.to_usd(Decimal(value))


@given(decimals)
@example(Decimal("0.00000000005"))
@example(Decimal("0.00000000015"))
@example(Decimal("-0.00000000025"))
@example(Decimal("0.00000000005000000000000000000000000000001"))
def test_rounding_is_half_to_even_at_the_tenth_digit(value: Decimal) -> None:
    assert Fraction(money.to_usd(value)) == Fraction(round(Fraction(value) * UNITS), UNITS)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e14, max_value=1e14))
@example(0.1)
@example(0.1 + 0.2)
@example(5e-11)
@example(2.5e-10)
@example(5e-324)
@example(-0.0)
def test_an_old_float_is_rounded_once_from_its_exact_value(value: float) -> None:
    assert Fraction(money.from_float(value)) == Fraction(round(Fraction(value) * UNITS), UNITS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e15, -1e300])
def test_a_float_that_is_no_amount_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not an amount"):
        money.from_float(value)


@given(amounts)
@example(Decimal("0"))
@example(Decimal("-0.0000000000"))
@example(Decimal("100"))
@example(Decimal("1E+6"))
@example(Decimal("0.0000000001"))
def test_text_is_plain_and_means_the_same_amount(amount: Decimal) -> None:
    text = money.as_text(amount)
    assert Decimal(text) == amount
    assert text.lstrip("-").replace(".", "", 1).isdigit()
    assert not (text.endswith("0") and "." in text)
    assert not text.endswith(".")
    assert text == "0" or not text.startswith(("0", "-0")) or text.lstrip("-").startswith("0.")


@given(st.integers(0, 10**15 - 1).map(lambda units: Decimal(units).scaleb(-10)))
def test_up_to_fifteen_digits_json_shows_the_same_amount(amount: Decimal) -> None:
    assert Decimal(json.dumps(float(amount))) == amount

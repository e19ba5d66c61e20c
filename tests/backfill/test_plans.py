"""What a run decides about a month: nothing is lowered that is not explained, and nothing is carried over twice."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from app.clock import Month
from services.backfill.deficits import MonthPair
from services.backfill.plans import Explained, Plan, Policy, plan
from services.usage.rollups import SUMMED, Sums

KEY = (1, Month(2024, 2))
COUNTS = st.integers(0, 5)
SUMS = st.builds(Sums, COUNTS, COUNTS, COUNTS.map(Decimal), COUNTS, COUNTS, COUNTS)
POLICIES = st.builds(Policy, st.booleans(), st.booleans())


def figures(sums: Sums) -> list[int | Decimal]:
    return [getattr(sums, name) for name in SUMMED]


@given(expected=SUMS, found=st.none() | SUMS, in_days=SUMS, policy=POLICIES)
def test_a_month_becomes_the_ledger_and_what_is_carried_over(
    expected: Sums, found: Sums | None, in_days: Sums, policy: Policy
) -> None:
    planned = plan(KEY, MonthPair(expected, found, in_days), policy)
    carried = planned.carried or Sums()
    assert planned.target == expected + carried
    assert all(figure >= 0 for figure in figures(carried))
    if planned.carried is not None:
        assert policy.carry_over
        assert found is not None
        assert carried.message_count > 0
        assert all(
            more == max(there - here, 0)
            for more, there, here in zip(figures(carried), figures(found), figures(expected), strict=True)
        )


@given(expected=SUMS, found=SUMS, policy=POLICIES)
def test_agreeing_months_and_days_are_never_lowered_unasked(expected: Sums, found: Sums, policy: Policy) -> None:
    planned = plan(KEY, MonthPair(expected, found, found), policy)
    gone = found.message_count > expected.message_count
    assert (planned.left is not None) == (gone and not policy.accept_missing)
    assert planned.left is None or planned.left.startswith("messages_missing")
    assert planned.missing == (None if planned.left is None else (found - expected).positive())
    assert planned.carried is None or not gone


@given(expected=SUMS, found=SUMS)
def test_what_is_carried_over_is_carried_over_once(expected: Sums, found: Sums) -> None:
    policy = Policy(carry_over=True)
    planned = plan(KEY, MonthPair(expected, found), policy)
    again = plan(KEY, MonthPair(planned.target, planned.target, planned.target), policy)
    assert again == Plan(planned.target)


@given(expected=SUMS, found=SUMS, moved=SUMS, broken=st.lists(SUMS, max_size=3))
def test_messages_of_another_month_or_broken_ones_are_not_deleted(
    expected: Sums, found: Sums, moved: Sums, broken: list[Sums]
) -> None:
    explained = Explained({KEY: moved}, {KEY: broken})
    planned = plan(KEY, MonthPair(expected, found), Policy(carry_over=True, explained=explained))
    lost = found - expected - moved
    for row in broken:
        fits_input = not found.input_tokens or row.input_tokens <= max(lost.input_tokens, 0)
        fits_output = not found.output_tokens or row.output_tokens <= max(lost.output_tokens, 0)
        lost -= row if fits_input and fits_output else Sums(message_count=row.message_count)
    if found == Sums() or lost.message_count <= 0:
        assert planned.carried is None
    else:
        assert planned.carried is not None
        assert figures(planned.carried) == figures(lost.positive())


@given(expected=SUMS, found=SUMS, moved=SUMS)
def test_a_month_that_was_corrected_is_not_carried_over_again(expected: Sums, found: Sums, moved: Sums) -> None:
    policy = Policy(carry_over=True, explained=Explained({KEY: Sums() - moved}))
    assert plan(KEY, MonthPair(expected, found, found), policy).carried is None

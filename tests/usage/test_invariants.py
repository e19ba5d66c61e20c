"""The promise of the contract, section 4: whatever happens, the rollup is the sum of the messages, to the digit."""

import asyncio
import contextlib
import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy.exc import IntegrityError, StatementError

from app.clock import Month
from app.errors import ConfigurationError, Conflict, InvalidRequest, NotFound
from services import backfill
from services.accounts import users
from services.backfill import Policy, Scope
from services.chat import conversations
from services.usage import records, time_zone
from services.usage.records import UsageRecord
from tests.support import partitioned, raw_sql
from tests.support.ledger import MODELS, PRICES, UNITS, Line
from tests.support.ledger_machine import DEATHS, DIES, PICK, TOKENS, ZONES, Died, LedgerMachine, Work, can, dying

INSTANTS = (
    "2024-02-29T23:59:59.999999+00:00",
    "2024-03-01T00:00:00+00:00",
    "2024-03-01T04:59:59.999999+00:00",  # March begins in New York a microsecond later
    "2024-02-29T10:00:00+00:00",  # and has just begun in Kiritimati
    "2024-03-31T21:59:59.999999+00:00",  # April begins in Berlin, on summer time since that morning
    "2023-12-31T18:30:00+00:00",  # the year has just begun in Kolkata
    "2023-11-15T12:00:00+00:00",
)
COSTS = ("0", "0.0000000001", "0.1", "33.3333333333", "123456.7890123457", "777777.7777777777", "999999.9999999999")
FLOATS = (None, 0.0, 0.1, 0.3, 2.0**-11, 3 * 2.0**-11, 1.5e-10, 2.5e-10, 999999.99999)
DAMAGE = (
    "UPDATE user_monthly_token_usage SET input_tokens = input_tokens + 7, total_tokens = total_tokens + 7",
    "UPDATE user_monthly_token_usage SET total_cost = total_cost + 3, message_count = message_count + 1",
    "UPDATE user_monthly_token_usage SET total_cost = 0, message_count = 0",
    "UPDATE user_monthly_token_usage SET input_tokens = 0, output_tokens = 0, total_tokens = 0, message_count = 0",
    "DELETE FROM user_monthly_token_usage",
    "INSERT INTO user_monthly_token_usage (user_id, year, month, input_tokens, output_tokens, total_tokens,"
    " total_cost, message_count) SELECT id, 2019, 7, 1, 2, 3, 4, 5 FROM users",
)

FRESH = st.fixed_dictionaries(
    {
        "model": st.sampled_from(MODELS),
        "input_tokens": TOKENS,
        "output_tokens": TOKENS,
        "cost": st.sampled_from([None, None, None, None, *map(Decimal, COSTS)]),
        "role": st.sampled_from(["assistant", "assistant", "assistant", "user"]),
        "content": st.sampled_from([None, "word word"]),
        "created_at": st.none() | st.sampled_from(INSTANTS).map(datetime.fromisoformat),
    }
)
ITEM = st.tuples(PICK, st.none() | PICK, FRESH)
AGAIN = PICK
A_RECORD = (0, None, {"model": "house", "input_tokens": 0, "output_tokens": 7})
AT = st.sampled_from(INSTANTS).map(datetime.fromisoformat)
WRONG: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "a user who is not there": ({"id": "wrong", "user_id": 2**31 - 1}, InvalidRequest),
    "a conversation that is not there": ({"id": "wrong", "conversation_id": "none"}, InvalidRequest),
    "a negative count": ({"id": "wrong", "role": "assistant", "cost": Decimal(0), "output_tokens": -1}, IntegrityError),
    "an amount that is too fine": ({"id": "wrong", "cost": Decimal("1e-11")}, StatementError),
    "an id with other input": ({"input_tokens": 2}, Conflict),
    "an id with other output": ({"output_tokens": 2}, Conflict),
    "an id with another model": ({"model": "another"}, Conflict),
    "an id with another role": ({"role": "tool"}, Conflict),
    "an id with another cost": ({"cost": Decimal("1.5")}, Conflict),
    "an id with another time": ({"created_at": datetime(2020, 1, 1, tzinfo=UTC)}, Conflict),
}
FORMS: dict[str, Callable[[datetime], str]] = {
    "as SQLAlchemy does": lambda at: at.replace(tzinfo=None).isoformat(" ", "microseconds"),
    "without a fraction": lambda at: at.replace(tzinfo=None).isoformat(" "),
    "with a T and a Z": lambda at: at.isoformat().replace("+00:00", "Z"),
    "with an offset": lambda at: at.astimezone(timezone(timedelta(hours=-9, minutes=-30))).isoformat(),
}
EVERYTHING = Scope()
EXAMPLES, STEPS = (30 if os.environ.get("LONG") else 3), 50


def silent(_progress: object) -> None:
    """Hears no progress."""


class CountingMachine(LedgerMachine):
    """Everything that callers, operators, crashes and old processes do."""

    @can(3, items=st.lists(ITEM | AGAIN, min_size=1, max_size=6), dies=DIES)
    def records_are_sent(self, items: list[Any], dies: bool) -> None:
        """New ones, and ones that were sent before, in this request or in another."""
        batch = self._batch(items)
        new = self._new(batch)
        assert self.transact(self._recording(batch), dies) == (len(new), len(batch) - len(new))
        self._keep_records(new)

    @can(2, items=st.lists(ITEM | AGAIN, max_size=4), which=PICK, wrong=st.sampled_from(sorted(WRONG)))
    def a_bad_record_is_sent_among_others(self, items: list[Any], which: int, wrong: str) -> None:
        """Nothing of that request is stored."""
        batch = self._batch([*items, which])
        change, error = WRONG[wrong]
        bad = replace(batch[-1], **change)
        # A record without a time is a repetition of an earlier one with any time: the bad one comes last.
        place = 0 if batch[-1].created_at is None else which
        with pytest.raises(error):
            self.transact(self._recording([*batch[place:], bad, *batch[:place]]))

    @can(who=PICK, item=FRESH, writers=st.integers(2, 4), shared=st.integers(0, 3))
    def records_of_one_month_are_sent_at_once(self, who: int, item: dict[str, Any], writers: int, shared: int) -> None:
        costs = itertools.cycle(map(Decimal, COSTS[2:] if item["cost"] else COSTS[:1]))
        fresh = self._batch([(who, None, item | {"cost": next(costs)}) for _ in range(writers + shared)])
        batches = [[fresh[i], *fresh[writers:]][:: 1 if i % 2 else -1] for i in range(writers)]
        results = self.at_once([self._recording(batch) for batch in batches])
        assert sum(result.recorded for result in results) == len(fresh)
        assert sum(result.duplicates for result in results) == (writers - 1) * shared
        self._keep_records(fresh)

    def _recording(self, batch: list[UsageRecord]) -> Work[records.Recorded]:
        return lambda session: records.record(session, batch, PRICES, self.zone)

    def _batch(self, items: list[Any]) -> list[UsageRecord]:
        batch: list[UsageRecord] = []
        for item in items:
            if isinstance(item, tuple):
                who, where, fields = item
                owner = self.owner(who)
                talk = self.talk(owner, where)
                id_ = self.name("record")
                batch.append(UsageRecord(id=id_, user_id=owner, conversation_id=talk.id if talk else None, **fields))
            elif known := batch + self.ledger.sent:
                batch.append(replace(known[item % len(known)]))
        return batch or self._batch([A_RECORD])

    def _new(self, batch: list[UsageRecord]) -> list[UsageRecord]:
        return list(dict.fromkeys(item for item in batch if item not in self.ledger.sent))

    def _keep_records(self, new: list[UsageRecord]) -> None:
        for item in new:
            talk = next((talk for talk in self.ledger.talks if talk.id == item.conversation_id), None)
            at = item.created_at or self.now
            line = Line(item.user_id, item.role, at, talk, None)
            counts = (item.input_tokens, item.output_tokens, item.cached_input_tokens)
            line.settle("complete", item.content, item.model, counts)
            line.cost = line.cost if item.cost is None else Fraction(item.cost)
            self.ledger.lines.append(line)
        self.ledger.sent += new

    @can(which=PICK, dies=DIES)
    def a_conversation_is_deleted(self, which: int, dies: bool) -> None:
        """Also while an answer in it is pending; a second time it is not there."""
        talk = self.ledger.talks[which % len(self.ledger.talks)]
        work: Work[Any] = lambda session: conversations.delete(session, talk.owner, talk.id)  # noqa: E731
        if talk.deleted:
            self.refused(NotFound, work)
            return
        self.transact(work, dies)
        self.ledger.erase(talk)

    @can(who=PICK, dies=DIES)
    def a_user_is_deleted(self, who: int, dies: bool) -> None:
        owner = self.owner(who)
        self.transact(lambda session: users.delete(session, owner), dies)
        self.ledger.forget(owner)
        self.refused(NotFound, lambda session: users.delete(session, owner))
        self._a_user_comes()

    @can(
        2,
        who=PICK,
        where=PICK,
        at=AT,
        form=st.sampled_from(sorted(FORMS)),
        tokens=st.tuples(TOKENS, st.none() | TOKENS),
        cost=st.sampled_from(FLOATS),
    )
    def an_old_process_writes(
        self, who: int, where: int, at: datetime, form: str, tokens: tuple[int, int | None], cost: float | None
    ) -> None:
        """It knows nothing of owners, days and exact money, and counts nothing; a negative count is never counted."""
        owner = self.owner(who)
        talk = self.talk(owner, where)
        if talk is None or partitioned.is_wanted():
            return
        line = Line(owner, "assistant", at, talk, "answer", None, (tokens[0], tokens[1] or 0), counts=False)
        line.sound = where % 4 > 0
        line.written = tokens if line.sound else (-1 - tokens[0], tokens[1])
        line.cost = None if cost is None else Fraction(round(Fraction(cost) * UNITS), UNITS)
        columns = "conversation_id, role, content, created_at, input_tokens, output_tokens, model_cost"
        [line.id] = self.execute(
            f"INSERT INTO messages ({columns}) VALUES (:talk, 'assistant', 'answer', :at, :read, :written, :cost)"
            " RETURNING id",
            talk=talk.id,
            at=FORMS[form](at) if self.database.engine.name == "sqlite" else at,
            read=line.written[0],
            written=line.written[1],
            cost=cost,
        )
        self.ledger.lines.append(line)

    @can(
        damage=st.none() | st.sampled_from(DAMAGE),
        some=st.none() | st.builds(Scope, st.none() | st.just([1, 2]), st.none() | st.just(Month(2024, 3))),
        batch_size=st.integers(1, 3),
        at_once=st.booleans(),
        dies_after=DEATHS,
    )
    def the_operator_backfills(
        self, damage: str | None, some: Scope | None, batch_size: int, at_once: bool, dies_after: int | None
    ) -> None:
        """After damage and some more traffic on it; a part first, by two at once, or by one that is killed first."""
        if damage:
            self.execute(damage)
        batch = self._batch([A_RECORD])
        self.transact(self._recording(batch))
        self._keep_records(batch)
        with contextlib.suppress(Died), dying(self.database, dies_after):
            self._run(backfill.run, scope=some or EVERYTHING, batch_size=batch_size)
        self._run(*[backfill.run] * (2 if at_once else 1), batch_size=batch_size)
        self.ledger.adopt()
        [report] = self._run(backfill.verify, batch_size=batch_size)
        months = self.ledger.months(self.zone)
        assert report.differences == []
        assert (report.months, report.ledger.message_count) == (
            len(months),
            sum(month.message_count for month in months.values()),
        )

    @can(zone=st.sampled_from(ZONES), dies_after=DEATHS)
    def the_operator_changes_the_zone(self, zone: str, dies_after: int | None) -> None:
        with contextlib.suppress(Died), dying(self.database, dies_after):
            self.runner.run(backfill.redate(self.database, ZoneInfo(zone), silent))
        self.runner.run(backfill.redate(self.database, ZoneInfo(zone), silent))
        if ZoneInfo(zone) != self.zone and self.ledger.months(self.zone):
            before = self.zone
            self.refused(ConfigurationError, lambda session: time_zone.check(session, before))
        self.keep_zone(ZoneInfo(zone))

    def _run(self, *works: Any, scope: Scope = EVERYTHING, batch_size: int) -> list[backfill.Report]:
        """All at once."""

        async def run() -> list[backfill.Report]:
            arguments = (self.database, scope, batch_size, self.zone, Policy(), silent)
            return list(await asyncio.gather(*(work(*arguments) for work in works)))

        return self.runner.run(run())


@pytest.mark.machine
def test_the_rollup_is_the_sum_of_the_messages_whatever_happens(database_url: str) -> None:
    """On tables that an old backend once had: the column that held its money is there still."""
    raw_sql.run(database_url, "ALTER TABLE messages ADD COLUMN model_cost FLOAT")

    def machine() -> CountingMachine:
        return CountingMachine(database_url)

    budget = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],
    )
    run_state_machine_as_test(machine, settings=budget)  # type: ignore[arg-type]

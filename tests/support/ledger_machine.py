"""A machine that holds a database to a ledger of the tests' own, and what it does with chat turns."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any, TypeVar
from unittest import mock
from zoneinfo import ZoneInfo

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import delete, event, text

from app import clock
from app.db.database import Database
from app.errors import FoundationError, InvalidRequest, NotFound, StillRunning
from models import Base
from services.chat import recovery, turns
from services.chat.branches import Edited
from services.chat.leases import Lease, Observer, PendingTurn
from services.chat.runner import TurnRunner
from services.chat.tokenizer import TokenCounts
from services.chat.turns import Answered, Outcome, Question
from services.chat.upstream import OfflineUpstream
from services.usage import time_zone
from tests.support import accounts, invariants
from tests.support.ledger import MODELS, PRICES, Ledger, Line, Talk, Turn

T = TypeVar("T")
Work = Callable[[Any], Awaitable[T]]

STARTS_AT = datetime(2024, 2, 29, 23, 59, 30, tzinfo=UTC)
FORMER_AGE = timedelta(seconds=660)
ZONES = ("UTC", "America/New_York", "Asia/Kolkata", "Pacific/Kiritimati", "Europe/Berlin")
ALIVE = Lease().process
DEAD = f"{'0' * 32}:{ALIVE.partition(':')[2].rpartition(':')[0]}:1"
PROCESSES = {"alive": ALIVE, "dead": DEAD, "elsewhere": "1" * 32, "of an earlier version": "elsewhere/7/1.00"}

PICK = st.integers(0, 7)
DIES = st.sampled_from([False] * 7 + [True])
DEATHS = st.none() | st.integers(0, 12)
TOKENS = st.sampled_from([0, 1, 3, 1_000, 123_457, 2**31 - 1])
OUTCOMES = st.builds(
    lambda status, words, model, counts, estimated: Outcome(
        status, " ".join(["answer"] * words), model, counts and TokenCounts(counts[0], counts[1], counts[2], estimated)
    ),
    st.sampled_from(["complete", "interrupted", "failed"]),
    st.integers(0, 3),
    st.sampled_from(MODELS),
    st.none() | st.tuples(TOKENS, TOKENS, TOKENS).map(lambda counts: (*counts[:2], min(counts[0], counts[2]))),
    st.booleans(),
)

ACTIONS: list[st.SearchStrategy[tuple[str, dict[str, Any]]]] = []
Method = TypeVar("Method", bound=Callable[..., None])


def can(often: int = 1, /, **arguments: st.SearchStrategy[Any]) -> Callable[[Method], Method]:
    """Makes a method one of the machine's actions; not a rule, of which hypothesis would leave out some in each run."""

    def register(method: Method) -> Method:
        ACTIONS.extend([st.tuples(st.just(method.__name__), st.fixed_dictionaries(arguments))] * often)
        return method

    return register


class Died(BaseException):
    """The process is no more; so no handler of errors in it runs on."""


@contextlib.contextmanager
def dying(database: Database, after: int | None) -> Iterator[None]:
    """After some statements and commits the next one is not reached, as if the process were killed; None: never."""
    left = [-1 if after is None else after]

    def step(*arguments: Any) -> None:
        if len(arguments) > 2 and str(arguments[2]).startswith("BEGIN"):
            return
        if left[0] == 0:
            raise Died
        left[0] -= 1

    engine = database.engine.sync_engine
    for name in ("before_cursor_execute", "commit"):
        event.listen(engine, name, step)
    try:
        yield
    finally:
        for name in ("before_cursor_execute", "commit"):
            event.remove(engine, name, step)


class LedgerMachine(RuleBasedStateMachine):
    """A database, emptied, and the ledger to which it is held; time stands still until an action moves it."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.now = STARTS_AT
        self.zone = ZoneInfo("UTC")
        self.ledger = Ledger()
        self.names = 0
        self.clock = mock.patch.object(clock, "now", side_effect=lambda: self.now)
        self.clock.start()
        self.runner = asyncio.Runner()
        self.database = Database.open(url)
        self.runner.run(self._empty())

    async def _empty(self) -> None:
        async with self.database.sessions.begin() as session:
            for table in reversed(Base.metadata.sorted_tables):  # those that point to others first
                await session.execute(delete(table))

    def teardown(self) -> None:
        self.runner.run(self.database.close())
        self.runner.close()
        self.clock.stop()

    def name(self, kind: str) -> str:
        """A name that was not given before."""
        self.names += 1
        return f"{kind}{self.names}"

    def transact(self, work: Work[T], dies: bool = False) -> T:
        """Runs a transaction as the routers do; perhaps after dying at every point of it, which left nothing."""
        after = 0 if dies else None
        while True:
            try:
                with dying(self.database, after):
                    return self.runner.run(self.database.transaction(work, repeatable=True))
            except Died:
                self.runner.run(self.check())
                after = (after or 0) + 1

    def refused(self, error: type[FoundationError], work: Work[object]) -> None:
        """Demands that a transaction ends in this error."""
        with pytest.raises(error):
            self.transact(work)

    def at_once(self, works: Sequence[Work[T]]) -> list[T]:
        """Runs transactions beside each other."""

        async def run() -> list[T]:
            return await asyncio.gather(*(self.database.transaction(work, repeatable=True) for work in works))

        return self.runner.run(run())

    def execute(self, statement: str, **values: Any) -> list[Any]:
        """SQL behind the product's back; answers with the first column."""

        async def work(session: Any) -> list[Any]:
            result = await session.execute(text(statement), values)
            return list(result.scalars()) if result.returns_rows else []

        return self.transact(work)

    def add_user(self) -> int:
        """One user more."""
        caller = self.runner.run(accounts.add(self.database, self.name("user")))
        self.ledger.users.append(caller.id)
        return caller.id

    def keep_zone(self, zone: ZoneInfo) -> None:
        """The zone of an empty database."""
        self.zone = zone
        self.transact(lambda session: time_zone.check(session, zone))

    def owner(self, pick: int) -> int:
        """One of the users."""
        return self.ledger.users[pick % len(self.ledger.users)]

    def talk(self, owner: int, pick: int | None) -> Talk | None:
        """One of a user's conversations, deleted ones among them, or none."""
        own = [talk for talk in self.ledger.talks if talk.owner == owner]
        return own[pick % len(own)] if own and pick is not None else None

    async def check(self) -> None:
        """Demands that the rollup is the sum of the messages, and both are what the ledger says."""
        months = await invariants.check(self.database, self.zone, self.ledger.skipped())
        assert months == self.ledger.months(self.zone)
        columns = "conversation_id, role, content, status, input_tokens, output_tokens"
        async with self.database.reads() as session:
            rows = await session.execute(text(f"SELECT {columns} FROM messages"))
            assert Counter(tuple(row) for row in rows) == self.ledger.stored()

    @initialize(zone=st.sampled_from(ZONES))
    def begin_empty(self, zone: str) -> None:
        self.keep_zone(ZoneInfo(zone))
        for _ in range(2):
            self._a_user_comes()

    def _a_user_comes(self) -> None:
        """And asks something at once."""
        question = Question(self.add_user(), "word", MODELS[0], None, self.name("key"))
        begun = self.transact(self._beginning(question, f"{ALIVE}/{self.name('turn')}"))
        self._keep_turn(begun, question, "alive", None)

    @rule(action=st.deferred(lambda: st.one_of(ACTIONS)))
    def happens(self, action: tuple[str, dict[str, Any]]) -> None:
        name, arguments = action
        getattr(self, name)(**arguments)

    @invariant()
    def the_rollup_is_the_sum_of_the_messages(self) -> None:
        self.runner.run(self.check())

    @can(seconds=st.sampled_from([1, 29, 31, 700, 13 * 3600, 20 * 86400]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @can(
        3,
        who=PICK,
        where=st.none() | PICK,
        words=st.integers(1, 3),
        model=st.sampled_from(MODELS),
        has_key=st.booleans(),
        process=st.sampled_from(sorted(PROCESSES)),
        dies=DIES,
    )
    def a_turn_begins(
        self, who: int, where: int | None, words: int, model: str, has_key: bool, process: str, dies: bool
    ) -> None:
        owner = self.owner(who)
        talk = self.talk(owner, where)
        key = self.name("key") if has_key else None
        question = Question(owner, " ".join(["word"] * words), model, talk.id if talk else None, key)
        work = self._beginning(question, f"{PROCESSES[process]}/{self.name('turn')}")
        if talk is not None and talk.deleted:
            self.refused(NotFound, work)
            return
        begun = self.transact(work, dies)
        assert self.transact(work) == begun, "a transaction that is run again stores nothing more"
        self._keep_turn(begun, question, process, talk)

    def _beginning(self, question: Question, name: str) -> Work[Any]:
        return lambda session: turns.begin(session, question, name, self.zone)

    def _keep_turn(self, begun: turns.Turn, question: Question, process: str, talk: Talk | None) -> None:
        if talk is None:
            talk = Talk(begun.conversation_id, question.user_id)
            self.ledger.talks.append(talk)
        asked = Line(question.user_id, "user", self.now, talk, question.text)
        answer = Line(question.user_id, "assistant", self.now, talk, None, status="pending", model=question.model)
        self.ledger.lines += [asked, answer]
        self.ledger.turns.append(
            Turn(begun.message_id, begun.name, process, question, asked, begun.user_message_id or 0, answer)
        )
        assert list(begun.prompts) == self.ledger.prompts(talk, answer)

    @can(which=PICK, process=st.sampled_from(sorted(PROCESSES)), dies=DIES)
    def a_question_is_edited(self, which: int, process: str, dies: bool) -> None:
        turn = self.ledger.turns[which % len(self.ledger.turns)]
        edited = Edited(turn.asked_id, turn.answer.talk.id if turn.answer.talk else "", "title", "Standard", None, None)
        question = turn.question._replace(text="edited", conversation_id=None, idempotency_key=None, edited=edited)
        work = self._beginning(question, f"{PROCESSES[process]}/{self.name('turn')}")
        if turn.asked not in self.ledger.lines or turn.asked.talk is None or turn.asked.talk.deleted:
            self.refused(NotFound, work)
            return
        begun = self.transact(work, dies)
        talk = Talk(begun.conversation_id, question.user_id)
        self.ledger.branch(turn.asked, talk)
        self._keep_turn(begun, question, process, talk)

    @can(which=PICK, change=st.sampled_from(["body", "owner", None, None]))
    def a_turn_is_asked_again_under_its_key(self, which: int, change: str | None) -> None:
        keyed = [one for one in self.ledger.turns if one.question.idempotency_key and one.answer in self.ledger.lines]
        if not keyed:
            return
        turn = keyed[which % len(keyed)]
        changes: dict[str | None, dict[str, Any]] = {
            "body": {"text": "else"},
            "owner": {"user_id": self.owner(which), "conversation_id": "none"},
        }
        question = turn.question._replace(**changes.get(change, {}))
        work = self._beginning(question, self.name("again"))
        if question.user_id != turn.question.user_id:
            self.refused(NotFound, work)
        elif question != turn.question:
            self.refused(InvalidRequest, work)
        elif turn.answer.status == "pending":
            self.refused(StillRunning, work)
        else:
            answered = self.transact(work)
            assert isinstance(answered, Answered)
            assert (answered.message.id, answered.message.content) == (turn.id, turn.answer.content)

    @can(3, which=PICK, outcome=OUTCOMES, dies=DIES)
    def a_turn_is_settled(self, which: int, outcome: Outcome, dies: bool) -> None:
        turn = self.ledger.turns[which % len(self.ledger.turns)]
        answered = self.transact(self._settling(turn, outcome), dies)
        self._keep_settled(turn, outcome, answered)

    @can(which=PICK, model=st.sampled_from(MODELS))
    def a_turn_is_settled_by_several_at_once(self, which: int, model: str) -> None:
        turn = self.ledger.turns[which % len(self.ledger.turns)]
        tokens = {"complete": TokenCounts(5, 3, 1), "interrupted": TokenCounts(7, 1)}
        outcomes = {status: Outcome(status, "answer", model, counts) for status, counts in tokens.items()}
        outcomes["failed"] = Outcome("failed", "", turn.answer.model or model, None)  # what another process knows
        answers = self.at_once([self._settling(turn, outcome) for outcome in outcomes.values()])
        for answered in answers:
            if answered and answered.message.status == "failed" and not answered.is_earlier:  # it came first
                self._keep_settled(turn, outcomes["failed"], answered)
        statuses = {str(answered.message.status) for answered in answers if answered}
        winner = next((outcomes[status] for status in statuses - {"failed"}), None)  # replaces one that failed
        for answered in answers:
            if winner is None or answered is None or answered.message.status == winner.status:
                self._keep_settled(turn, winner, answered)

    def _settling(self, turn: Turn, outcome: Outcome) -> Work[Answered | None]:
        return lambda session: turns.settle(
            session, PendingTurn(turn.id, turn.name, turn.question.user_id), outcome, None, PRICES, self.zone
        )

    def _keep_settled(self, turn: Turn, outcome: Outcome | None, answered: Answered | None) -> None:
        line = turn.answer
        if line not in self.ledger.lines:
            assert answered is None
            return
        if outcome is not None and (line.status == "pending" or line.provisional):
            if line.status == "pending" and outcome.status == "failed" and outcome.tokens is None:
                turn.free_key()
            line.settle(outcome.status, outcome.content, outcome.model, outcome.tokens)
        assert answered is not None
        found = answered.message
        assert (found.status, found.content, found.input_tokens) == (line.status, line.content, line.input_tokens)
        assert (None if found.cost is None else Fraction(found.cost)) == line.cost

    @can(dies_after=DEATHS)
    def turns_of_dead_processes_are_settled(self, dies_after: int | None) -> None:
        stale = [turn for turn in self.ledger.turns if turn.answer in self.ledger.lines and self._is_stale(turn)]
        running = TurnRunner(self.database, OfflineUpstream(), PRICES, self.zone)
        with contextlib.suppress(Died), dying(self.database, dies_after):
            assert self.runner.run(recovery.settle_orphans(running, Observer(running.lease))) == len(stale)
        self.runner.run(recovery.settle_orphans(running, Observer(running.lease)))
        for turn in stale:
            assert turn.answer.talk is not None
            prompts = self.ledger.prompts(turn.answer.talk, turn.answer)
            sent = 3 + sum(4 + len(prompt["content"].split()) for prompt in prompts)
            turn.answer.settle("failed", "", turn.question.model, (sent, 0, 0, True))

    def _is_stale(self, turn: Turn) -> bool:
        """However late it is: a process that may live keeps its turns."""
        late = turn.answer.at < self.now - FORMER_AGE
        is_of_nobody = turn.process == "dead" or (turn.process == "of an earlier version" and late)
        return turn.answer.status == "pending" and is_of_nobody

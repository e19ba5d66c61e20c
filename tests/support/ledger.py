"""What must be stored, kept by the tests in memory, with arithmetic of their own."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, tzinfo
from fractions import Fraction
from typing import Any

from services.chat.turns import Question
from services.usage.pricing import OwnPrice, PriceList
from services.usage.records import UsageRecord
from tests.support.invariants import Totals

UNITS = 10**10
DEARER_SINCE = datetime(2024, 3, 1, tzinfo=UTC)

PRICES = PriceList(
    [
        OwnPrice.model_validate({"model": "house", "from": DEARER_SINCE, "input": "1.23450005", "output": "7.00005"}),
        OwnPrice.model_validate({"model": "house", "input": "0.00015", "cached_input": "0.00005", "output": "0.00025"}),
    ]
)
_DOLLARS_A_MILLION = {
    "gpt-4o-mini": ("0.15", "0.075", "0.6"),
    "house": ("0.00015", "0.00005", "0.00025"),
    "house, dearer": ("1.23450005", "1.23450005", "7.00005"),
}
MODELS = ("gpt-4o-mini", "house", "a model without a price")


def price(model: str, at: datetime, tokens: Sequence[int]) -> Fraction | None:
    """What an answer costs, half to even at 1e-10 dollars; tokens are input, output, and cached among the input."""
    name = "house, dearer" if model == "house" and at >= DEARER_SINCE else model
    if name not in _DOLLARS_A_MILLION:
        return None
    fresh, cached, output = map(Fraction, _DOLLARS_A_MILLION[name])
    millionths = fresh * (tokens[0] - tokens[2]) + cached * tokens[2] + output * tokens[1]
    return Fraction(round(millionths * UNITS / 10**6), UNITS)


@dataclass(eq=False)
class Talk:
    """A conversation."""

    id: str
    owner: int
    deleted: bool = False


@dataclass(eq=False)
class Line:
    """A message. `counts` is false for one written by an old process and not adopted yet, or never, being damaged."""

    owner: int
    role: str
    at: datetime
    talk: Talk | None
    content: str | None
    status: str | None = "complete"
    tokens: tuple[int, int] | None = None
    cost: Fraction | None = None
    counts: bool = True
    sound: bool = True
    id: int | None = None
    written: tuple[int, int | None] | None = None
    provisional: bool = False
    """Settled with an estimate, or uncounted, which a result that comes late replaces."""
    model: str | None = None
    """As stored: at first the requested one, by which an own price applies as well."""

    @property
    def carries_usage(self) -> bool:
        """The contract's definition."""
        return self.role == "assistant" and self.tokens is not None

    @property
    def input_tokens(self) -> int | None:
        """As stored."""
        return self.tokens[0] if self.tokens else None

    def settle(self, status: str, content: str | None, model: str, tokens: Sequence[int] | None) -> None:
        """End it; tokens are input, output, cached ones among the input, and whether they are estimated."""
        self.status = status
        self.content = None if self.talk and self.talk.deleted else content
        self.provisional = status == "failed" and (tokens is None or (len(tokens) == 4 and bool(tokens[3])))
        self.tokens = None if tokens is None else (tokens[0], tokens[1])
        self.cost = None if tokens is None else price("house" if self.model == "house" else model, self.at, tokens)
        self.model = model


@dataclass(eq=False)
class Turn:
    """A chat turn, whose answer may be pending; `process` says whether the one that answers it is alive."""

    id: int
    name: str
    process: str
    question: Question
    asked: Line
    asked_id: int
    answer: Line

    def free_key(self) -> None:
        """The turn failed and cost nothing: its idempotency key is free."""
        self.question = self.question._replace(idempotency_key=None)


@dataclass
class Ledger:
    """Everything that must be stored."""

    users: list[int] = field(default_factory=list)
    talks: list[Talk] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    sent: list[UsageRecord] = field(default_factory=list)

    def months(self, zone: tzinfo) -> dict[tuple[int, str], Totals]:
        """The sums by user and `YYYY-MM`."""
        found: dict[tuple[int, str], Totals] = {}
        for line in self.lines:
            if line.carries_usage and line.counts and line.tokens is not None:
                key = line.owner, f"{line.at.astimezone(zone):%Y-%m}"
                total, (read, written) = found.get(key, Totals()), line.tokens
                found[key] = Totals(
                    total.input_tokens + read,
                    total.output_tokens + written,
                    total.total_tokens + read + written,
                    total.total_cost + (line.cost or 0),
                    total.message_count + 1,
                )
        return found

    def stored(self) -> Counter[tuple[object, ...]]:
        """Each message as it must be found."""
        return Counter(
            (
                line.talk and line.talk.id,
                line.role,
                line.content,
                line.status,
                *(line.written or line.tokens or (None, None)),
            )
            for line in self.lines
        )

    def skipped(self) -> set[int]:
        """The ids of old messages with usage that no sum holds."""
        return {line.id for line in self.lines if line.id is not None and line.carries_usage and not line.counts}

    def prompts(self, talk: Talk, before: Line) -> list[dict[str, str]]:
        """What a model must be sent."""
        lines = [line for line in self.lines[: self.lines.index(before) + 1] if line.talk is talk]
        said: list[dict[str, str]] = []
        questions: list[Line] = []
        for line in lines:
            is_sent = bool(line.content) and line.status in (None, "complete", "interrupted")
            if line.role == "user":
                questions += [line] if is_sent else []
                continue
            twins = [item for item in questions if item.at == line.at] or questions
            question = twins[-1] if twins else None
            if question is not None:
                questions.remove(question)
                said += [{"role": "user", "content": str(question.content)}] if is_sent or line is before else []
            if is_sent and question is not None:
                said.append({"role": "assistant", "content": str(line.content)})
            elif is_sent and said:
                said[-1]["content"] += f"\n\n{line.content}"
        return said

    def branch(self, before: Line, talk: Talk) -> None:
        """The messages before one are copied; no copy carries usage, and no answer that is pending is copied."""
        earlier = [line for line in self.lines[: self.lines.index(before)] if line.talk is before.talk]
        plain: dict[str, Any] = {
            "talk": talk,
            "tokens": None,
            "cost": None,
            "id": None,
            "written": None,
            "provisional": False,
        }
        self.talks.append(talk)
        self.lines += [replace(line, owner=talk.owner, **plain) for line in earlier if line.status != "pending"]

    def adopt(self) -> None:
        """Old messages count from now on."""
        for line in self.lines:
            line.counts = line.sound

    def erase(self, talk: Talk) -> None:
        """The content of a conversation goes."""
        talk.deleted = True
        for line in self.lines:
            if line.talk is talk:
                line.content = None

    def forget(self, user: int) -> None:
        """All of a user's goes."""
        self.users.remove(user)
        self.talks = [talk for talk in self.talks if talk.owner != user]
        self.lines = [line for line in self.lines if line.owner != user]
        self.sent = [item for item in self.sent if item.user_id != user]

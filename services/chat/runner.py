"""Run chat turns: ask the model, then settle the turn.

No transaction is open while the model answers. A turn is settled whatever happens. Each turn runs in its own task. If
the caller disconnects, the task waits for the rest of the answer for a bounded time, so that the usage billed is the
usage counted. `recovery` settles the turns of processes that died.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import tzinfo

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import failures
from app.db.database import Database, Work
from app.errors import DatabaseUnavailable, NotFound, UpstreamError, UpstreamTimeout, UpstreamTooLong
from models import Message
from services.chat import finish_reasons, history, leases, openai_upstream, settlement, stops, tokenizer, turns
from services.chat.completions import Heard, storable
from services.chat.conversations import StoredMessage
from services.chat.leases import Lease, PendingTurn
from services.chat.pieces import Pieces
from services.chat.tokenizer import Prompt, TokenCounts
from services.chat.turns import Answered, Outcome, Turn
from services.chat.upstream import Reply, Upstream
from services.usage import pricing
from services.usage.pricing import PriceList

logger = logging.getLogger(__name__)

MAX_PAUSE_SECONDS = 30.0


@dataclass(frozen=True)
class Limits:
    """Time limits in seconds.

    `answer` is for a whole answer, `drain` for its rest once the caller has disconnected, and `shutdown` for all
    answers once the server stops.
    """

    answer: float = 600.0
    drain: float = 60.0
    shutdown: float = 20.0


@dataclass
class TurnRunner:
    """All running turns of this process."""

    database: Database
    upstream: Upstream
    prices: PriceList
    zone: tzinfo
    limits: Limits = field(default_factory=Limits)
    context_tokens: int | None = None
    """The context of every model in tokens; None to use the price list's value for each model."""
    stop_on_hangup: bool = False
    """Whether a caller who disconnects stops the model. Otherwise, the server waits for the rest of the answer."""
    lease: Lease = field(default_factory=Lease)
    running: set["RunningTurn"] = field(default_factory=set)
    unsettled: set[asyncio.Task[None]] = field(default_factory=set)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    ends: float | None = None
    """The deadline of all turns, by the clock of the event loop; None unless the server is stopping."""

    async def begin(self, name: str, user_id: int, work: Work[Turn | Answered]) -> Turn | Answered:
        """Run the transaction that begins a user's turn of this name.

        If the transaction fails but may have been committed, give up the turn as soon as the database answers again.
        """
        try:
            return await self.database.transaction(work, repeatable=True)
        except (*failures.FAILURES, DatabaseUnavailable):
            give_up = functools.partial(turns.give_up, user_id=user_id, turn=name)
            self.keep_trying(lambda: self.database.transaction(give_up, repeatable=True))
            raise

    async def settle(
        self, session: AsyncSession, turn: PendingTurn, outcome: Outcome, *, is_owner: bool
    ) -> Answered | None:
        """Settle a turn as `turns.settle` does."""
        terms = self.upstream.api_url, self.prices, self.zone
        return await turns.settle(session, turn, outcome, *terms, is_owner=is_owner)

    async def fitting(self, prompts: Sequence[Prompt], model: str, answer_tokens: int | None = None) -> list[Prompt]:
        """Return the prompts without the oldest exchanges beyond the model's context."""
        known = self.context_tokens or pricing.context_window(model, self.upstream.api_url)
        return await history.fitting(prompts, known or history.FALLBACK_CONTEXT, answer_tokens)

    async def renew_lease(self) -> None:
        """Renew this process's lease while turns are running or unsettled."""
        if self.running or self.unsettled:
            renew = functools.partial(leases.renew, lease=self.lease)
            await self.database.transaction(renew, repeatable=True, urgent=True)

    def stop(self, name: str) -> None:
        """Stop this process's turn of this name, if there is one."""
        for run in self.running:
            if run.turn.name == name:
                run.stop()

    async def stop_marked(self) -> None:
        """Stop the turns that callers asked another process to stop."""
        turns_ = {run.turn.pending for run in self.running}
        if turns_:
            for name in await self.database.read(lambda session: stops.marked(session, turns_)):
                self.stop(name)

    def keep_trying(self, attempt: Callable[[], Awaitable[object]]) -> None:
        """Retry, with pauses, until the attempt succeeds or the server stops."""
        task = asyncio.create_task(self._keep_trying(attempt))
        self.unsettled.add(task)
        task.add_done_callback(self.unsettled.discard)

    async def _keep_trying(self, attempt: Callable[[], Awaitable[object]]) -> None:
        pause = 1.0
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), pause)
            try:
                await attempt()
                return
            except Exception:
                if self.stopping.is_set():
                    logger.exception("a turn was not settled; the next start does")
                    return
                pause = min(2 * pause, MAX_PAUSE_SECONDS)

    def start(self, turn: Turn, *, stream: bool) -> "RunningTurn":
        """Start a task that answers a turn."""
        run = RunningTurn(self, turn, stream)
        if self.ends is not None:
            run.limit(self.ends - asyncio.get_running_loop().time())
        self.running.add(run)
        run.task.add_done_callback(lambda _task: self._forget(run))
        return run

    def _forget(self, run: "RunningTurn") -> None:
        self.running.discard(run)
        if not run.task.cancelled():
            run.task.exception()  # retrieved, even if the caller disconnected and does not await the task

    def begin_shutdown(self) -> None:
        """Limit all turns to `limits.shutdown` seconds from now.

        The limit applies to later turns, too. The server is about to stop.
        """
        if self.ends is None:
            self.ends = asyncio.get_running_loop().time() + self.limits.shutdown
            for run in self.running:
                run.limit(self.limits.shutdown)

    async def close(self) -> None:
        """Wait until all running turns are settled.

        Turns that are still running after `limits.shutdown` seconds are interrupted.
        """
        self.begin_shutdown()
        await asyncio.gather(*(run.task for run in self.running), return_exceptions=True)
        self.stopping.set()
        await asyncio.gather(*self.unsettled, return_exceptions=True)


class RunningTurn:
    """One running turn."""

    def __init__(self, runner: TurnRunner, turn: Turn, stream: bool) -> None:
        self.turn = turn
        self._prompts = turn.prompts
        self._runner = runner
        self._pending = turn.pending
        self.pieces = Pieces()
        """The pieces of the answer, for its caller to read."""
        self._stream = stream
        self._ends = asyncio.get_running_loop().time() + runner.limits.answer
        self._deadline: asyncio.Timeout | None = None
        self._is_stopped = False
        self.answered: Answered | None = None
        """The settled message, even if the model failed; None before."""
        self.task = asyncio.create_task(self._run(), name=f"turn {turn.message_id}")

    async def result(self) -> Answered:
        """Return the settled message.

        Raises:
            UpstreamError: the model failed. The message is settled as failed or interrupted.
            NotFound: the user was deleted meanwhile.
        """
        return await asyncio.shield(self.task)

    def abandon(self) -> None:
        """Limit the turn after its caller disconnected.

        Stop the model if `stop_on_hangup` is set. Otherwise, wait at most `limits.drain` seconds for the rest.
        """
        if self._runner.stop_on_hangup:
            self.stop()
        else:
            self.limit(self._runner.limits.drain)

    def stop(self) -> None:
        """Stop the model. Store and count the part that has arrived."""
        self._is_stopped = True
        self.limit(0)

    def limit(self, seconds: float) -> None:
        """Give the model at most this many seconds from now on."""
        self._ends = min(self._ends, asyncio.get_running_loop().time() + seconds)
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(self._ends)

    async def _run(self) -> Answered:
        try:
            outcome, error = await self._ask()
            try:
                answered = self.answered = await self._settle(outcome)
            except Exception as error:
                failures.log(logger, f"message {self.turn.message_id} could not be settled; retrying", error)
                self._runner.keep_trying(lambda: self._settle_somehow(outcome))
                raise
        finally:
            self.pieces.end()
        if answered is None:
            raise NotFound("The account was deleted meanwhile.")
        if error is not None:
            raise error
        if answered.message.status != "complete" and not is_stopped(answered.message):
            raise UpstreamError("The answer could not be stored as complete. Ask again.")
        return answered

    async def _settle(self, outcome: Outcome) -> Answered | None:
        settle = functools.partial(self._runner.settle, turn=self._pending, outcome=outcome, is_owner=True)
        return await self._runner.database.transaction(settle, repeatable=True)

    async def _settle_somehow(self, outcome: Outcome) -> None:
        async def tokens() -> TokenCounts | None:
            return outcome.tokens

        normally = functools.partial(self._settle, outcome)
        await settlement.settle(
            self._runner.database, self._pending, self._runner.zone, normally, tokens, content=outcome.content
        )

    async def _ask(self) -> tuple[Outcome, UpstreamError | None]:
        heard, reason = Heard(self._room), finish_reasons.ERROR
        try:
            async with asyncio.timeout_at(self._ends) as self._deadline:
                try:
                    reply = await self._reply(heard)
                finally:
                    self._deadline = None
            return await self._outcome("complete", reply, reply.finish_reason), None
        except UpstreamError as failed:
            error = failed
        except TimeoutError:
            error = UpstreamTimeout("The answer was interrupted: there was no more time.", accepted=heard.is_asked)
            reason = finish_reasons.STOPPED if self._is_stopped else ""
        except Exception:
            logger.exception("the upstream failed unexpectedly")
            error = UpstreamError("The model's service failed.", accepted=True)
        partial: Reply | None = error.partial
        if partial is None and heard.completion is not None and error.accepted:
            partial = await openai_upstream.reply(heard.completion, self._prompts)
        return await self._interrupted(partial or Reply("", self.turn.model, None), error, reason)

    async def _reply(self, heard: Heard) -> Reply:
        runner, turn = self._runner, self.turn
        hear = self._hear if self._stream else None
        most = turn.options.get("max_tokens")
        self._prompts = await runner.fitting(turn.prompts, turn.model, int(most) if most else None)
        while True:
            heard.is_asked = True
            try:
                return await runner.upstream.ask(self._prompts, turn.model, hear, heard, turn.options)
            except UpstreamTooLong as error:
                shorter = history.newer_half(self._prompts)
                if error.accepted or len(shorter) == len(self._prompts):
                    raise
                self._prompts = shorter

    async def _interrupted(
        self, partial: Reply, error: UpstreamError, reason: str
    ) -> tuple[Outcome, UpstreamError | None]:
        """Return the outcome of an answer that was stopped or that failed.

        If the service gave a finish reason of its own, use that one.
        """
        is_stopped = reason == finish_reasons.STOPPED
        if not is_stopped and partial.finish_reason not in (None, finish_reasons.STOP):
            reason = partial.finish_reason or reason
        outcome = await self._outcome("interrupted", partial, reason or None)
        if not outcome.content and not error.accepted:
            outcome = replace(outcome, tokens=None)
        if is_stopped:
            return outcome, None
        return (outcome if outcome.content else replace(outcome, status="failed")), error

    async def _outcome(self, status: str, reply: Reply, finish_reason: str | None) -> Outcome:
        content = self._whole(reply.content)
        tokens = reply.tokens or await tokenizer.estimate(self._prompts, content + reply.reasoning)
        return Outcome(status, content, storable(reply.model), tokens, finish_reason, reply.details, reply.cost)

    def _hear(self, piece: str) -> None:
        self.pieces.add(storable(piece))

    async def _room(self) -> None:
        """Wait until the caller has read; abandon the turn otherwise."""
        if not await self.pieces.wait_for_room():
            self.abandon()

    def _whole(self, content: str) -> str:
        """Return the content to store.

        For a stream, this is exactly what the caller is sent: add the rest of the content to the pieces.
        """
        content = storable(content)
        if not self._stream:
            return content
        heard = self.pieces.whole()
        if content.startswith(heard):
            self._hear(content[len(heard) :])
        return self.pieces.whole()


def is_stopped(message: StoredMessage) -> bool:
    """Return whether the caller stopped the answer."""
    return message.status == "interrupted" and message.finish_reason == finish_reasons.STOPPED


async def count_pending(session: AsyncSession) -> int:
    """Return the number of pending messages of all processes."""
    return await session.scalar(select(func.count()).where(Message.status == "pending")) or 0

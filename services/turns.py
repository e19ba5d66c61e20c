"""Answering a chat turn: asks the model with no transaction open, and settles the turn whatever happens.

A turn runs in a task of its own. A caller who hangs up does not stop it: the rest of the answer is awaited, for a
bounded time, so that the usage billed is the usage counted. Turns of a process that died are settled by the next one.
"""

import asyncio
import contextlib
import functools
import logging
import os
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta, tzinfo

import psutil
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock, database_failures
from app.database import Database, Work
from app.errors import DatabaseUnavailable, NotFound, UpstreamError, UpstreamTimeout
from models import Message
from services import chat, tokenizer
from services.chat import Answered, Outcome, Turn
from services.pricing import PriceList
from services.upstream import Upstream

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15.0
MAX_PAUSE_SECONDS = 30.0


@dataclass(frozen=True)
class Limits:
    """Seconds: for a whole answer, for its rest once the caller hung up, and for all of them once the server stops."""

    answer: float = 600.0
    drain: float = 60.0
    shutdown: float = 20.0

    @property
    def stale(self) -> timedelta:
        """The age at which a pending message of another machine cannot be answered any more."""
        return timedelta(seconds=self.answer + 60)


@dataclass
class Turns:
    """All turns of this process that are being answered."""

    database: Database
    upstream: Upstream
    prices: PriceList
    zone: tzinfo
    limits: Limits = field(default_factory=Limits)
    running: set["Run"] = field(default_factory=set)
    unsettled: set[asyncio.Task[None]] = field(default_factory=set)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    ends: float | None = None
    """When the last turn has to end, by the clock of the loop; None while the server is to go on."""

    async def begin(self, name: str, work: Work[Turn | Answered]) -> Turn | Answered:
        """Runs the transaction that begins a turn of this name.

        Where it fails and may have been stored all the same, it is given up as soon as the database answers again.
        """
        try:
            return await self.database.transaction(work, repeatable=True)
        except (*database_failures.FAILURES, DatabaseUnavailable):
            give_up = functools.partial(chat.give_up, turn=name)
            self.keep_trying(lambda: self.database.transaction(give_up, repeatable=True))
            raise

    def keep_trying(self, attempt: Callable[[], Awaitable[object]]) -> None:
        """Tries again and again, with pauses, until it succeeds or the server stops."""
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

    def start(self, turn: Turn, *, stream: bool) -> "Run":
        """Begins to answer a turn."""
        run = Run(self, turn, stream)
        if self.ends is not None:
            run.limit(self.ends - asyncio.get_running_loop().time())
        self.running.add(run)
        run.task.add_done_callback(lambda _task: self._forget(run))
        return run

    def _forget(self, run: "Run") -> None:
        self.running.discard(run)
        if not run.task.cancelled():
            run.task.exception()  # seen, also where the caller hung up and does not look

    def hurry(self) -> None:
        """The server is about to stop: all turns, also those that begin now, have only so much time left."""
        if self.ends is None:
            self.ends = asyncio.get_running_loop().time() + self.limits.shutdown
            for run in self.running:
                run.limit(self.limits.shutdown)

    async def close(self) -> None:
        """Waits for the running turns for a while, then breaks them off; all are settled when this returns."""
        self.hurry()
        await asyncio.gather(*(run.task for run in self.running), return_exceptions=True)
        self.stopping.set()
        await asyncio.gather(*self.unsettled, return_exceptions=True)


class Run:
    """One turn that is being answered."""

    def __init__(self, turns: Turns, turn: Turn, stream: bool) -> None:
        self.turn = turn
        self._turns = turns
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self._received: list[str] = []
        self._stream = stream
        self._ends = asyncio.get_running_loop().time() + turns.limits.answer
        self._deadline: asyncio.Timeout | None = None
        self.task = asyncio.create_task(self._run(), name=f"turn {turn.message_id}")

    async def pieces(self) -> AsyncIterator[str]:
        """The pieces of the answer as they come, with empty ones in long pauses; ends with the answer."""
        while True:
            try:
                piece = await asyncio.wait_for(self._pieces.get(), KEEP_ALIVE_SECONDS)
            except TimeoutError:
                piece = ""
            if piece is None:
                return
            yield piece

    async def result(self) -> Answered:
        """The settled message.

        Raises:
            UpstreamError: the model failed; the message is settled as failed or interrupted.
            NotFound: the user was deleted meanwhile.
        """
        return await asyncio.shield(self.task)

    def abandon(self) -> None:
        """The caller hung up: the answer is awaited for a bounded time only."""
        self.limit(self._turns.limits.drain)

    def limit(self, seconds: float) -> None:
        """From now on the model has at most so much time left."""
        self._ends = min(self._ends, asyncio.get_running_loop().time() + seconds)
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(self._ends)

    async def _run(self) -> Answered:
        turns = self._turns
        try:
            outcome, error = await self._ask()
            try:
                answered = await self._settle(outcome)
            except Exception:
                logger.exception("message %d could not be settled; tried again until it is", self.turn.message_id)
                turns.keep_trying(lambda: self._settle(outcome))
                raise
        finally:
            self._pieces.put_nowait(None)
        if answered is None:
            raise NotFound("The account was deleted meanwhile.")
        if error is not None:
            raise error
        return answered

    async def _settle(self, outcome: Outcome) -> Answered | None:
        turns = self._turns
        work = functools.partial(
            chat.settle,
            message_id=self.turn.message_id,
            turn=self.turn.name,
            outcome=outcome,
            api_url=turns.upstream.api_url,
            prices=turns.prices,
            zone=turns.zone,
        )
        return await turns.database.transaction(work, repeatable=True)

    async def _ask(self) -> tuple[Outcome, UpstreamError | None]:
        turns, turn = self._turns, self.turn
        try:
            async with asyncio.timeout_at(self._ends) as self._deadline:
                try:
                    reply = await turns.upstream.ask(turn.prompts, turn.model, self._hear if self._stream else None)
                finally:
                    self._deadline = None
            tokens = reply.tokens or await tokenizer.estimate(turn.prompts, reply.content)
            return Outcome("complete", reply.content, reply.model, tokens), None
        except UpstreamError as failed:
            error = failed
        except TimeoutError:
            error = UpstreamTimeout("The answer was broken off: there was no more time.", accepted=True)
        content = "".join(self._received)
        counts = await tokenizer.estimate(turn.prompts, content) if error.accepted or content else None
        return Outcome("interrupted" if content else "failed", content, turn.model, counts), error

    def _hear(self, piece: str) -> None:
        self._received.append(piece)
        self._pieces.put_nowait(piece)


def new_name() -> str:
    """A name for a new turn, which says which process answers it."""
    return f"{_process_name()}/{uuid.uuid4()}"


@functools.cache
def _process_name() -> str:
    return f"{socket.gethostname()}/{os.getpid()}/{_started(psutil.Process())}"


def _started(process: psutil.Process) -> str:
    """When a process started, in seconds since the machine did: setting the clock moves both."""
    return f"{process.create_time() - psutil.boot_time():.2f}"


def _is_dead(turn: str | None) -> bool:
    """Whether a turn's process ran on this machine and is gone."""
    host, pid, started, _ = f"{turn}///".split("/")[:4]
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        process = psutil.Process(int(pid))
        return process.status() == psutil.STATUS_ZOMBIE or _started(process) != started
    except psutil.NoSuchProcess:
        return True


async def settle_stale(turns: Turns) -> int:
    """Settles, as failed, pending messages that nobody answers any more: with an estimate of what had been sent.

    Those are the ones of dead processes of this machine, and of any machine's once they are too old.

    Returns:
        How many there were.
    """
    rows = await turns.database.read(_pending)
    oldest = clock.now() - turns.limits.stale
    stale = [row for row in rows if _is_dead(row.turn) or row.created_at is None or row.created_at < oldest]
    for row in stale:
        await turns.database.transaction(functools.partial(_fail, row=row, turns=turns), repeatable=True)
    if stale:
        logger.warning("settled %d messages whose process had died", len(stale))
    return len(stale)


async def keep_settling_stale(turns: Turns, stop: asyncio.Event, every_seconds: float = 60.0) -> None:
    """Does so at once and then again and again until told to stop; after a failure, which is logged, too."""
    while not stop.is_set():
        try:
            await settle_stale(turns)
        except Exception:
            logger.exception("pending messages could not be settled")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), every_seconds)


async def count_pending(session: AsyncSession) -> int:
    """How many messages are pending, of all processes."""
    return await session.scalar(select(func.count()).where(Message.status == "pending")) or 0


async def _pending(session: AsyncSession) -> list[Message]:
    return list(await session.scalars(select(Message).where(Message.status == "pending").order_by(Message.id)))


async def _fail(session: AsyncSession, row: Message, turns: Turns) -> None:
    prompts = await chat.prompts(session, row.conversation_id or "", row.id)
    counts = await tokenizer.estimate(prompts, "")
    outcome = Outcome("failed", "", row.model or "", counts)
    await chat.settle(session, row.id, row.turn or "", outcome, turns.upstream.api_url, turns.prices, turns.zone)

"""Callers who hang up, read late or not at all, and a server that stops: the answer is counted."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from app import clock
from services.chat import pieces, recovery, turns
from services.chat.leases import Lease, Observer
from services.chat.runner import Limits, RunningTurn, TurnRunner
from tests.support.live_chat import (
    ASKED,
    HEARD,
    MODEL,
    PIECES,
    QUESTION,
    Live,
    app_settings,
    ask,
    check,
    events,
    hear,
    is_problem,
    limited,
    live,
    model,
    request,
    until,
)
from tests.support.openai_server import Answer, usage

__all__ = ["app_settings", "live", "model"]
pytestmark = pytest.mark.any_database


async def test_setting_the_clock_does_not_end_a_turn_that_is_being_answered(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.model.answer = Answer(chunks=PIECES, stall_after=1)
    asking = asyncio.create_task(ask(live))
    await until(lambda: bool(live.model.requests))
    at = clock.now()
    for hours in (-1, 1):
        monkeypatch.setattr(clock, "now", lambda hours=hours: at + timedelta(hours=hours))
        for other in (live.app.state.foundation.runner, replace(live.app.state.foundation.runner, lease=Lease())):
            assert await recovery.settle_orphans(other, Observer(other.lease)) == 0
    live.model.release()
    assert (await asking)[1][0] == "done"
    await check(live, "complete", (10, 5, 0))


async def test_when_the_caller_hangs_up_the_rest_is_drained_and_counted(live: Live) -> None:
    live.model.answer = Answer(chunks=PIECES, stall_after=1)
    await hear(live, 1)
    live.model.release()
    assert await check(live, "complete", (10, 5, 0)) == "".join(PIECES)
    assert live.model.requests[0].is_answered


async def test_the_answer_of_a_caller_who_hung_up_is_counted(live: Live) -> None:
    live.model.answer = Answer(content="".join(PIECES), stall_after=0)
    asking = asyncio.create_task(live.client.post(**request(live, stream=False)))
    await until(lambda: bool(live.model.requests))
    asking.cancel()
    await until(lambda: not live.server.server_state.connections)
    live.model.release()
    assert await check(live, "complete", (10, 5, 0)) == "".join(PIECES)


@pytest.mark.parametrize("heard", [0, 2])
async def test_when_the_caller_hangs_up_a_model_that_never_ends_is_left(live: Live, heard: int) -> None:
    live.model.answer = Answer(chunks=PIECES, stall_after=heard)
    async with limited(live, limits=Limits(drain=0.1)):
        await hear(live, heard)
        content = await check(live, "interrupted" if heard else "failed", (ASKED, HEARD[heard], 0), estimated=True)
    assert content == "".join(PIECES[:heard])
    await asyncio.to_thread(live.model.wait_until, lambda: live.model.requests[0].is_left)


async def test_a_caller_who_hung_up_early_does_not_keep_the_model_busy(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = asyncio.Event()

    async def begin(*arguments: Any, **more: Any) -> turns.Turn | turns.Answered:
        await gone.wait()
        return await begin_at_once(*arguments, **more)

    begin_at_once = turns.begin
    monkeypatch.setattr(turns, "begin", begin)
    live.model.answer = Answer(chunks=PIECES, stall_after=0)
    async with limited(live, limits=Limits(drain=0.1)):
        asking = asyncio.create_task(ask(live))
        await until(lambda: bool(live.server.server_state.tasks))
        asking.cancel()
        await until(lambda: not live.server.server_state.connections)
        gone.set()
        await until(lambda: bool(live.model.requests))
        await check(live, "failed", (ASKED, 0, 0), estimated=True)


async def test_an_error_tells_what_was_counted(live: Live) -> None:
    live.model.answer = Answer(chunks=PIECES, usage=usage(190, 50), cumulative_usage=True, die_after=2)
    _, (name, data) = await ask(live)
    assert (name, data["answer"]["status"], data["answer"]["finish_reason"]) == ("error", "interrupted", "error")
    assert (data["answer"]["input_tokens"], data["answer"]["output_tokens"]) == (190, 20)
    await check(live, "interrupted", (190, 20, 0))


async def test_what_was_reported_counts_when_the_time_is_up(live: Live) -> None:
    live.model.answer = Answer(chunks=PIECES, usage=usage(190, 50), cumulative_usage=True, stall_after=2)
    async with limited(live, limits=Limits(answer=1)):
        assert is_problem((await ask(live))[1], 504)
    await check(live, "interrupted", (190, 20, 0))


async def test_a_caller_who_does_not_read_is_dropped_and_counted(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "UNREAD_SECONDS", 0.2)
    words = ["word " * 1_000] * 200
    live.model.answer = Answer(chunks=words)
    run = await started(live)
    await until(lambda: run.pieces.is_dropped or run.task.done())
    assert run.pieces.is_dropped
    assert await check(live, "complete", (10, 5, 0)) == "".join(words)
    assert [piece async for piece in run.pieces.read()] == []


async def test_the_model_waits_for_a_caller_who_reads_late(live: Live) -> None:
    words = ["word " * 1_000] * 200
    live.model.answer = Answer(chunks=words)
    run = await started(live)
    await asyncio.sleep(0.5)
    assert not run.task.done()
    assert len(run.pieces.whole()) < 2 * pieces.MAX_UNREAD
    assert "".join([piece async for piece in run.pieces.read()]) == "".join(words)
    assert await check(live, "complete", (10, 5, 0)) == "".join(words)


async def started(live: Live) -> RunningTurn:
    """A turn that is being answered, and whose pieces are not read."""
    running: TurnRunner = live.app.state.foundation.runner
    question, name = turns.Question(live.caller.id, QUESTION, MODEL), running.lease.new_turn()
    begun = await running.begin(
        name, live.caller.id, lambda session: turns.begin(session, question, name, running.zone)
    )
    assert isinstance(begun, turns.Turn)
    return running.start(begun, stream=True)


async def test_a_server_that_stops_settles_what_it_was_answering(live: Live) -> None:
    live.model.answer = Answer(chunks=PIECES, stall_after=2)
    async with (
        limited(live, limits=Limits(shutdown=0.1)),
        live.client.stream("POST", **request(live)) as answer,
    ):
        heard = events(answer)
        assert (await anext(heard))[0] == "start"
        assert [(await anext(heard))[1]["content"] for _ in range(2)] == list(PIECES[:2])
        await live.app.state.foundation.runner.close()
        assert is_problem(await anext(heard), 504)
    await check(live, "interrupted", (ASKED, HEARD[2], 0), estimated=True)

"""What a run hears of signals."""

import asyncio
import signal
from typing import Any

import pytest

from app import stopping
from app.console import Progress
from app.stopping import Stopped


async def interrupted_twice() -> None:
    with stopping.between_transactions(lambda _progress: None) as listener:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(0.1)
        listener(Progress("adopting", 0, 1))


async def test_two_signals_at_once_stop_a_run_once() -> None:
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
    with pytest.raises(Stopped):
        await interrupted_twice()
    assert failures == []

"""End a program that is interrupted while it starts.

A program imports this module before all others, whose import takes most of the time.
"""

import signal
import sys
from types import FrameType


def end_on_interrupt(program: str) -> None:
    """Make Ctrl-C end the program with one line and exit code 1.

    What the program begins afterwards replaces the handler.
    """

    def end(_number: int, _frame: FrameType | None) -> None:
        sys.exit(f"{program}: stopped before it began")

    signal.signal(signal.SIGINT, end)

"""`python -m benchmarks.constant_turns`: run the server with constant chat turns.

A turn uses neither the database nor the model's service. What is left is the route, and the answer as it is sent.
"""

import sys
from types import SimpleNamespace
from typing import Any

import main
from app import clock
from benchmarks.upstream import PIECES
from services.chat.openai_upstream import OpenAIUpstream
from services.chat.runner import RunningTurn, TurnRunner
from services.chat.tokenizer import TokenCounts
from services.chat.turns import Answered, Turn
from services.chat.upstream import Reply

_PIECE = "A word or two. "
_ANSWER: Any = SimpleNamespace(
    id=2,
    role="assistant",
    content=_PIECE * PIECES,
    model="gpt-4o-mini",
    input_tokens=10,
    output_tokens=PIECES,
    cached_input_tokens=0,
    cost=None,
    finish_reason="stop",
    status="complete",
    created_at=clock.now(),
)


def constant_turns() -> None:
    """Replace the transactions of a turn, and its model."""

    async def begin(_runner: TurnRunner, name: str, user_id: int, _work: Any) -> Turn:
        return Turn(name, user_id, "conversation", 2, "gpt-4o-mini", [{"role": "user", "content": "Hello there"}], 1)

    async def ask(_upstream: OpenAIUpstream, _prompts: Any, model: str, hear: Any, *_more: Any) -> Reply:
        for piece in [_PIECE] * PIECES if hear else []:
            hear(piece)
        return Reply(_ANSWER.content, model, TokenCounts(10, PIECES), "stop")

    async def settle(run: RunningTurn, _outcome: Any) -> Answered:
        return Answered(run.turn.conversation_id, _ANSWER, run.turn.user_message_id)

    TurnRunner.begin = begin  # type: ignore[assignment, method-assign]
    OpenAIUpstream.ask = ask  # type: ignore[assignment, method-assign]
    RunningTurn._settle = settle  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    constant_turns()
    sys.exit(main.main())

"""How an answer ended: the words of all services for it, as those of OpenAI."""

_MAX_LENGTH = 40

STOP, LENGTH, CONTENT_FILTER, REFUSAL, TOOL_CALLS, ERROR = (
    "stop",
    "length",
    "content_filter",
    "refusal",
    "tool_calls",
    "error",
)

# Of an answer that its caller stopped; no service says so.
STOPPED = "stopped"

_REASONS = {
    **dict.fromkeys(("stop", "end_turn", "eos", "eos_token", "stop_sequence", "completed", "complete"), STOP),
    **dict.fromkeys(
        ("length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"), LENGTH
    ),
    **dict.fromkeys(
        (
            "content_filter",
            "content_filtered",
            "content-filter",
            "safety",
            "recitation",
            "blocklist",
            "prohibited_content",
            "spii",
            "sensitive",
            "guardrail_intervened",
            "image_safety",
        ),
        CONTENT_FILTER,
    ),
    "refusal": REFUSAL,
    **dict.fromkeys(("tool_calls", "tool_use", "function_call", "tool_call"), TOOL_CALLS),
    **dict.fromkeys(
        (
            "error",
            "failed",
            "failure",
            "abort",
            "aborted",
            "cancelled",
            "canceled",
            "network_error",
            "timeout",
            "insufficient_system_resource",
            "malformed_function_call",
            "engine_overloaded",
        ),
        ERROR,
    ),
}


def of(word: str) -> str:
    """The common word; the service's own, in lower case and bounded, where there is none."""
    word = word.lower()[:_MAX_LENGTH]
    return _REASONS.get(word, word)

"""Translate the finish reasons of services into OpenAI's.

A reason may be part of a sentence or path, as in Gemini's `content_filter: RECITATION` and `FinishReason.MAX_TOKENS`.
The first known part decides.
"""

import re

_MAX_LENGTH = 40

STOP, LENGTH, CONTENT_FILTER, REFUSAL, TOOL_CALLS, ERROR = (
    "stop",
    "length",
    "content_filter",
    "refusal",
    "tool_calls",
    "error",
)

# The finish reason of an answer that its caller stopped. No service sends this one.
STOPPED = "stopped"

_WORDS = {
    STOP: "stop end_turn eos eos_token eosfound stop_sequence stop_token endoftext completed complete normal",
    LENGTH: "length max_tokens max_output max_output_tokens max_completion_tokens max_new_tokens max_length"
    " model_length token_limit error_limit model_context_window_exceeded context_length_exceeded",
    CONTENT_FILTER: "content_filter content_filtered content-filter content_moderation safety recitation blocklist"
    " prohibited_content spii sensitive guardrail_intervened error_toxic image_safety image_prohibited_content"
    " image_recitation",
    REFUSAL: "refusal",
    TOOL_CALLS: "tool_calls tool_use function_call tool_call",
    ERROR: "error failed failure abort aborted cancelled canceled user_cancel network_error timeout"
    " insufficient_system_resource malformed_function_call malformed_response engine_overloaded",
}
_REASONS = {word: reason for reason, words in _WORDS.items() for word in words.split()}


def of(word: str) -> str:
    """Return OpenAI's finish reason for a service's word.

    Return an unknown word in lower case, cut to 40 characters.
    """
    word = word.lower().strip()
    parts = (word, *re.split(r"[:.\s]+", word))
    return next((_REASONS[part] for part in parts if part in _REASONS), word[:_MAX_LENGTH])

"""Read a model's answer from a Chat Completion, streamed or whole."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from services.chat import finish_reasons, reported_errors
from services.chat.event_streams import Event, Unreadable
from services.usage.reported_usage import Reports

MAX_ANSWER_CHARACTERS = 4 * 2**20
"""Text and reasoning together. A longer answer is cut there, with the finish reason `length`."""

_MAX_NAME = 255

_REASONING = ("reasoning_content", "reasoning", "reasoning_text", "thinking")
_REASONING_PARTS = frozenset({"thinking", "reasoning", "reasoning.text", "reasoning.summary", "thought"})


async def _no_pause() -> None:
    pass


class Heard:
    """The part of an answer that an upstream has received so far.

    The caller of the upstream reads this part if it stops waiting for the rest.
    """

    def __init__(self, room: Callable[[], Awaitable[None]] = _no_pause) -> None:
        """Begin with an empty answer.

        Args:
            room: waits until more of the answer may be read from the service.
        """
        self.completion: Completion | None = None
        self.is_asked = False
        """Whether a request that may be billed is in progress; False before the first request and after a refusal."""
        self.room = room


class Completion:
    """One answer, as far as it has arrived.

    Only the first choice counts. Services number the chunks of the others.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self.usage = Reports()
        self.error: Any = None
        """The error that the service reported, in the service's own form."""
        self.is_truncated = False
        """Whether the answer was longer than `MAX_ANSWER_CHARACTERS`."""
        self.has_ended = False
        """Whether `[DONE]` has arrived."""
        self._texts = {"content": _Text(), "reasoning": _Text()}
        self._size = 0
        self._finish_reason: str | None = None
        self._is_refusal = False
        self._calls_tools = False
        self._messages = 0
        self._objects = 0
        self._other: Mapping[str, Any] | None = None
        self._is_reported = False
        self._is_closed = False
        self._says_more = False

    @property
    def content(self) -> str:
        """The visible text."""
        return self._texts["content"].whole()

    @property
    def reasoning(self) -> str:
        """The model's reasoning, if the service returns it."""
        return self._texts["reasoning"].whole()

    @property
    def is_answered(self) -> bool:
        """Whether the model produced anything."""
        return self._size > 0 or self._calls_tools

    @property
    def is_billed(self) -> bool:
        """Whether the service did billable work: it sent output or reported tokens."""
        reported = self.usage.read(answered=False)
        return self.is_answered or bool(reported.input_tokens or reported.output_tokens or reported.cost)

    @property
    def is_finished(self) -> bool:
        """Whether the service gave a finish reason."""
        return self._finish_reason is not None

    @property
    def is_reported(self) -> bool:
        """Whether usage came with the end of the answer or after it."""
        return self._is_reported

    @property
    def is_whole(self) -> bool:
        """Whether the answer is complete if the body ends here."""
        usage_ends_it = self._is_closed or (self.has_ended and self._is_reported)
        is_one_body = self._objects == 1 and self._messages == 1
        return self.is_finished or self.is_truncated or usage_ends_it or is_one_body

    @property
    def finish_reason(self) -> str | None:
        """`stop`, `length`, `content_filter`, `refusal`, `tool_calls`, `error`, or the service's own word."""
        if self.is_truncated:
            return finish_reasons.LENGTH
        if self._is_refusal and self._finish_reason in (None, finish_reasons.STOP):
            return finish_reasons.REFUSAL
        return self._finish_reason

    def add(self, event: Event) -> str:
        """Read one more object.

        Returns:
            The new visible text.

        Raises:
            Unreadable: the object is not part of a Chat Completion.
        """
        if event.is_end:
            self.has_ended = True
            return ""
        chunk = event.value
        if self.has_ended:
            self._add_report(chunk)
            return ""
        self._objects += 1
        reports = self.usage.add(chunk)
        self.error = self.error or reported_errors.error_in(event.name, chunk)
        if isinstance(model := chunk.get("model"), str) and model.strip():
            self.model = storable(model[:_MAX_NAME])
        if not reported_errors.is_of_answer(chunk):
            self._other = chunk
        choices = chunk.get("choices")
        if choices is not None and not isinstance(choices, list):
            raise Unreadable("choices are not a list")
        read = [] if self.error is not None else choices or []
        new = "".join([self._choice(choice) for choice in read if choice is not None])
        if new:  # an earlier report did not end the answer
            self._is_closed = self._is_reported = False
        self._is_closed = self._is_closed or (reports and not choices and self.is_answered)
        self._is_reported = self._is_reported or (reports and (self.is_finished or not choices))
        return new

    def take_for_error(self) -> None:
        """Take a body's only object for an error.

        It must have the words of an error, be no part of an answer, and report no usage.
        """
        if self._objects == 1 and self._other is not None and not self.is_billed:
            self.error = self.error or (self._other if reported_errors.has_words(self._other) else None)

    def _add_report(self, chunk: Mapping[str, Any]) -> None:
        """Read usage after `[DONE]`, where some services report it.

        If choices follow `[DONE]`, ignore that report and all later ones.
        """
        self._says_more = self._says_more or bool(chunk.get("choices"))
        if not self._says_more:
            self._is_reported = self.usage.add(chunk) or self._is_reported

    def _choice(self, choice: Any) -> str:
        if not isinstance(choice, dict):
            raise Unreadable("a choice is not an object")
        if choice.get("index") not in (None, 0, "0"):
            return ""
        self.error = self.error or reported_errors.error_in("", {"choices": [], "error": choice.get("error")})
        new = self._said(choice.get("delta", choice.get("text")), is_whole=False)
        message = choice.get("message")
        if message is not None:
            new += self._said(message, is_whole=True)
            self._messages += 1
        self._end(choice.get("finish_reason"))
        return new

    def _end(self, reason: Any) -> None:
        """Store the finish reason. A plain `stop` does not replace another reason."""
        if isinstance(reason, dict):  # SGLang's
            reason = reason.get("type")
        if isinstance(reason, str) and reason.lower() not in ("", "null", "none"):
            word = finish_reasons.of(storable(reason))
            if word != finish_reasons.STOP or self._finish_reason is None:
                self._finish_reason = word

    def _said(self, said: Any, *, is_whole: bool) -> str:
        if said is None:
            return ""
        if isinstance(said, str):
            said = {"content": said}
        if not isinstance(said, dict):
            raise Unreadable("a message is not an object")
        content, thought = _content_of(said)
        refusal = said.get("refusal")
        if isinstance(refusal, str) and refusal:
            self._is_refusal = True
            content = content or refusal
        self._is_refusal = self._is_refusal or _has_refusal(said.get("content"))
        self._calls_tools = self._calls_tools or bool(said.get("tool_calls") or said.get("function_call"))
        self._grow("reasoning", thought or _reasoning_of(said), is_whole=is_whole)
        return self._grow("content", content, is_whole=is_whole)

    def _grow(self, kind: str, more: str, *, is_whole: bool) -> str:
        text = self._texts[kind]
        new = text.new_in(more) if is_whole else more
        room = MAX_ANSWER_CHARACTERS - self._size
        if len(new) > room:
            new, self.is_truncated = new[:room], True
        self._size += len(new)
        return text.add(new, is_piece=not is_whole)


class _Text:
    """A text that arrives in pieces.

    A piece may end in the middle of a surrogate pair.
    """

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._length = 0
        self._half = ""
        self._has_pieces = False

    def add(self, new: str, *, is_piece: bool) -> str:
        """Add a piece and return the part that can be stored now."""
        self._has_pieces = self._has_pieces or (is_piece and bool(new))
        new = self._half + new
        self._half = new[-1] if new and "\ud800" <= new[-1] <= "\udbff" else ""
        new = storable(new[: -1 if self._half else None])
        if new:
            self._pieces.append(new)
            self._length += len(new)
        return new

    def whole(self) -> str:
        """Return the whole text."""
        return "".join(self._pieces) + ("\ufffd" if self._half else "")

    def new_in(self, message: str) -> str:
        """Return the new text in a `message`.

        Services send there a piece, the whole text so far, or a repetition of all pieces.
        """
        if len(message) >= self._length:
            message, known = storable(message), self.whole()
            if message.startswith(known):
                return message[len(known) :]
        return "" if self._has_pieces else message


def storable(text: str) -> str:
    """Return the text with characters replaced that databases cannot store.

    These are NUL and unpaired surrogates.
    """
    if "\x00" in text:
        text = text.replace("\x00", "\ufffd")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _content_of(said: Mapping[str, Any]) -> tuple[str, str]:
    """Return the visible text and the reasoning in a message's content."""
    content = said.get("content")
    if content is None:
        return "", ""
    if isinstance(content, str):
        return content, ""
    parts = [content] if isinstance(content, dict) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise Unreadable("content is not text")
    visible = [_text_of(part) for part in parts if part.get("type") not in _REASONING_PARTS]
    thought = [_text_of(part) for part in parts if part.get("type") in _REASONING_PARTS]
    return "".join(visible), "".join(thought)


def _has_refusal(content: Any) -> bool:
    return isinstance(content, list) and any(isinstance(part, dict) and part.get("refusal") for part in content)


def _reasoning_of(said: Mapping[str, Any]) -> str:
    for name in _REASONING:
        if said.get(name) and (text := _text_of({"text": said[name]})):
            return text
    details = said.get("reasoning_details")
    return _text_of({"text": details}) if isinstance(details, list) else ""


def _text_of(part: Mapping[str, Any]) -> str:
    """Return the text of a part, or of the parts inside it."""
    for name in ("text", "thinking", "reasoning", "summary", "content", "refusal"):
        value = part.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, dict):
            return _text_of(value)
        if isinstance(value, list):
            return "".join(_text_of(inner) for inner in value if isinstance(inner, dict))
    return ""

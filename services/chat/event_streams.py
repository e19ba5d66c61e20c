"""Parse a service's answer into JSON objects.

An answer is server-sent events, one JSON body, or JSON lines. The bytes determine the form, not the `Content-Type`:
some services answer a request for a stream with a body, and vice versa. A body that begins with a tag is a web page,
not an answer. Other text is an event named `error`, whose plain text is kept. The parser skips harmless input:
comments, `id`, `retry`, empty or non-JSON data, and values that are not objects.
Events: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

MAX_EVENT_BYTES = 64 * 2**20
"""The size of one event or body: enough for 4 MB of text in its longest escaped form, and the JSON around the text."""

_BOM = b"\xef\xbb\xbf"
_FIELDS = (b"data", b"event", b"id", b"retry")
_LINE = re.compile(rb"[{\[:]|(%s)\b" % b"|".join(_FIELDS))
"""How a line of events or JSON begins."""
_MAX_TEXT_BYTES = 4096
_DECODER = json.JSONDecoder(strict=False)
_LENIENT = json.JSONDecoder(strict=False, parse_int=float)


class Unreadable(ValueError):
    """The data is neither an event nor JSON, or is too large."""


class WebPage(Unreadable):
    """The body is a web page, such as a login page."""


class Event(NamedTuple):
    """One JSON object, with the name of its event, if any."""

    name: str
    value: dict[str, Any]
    is_end: bool = False


END = Event("", {}, is_end=True)
"""`[DONE]`."""


class Lines:
    """Split bytes into lines at CR, LF or CRLF.

    Line ends are recognized across reads. The time is linear in the number of bytes.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._after_cr = False
        self._is_first = True

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that these bytes complete.

        Raises:
            Unreadable: a line is longer than `MAX_EVENT_BYTES`.
        """
        if not data:
            return []
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r") if data else False
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        first, *more = data.split(b"\n")
        self._rest += first
        if len(self._rest) > MAX_EVENT_BYTES:
            raise Unreadable("an event is too large")
        if not more:
            return []
        lines = [self.rest(), *more[:-1]]
        self._rest += more[-1]
        return lines

    def rest(self) -> bytes:
        """Return the bytes since the last end of a line."""
        line = bytes(self._rest)
        self._rest.clear()
        if self._is_first:
            self._is_first = False
            line = line.removeprefix(_BOM)
        return line


class Events:
    """Read the events of one answer."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._name = ""
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._has_begun = False
        self._text = b""
        """The first line, if it is neither an event's nor JSON."""
        self._is_empty = True
        self._is_bare = False
        """Whether the pending lines are JSON without `data:`."""

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield the events that these bytes complete.

        Raises:
            Unreadable: an object is not JSON, or is larger than `MAX_EVENT_BYTES`.
            WebPage: the first line that is not blank begins with a tag.
        """
        for line in self._lines.feed(data):
            yield from self._line(line)

    def end(self) -> Iterator[Event]:
        """Yield the events that end with the last byte.

        An incomplete object is skipped. If there was no event at all, the body's text is an error.

        Raises:
            WebPage: as for `feed`.
        """
        try:
            yield from self._line(self._lines.rest())
            yield from self._dispatch()
        except WebPage:
            raise
        except Unreadable:
            return
        if self._text and self._is_empty:
            yield Event("error", {"message": self._text.decode("utf-8", "replace")})

    @property
    def _is_error(self) -> bool:
        """Whether the event is named `error`; its data may be plain text."""
        return self._name.lower() == "error"

    def _line(self, line: bytes) -> Iterator[Event]:
        self._check_begin(line)
        name, colon, value = line.partition(b":")
        name = name.strip()
        is_field = colon and name in _FIELDS
        if self._is_bare and is_field:
            self._take()  # an incomplete bare object
        if not line:
            if not self._is_bare:
                yield from self._dispatch()
                self._name = ""
        elif self._is_bare or line.lstrip()[:1] in (b"{", b"["):
            yield from self._data(line, is_bare=True)
        elif name == b"data":
            yield from self._data(value.removeprefix(b" "), is_bare=False)
        elif name == b"event":
            self._name = value.strip().decode("utf-8", "replace")

    def _check_begin(self, line: bytes) -> None:
        if not self._has_begun and (begin := line.lstrip()):
            self._has_begun = True
            if begin.startswith(b"<"):
                raise WebPage("the body is a web page")
            is_cut = any(start.startswith(begin) for start in (_BOM, *_FIELDS))
            if not is_cut and not _LINE.match(begin):
                self._text = begin[:_MAX_TEXT_BYTES]

    def _data(self, value: bytes, *, is_bare: bool) -> Iterator[Event]:
        """Read a line of data: an object or part of one.

        A whole object is read at once, since some services omit the empty line after it.
        """
        if not self._pending:
            found = _read(value)
            if found is not None:
                yield from self._events(found)
                return
            if not value.strip():
                return
        self._pending.append(value)
        self._pending_bytes += len(value)
        self._is_bare = is_bare
        if self._pending_bytes > MAX_EVENT_BYTES:
            raise Unreadable("an event is too large")

    def _take(self) -> list[bytes]:
        lines, self._pending, self._pending_bytes, self._is_bare = self._pending, [], 0, False
        return lines

    def _dispatch(self) -> Iterator[Event]:
        lines = self._take()
        if not lines:
            return
        whole = _read(b"\n".join(lines))
        for found, line in [(whole, b"")] if whole is not None else [(_read(line), line) for line in lines]:
            if found is not None:
                yield from self._events(found)
            elif line.lstrip().startswith(b"{"):
                raise Unreadable("an event is not JSON")
            elif self._is_error:
                yield Event(self._name, {"message": line.decode("utf-8", "replace")})

    def _events(self, found: Any) -> Iterator[Event]:
        self._is_empty = False
        if found is END:
            yield END
            return
        for value in found if isinstance(found, list) else [found]:
            if isinstance(value, dict):
                yield Event(self._name, value)
            elif self._is_error:
                yield Event(self._name, {"message": str(value)})


def _read(text: bytes) -> Any:
    """Return a JSON value or `END`; None for anything else."""
    bare = text.strip()
    if bare[:8].strip(b"\"'").upper().startswith(b"[DONE]"):
        return END
    decoded = bare.decode("utf-8", "replace")
    for decoder in (_DECODER, _LENIENT):  # a number with thousands of digits must not lose the rest
        try:
            return decoder.decode(decoded)
        except RecursionError:
            return None
        except ValueError:
            continue
    return None

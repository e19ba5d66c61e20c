"""The bytes of an answer become its objects, wherever the reads fall and whatever stands between."""

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chat.completions import Completion
from services.chat.event_streams import MAX_EVENT_BYTES, Events, Unreadable

A: dict[str, Any] = {
    "choices": [{"index": 0, "delta": {"content": "Hell\u00f6 \U0001f984\u2028"}, "finish_reason": None}]
}
B: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def usage(prompt: int, completion: int) -> dict[str, Any]:
    report = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"choices": [], "usage": report}


def data(value: Any) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


DONE = b"data: [DONE]\n\n"
STREAM = data(A) + data(B) + data(usage(190, 100)) + DONE


def read(parts: Sequence[bytes]) -> list[Any]:
    """The values of all events; the end is `END`."""
    events = Events()
    found = [event for part in parts for event in events.feed(part)] + list(events.end())
    return ["END" if event.is_end else event.value for event in found]


FORMS = {
    "LF": STREAM,
    "CRLF": STREAM.replace(b"\n", b"\r\n"),
    "CR": STREAM.replace(b"\n", b"\r"),
    "a BOM": b"\xef\xbb\xbf" + STREAM,
    "no space": STREAM.replace(b"data: ", b"data:"),
    "a space before": STREAM.replace(b"data", b" data"),
    "no empty lines": STREAM.replace(b"\n\n", b"\n"),
    "no end of the last line": STREAM.rstrip(),
    "comments": STREAM.replace(b"data:", b": OPENROUTER PROCESSING\n\ndata:"),
    "ids and pauses": b"retry: 3000\n\nid: 1\n\n" + STREAM.replace(b"data:", b"id: 7\nretry: 1\ndata:"),
    "names": STREAM.replace(b"data:", b"event: message\ndata:"),
    "empty data": STREAM.replace(b"data: {", b"data:\n\ndata: \n\ndata: {"),
    "null": STREAM.replace(b"data: {", b"data: null\n\ndata: {"),
    "words": STREAM.replace(b"data: {", b"data: ping\n\ndata: [HEARTBEAT]\n\ndata: 7\n\ndata: {"),
    "unknown fields": STREAM.replace(b"data: {", b"foo: bar\nbaz\ndata: {"),
    "JSON lines": STREAM.replace(b"data: ", b"").replace(b"\n\n", b"\n"),
    "JSON over several lines": b"".join(
        b"".join(b"data: %b\n" % line for line in json.dumps(value, indent=1).encode().split(b"\n")) + b"\n"
        for value in (A, B, usage(190, 100))
    )
    + DONE,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("size", [1, 2, 7, 10**6])
def test_every_form_of_a_stream_is_read_wherever_it_is_split(form: bytes, size: int) -> None:
    parts = [form[start : start + size] for start in range(0, len(form), size)]
    assert read(parts) == [A, B, usage(190, 100), "END"]


def test_one_body_is_read_in_any_layout() -> None:
    body, indented = json.dumps(A), json.dumps(A, indent=2)
    for layout in (body, indented, indented.replace("\n", "\r\n\r\n"), f"\n {body}", f"{indented}\n\n"):
        assert read([layout.encode()]) == [A], layout
    assert read([json.dumps([{"error": {"code": 400}}]).encode()]) == [{"error": {"code": 400}}]


def test_an_error_without_data_in_front_is_read() -> None:
    assert read([data(A) + b'{"error": {"message": "no"}}\n']) == [A, {"error": {"message": "no"}}]


def test_the_name_of_an_event_is_kept_with_its_data() -> None:
    events = Events()
    found = list(events.feed(b'event: error\ndata: {"message": "no"}\n\ndata: {"a": 1}\n\n'))
    assert [(event.name, event.value) for event in found] == [("error", {"message": "no"}), ("", {"a": 1})]


@pytest.mark.parametrize("garbage", [b"data: {garbage\n\n", b'data: {"a": \n\n', b"data: {\ndata: {\n\n"])
def test_an_object_that_is_not_json_is_unreadable(garbage: bytes) -> None:
    with pytest.raises(Unreadable):
        read([data(A), garbage])


@pytest.mark.parametrize("cut", [b'data: {"choices": [{"ind', b"data: {", b"dat", b"data:", b"data: [DO"])
def test_an_object_that_is_cut_off_at_the_end_is_skipped(cut: bytes) -> None:
    assert read([data(A) + cut]) == [A]


@pytest.mark.parametrize(
    "odd",
    [
        b'data: {"a": ' + b"9" * 10_000 + b"}\n\n",
        b'data: {"a": "\t\x01"}\n\n',
        b'data: {"a": NaN, "b": 1e999}\n\n',
        b'data: {"a": "\xff\xfe"}\n\n',
    ],
)
def test_an_odd_value_does_not_lose_its_object(odd: bytes) -> None:
    [value] = read([odd])
    assert "a" in value


def test_nesting_without_end_is_unreadable() -> None:
    with pytest.raises(Unreadable):
        read([b'data: {"a":' + b"[" * 100_000 + b"\n\n"])


def test_one_event_is_bounded_and_reading_it_takes_linear_time() -> None:
    started = time.process_time()
    events = Events()
    assert list(events.feed(b'data: {"a": "')) == []
    for _ in range(MAX_EVENT_BYTES // 65_536 - 1):
        assert list(events.feed(b"x" * 65_536)) == []
    with pytest.raises(Unreadable):
        list(events.feed(b"x" * 65_536))
    assert time.process_time() - started < 5


NOISE = st.sampled_from(
    [
        b": ping\n\n", b"data:\n\n", b"retry: 1\n", b"id: 1\n\n", b"data: null\n\n", b'data: {"type":"ping"}\n\n',
        b"\n", b"\r\n", b"event: ping\n", b'data: {"choices":null}\n\n', b'data: {"choices":[]}\n\n',
        b'data: {"choices":[{"index":0}]}\n\n', b'data: {"choices":[{"index":0,"delta":null}]}\n\n',
        b'data: {"choices":[null],"usage":null}\n\n', b'data: {"usage":{}}\n\n', b"data: 7\n\n", b"foo\n",
    ]
)  # fmt: skip
REPORTS = st.lists(st.tuples(st.integers(1, 500), st.integers(0, 500)), min_size=1, max_size=4).map(
    lambda counts: sorted(counts, key=lambda count: count[1])
)


@given(REPORTS, st.lists(NOISE, max_size=8), st.lists(st.integers(1, 40), min_size=1, max_size=10), st.data())
def test_noise_and_splits_leave_the_fullest_usage(
    counts: list[tuple[int, int]], noise: list[bytes], sizes: list[int], choose: st.DataObject
) -> None:
    prompt = counts[-1][0]
    reports = [data(usage(prompt, completion)) for _, completion in counts]
    empty = [data(usage(0, 0))] * choose.draw(st.integers(0, 2))
    repeated = [report for report in reports for _ in range(choose.draw(st.integers(1, 2)))]
    events = choose.draw(st.permutations([data(A), *repeated, *empty, *noise]))
    stream = b"".join([*events, data(B)]) + choose.draw(st.sampled_from([b"", DONE]))
    completion, reader, start = Completion("m"), Events(), 0
    for number in range(len(stream)):
        size = sizes[number % len(sizes)]
        for event in reader.feed(stream[start : start + size]):
            completion.add(event)
        start += size
    for event in reader.end():
        completion.add(event)
    expected = (prompt, counts[-1][1] or None)
    assert completion.usage.read(answered=True)[:2] == expected
    assert completion.content == A["choices"][0]["delta"]["content"]
    assert (completion.is_whole, completion.finish_reason) == (True, "stop")


@given(st.integers(0, len(STREAM)))
def test_a_stream_that_is_cut_is_whole_once_it_said_how_it_ended(length: int) -> None:
    completion, reader = Completion("m"), Events()
    for event in [*reader.feed(STREAM[:length]), *reader.end()]:
        completion.add(event)
    said_how = length >= len(data(A) + data(B)) - 2  # all but the empty line
    assert completion.is_whole is said_how
    assert (completion.usage.read(answered=True)[:2] == (190, 100)) is (length >= STREAM.index(b"\n\ndata: [DONE]"))


BYTES = st.lists(
    st.binary(max_size=20)
    | NOISE
    | st.sampled_from([b"data: ", b"{", b"}", b"[", b"]", b'"', b":", b"\r", b"\n", data(A), data(B), DONE])
    | st.sampled_from([STREAM[start : start + 30] for start in range(0, len(STREAM), 13)]),
    max_size=30,
)


@given(BYTES)
def test_no_bytes_raise_anything_but_unreadable(parts: list[bytes]) -> None:
    completion, reader = Completion("m"), Events()
    try:
        for part in parts:
            for event in reader.feed(part):
                completion.add(event)
        for event in reader.end():
            completion.add(event)
    except Unreadable:
        pass
    completion.content.encode()
    completion.usage.read(answered=completion.is_answered)

"""Lines of libraries that would mislead an operator."""

import logging

from app import logs


def test_no_line_promises_that_a_second_interrupt_does_more() -> None:
    words = "Waiting for connections to close. (CTRL+C to force quit)"
    record = logs.make_record("uvicorn.error", logging.INFO, "server.py", 1, words, (), None)
    assert record.getMessage() == "Waiting for connections to close."

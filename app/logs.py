"""Log to standard error, as text or as JSON lines.

Each line has the id of its request. The record factory and the hooks replace every error with a stand-in of
`app.redaction`.
"""

import json
import logging
import sys
import threading
import time
import warnings
from types import TracebackType
from typing import Any, Literal, TextIO

from app import redaction, request_ids

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class JsonFormatter(logging.Formatter):
    """Format one JSON object a line.

    Its keys are time (UTC), level, logger, message, those of `extra`, and a traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=lambda value: str(_shown(value)), ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """Format a line as time (UTC), level, logger, message, and [request id]."""

    def __init__(self) -> None:
        super().__init__("%(asctime)sZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the line without a traceback."""
        request_id = getattr(record, "request_id", None)
        return super().formatMessage(record) + (f" [{request_id}]" if request_id else "")


def make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """Make a record with its request's id, if any, and redacted errors."""
    record = logging.LogRecord(*args, **kwargs)
    if request_id := request_ids.current.get():
        record.request_id = request_id
    _redact(record)
    return record


def _redact(record: logging.LogRecord) -> None:
    if record.exc_info and record.exc_info[1] is not None:
        error = redaction.redacted(record.exc_info[1])
        record.exc_info = (type(error), error, error.__traceback__)
    if isinstance(record.args, tuple):
        record.args = tuple(_shown(value) for value in record.args)
    elif record.args:
        record.args = {name: _shown(value) for name, value in record.args.items()}
    if isinstance(record.msg, BaseException):
        record.msg = f"{type(record.msg).__name__}: {redaction.text_of(record.msg)}"
    if record.name == "uvicorn.error" and isinstance(record.msg, str):
        record.msg = record.msg.removesuffix(" (CTRL+C to force quit)")  # a second one changes nothing
    if record.name == "asyncio" and isinstance(record.msg, str):
        record.msg = record.msg.partition("\n")[0]  # the lines below it contain the `repr` of tasks and their errors


def _shown(value: Any) -> Any:
    return redaction.redacted(value) if isinstance(value, BaseException) else value


def configure(level: str, log_format: Literal["text", "json"]) -> None:
    """Configure the root logger and the hooks of this process."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.setLogRecordFactory(make_record)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("aiosqlite", "alembic.runtime.migration", "python_multipart"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.raiseExceptions = False  # a record that cannot be formatted would be written with its arguments
    warnings.showwarning = _log_warning
    if sys.excepthook is sys.__excepthook__:  # a debugger or a test runner may have set its own
        sys.excepthook = _log_uncaught
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _log_uncaught_of_thread
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _log_unraisable


_python = logging.getLogger("python")


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, Exception):
        _python.critical("an unexpected error ended the process", exc_info=(kind, error, traceback))
    else:
        sys.__excepthook__(kind, error, traceback)


def _log_uncaught_of_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        _python.error("an unexpected error ended a thread", exc_info=ended.exc_value)


def _log_unraisable(ignored: "sys.UnraisableHookArgs") -> None:
    if ignored.exc_value is not None:
        where = getattr(ignored.object, "__qualname__", type(ignored.object).__qualname__)
        _python.error("an error in %s was ignored", where, exc_info=ignored.exc_value)


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _python.warning("%s at %s:%d", category.__name__, filename, lineno)

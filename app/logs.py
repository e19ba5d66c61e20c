"""Logging: one handler on standard error, as text or as one JSON object a line; each with the id of its request."""

import json
import logging
import time
from typing import Any, Literal

from app import request_ids

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, what was passed as `extra`, and a traceback."""

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
        return json.dumps(entry, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """One line for people: time (UTC), level, logger, message, and the id of the request in brackets."""

    def __init__(self) -> None:
        super().__init__("%(asctime)sZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line without a traceback."""
        request_id = getattr(record, "request_id", None)
        return super().formatMessage(record) + (f" [{request_id}]" if request_id else "")


def make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """A record that knows to which request it belongs, if to any."""
    record = logging.LogRecord(*args, **kwargs)
    if request_id := request_ids.current.get():
        record.request_id = request_id
    return record


def configure(level: str, log_format: Literal["text", "json"]) -> None:
    """Sets up the root logger of this process; calling it again replaces what was there."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.setLogRecordFactory(make_record)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("aiosqlite", "alembic.runtime.migration", "httpx2", "httpcore2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)

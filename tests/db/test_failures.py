"""How failures of repeated work are logged."""

import logging

import pytest
from sqlalchemy.exc import OperationalError

from app.db import failures
from app.errors import DatabaseUnavailable

logger = logging.getLogger(__name__)

OUTAGES = {
    "refused": ConnectionRefusedError(111, "Connection refused"),
    "known already": DatabaseUnavailable("The database is unavailable: try again later."),
    "gone": OperationalError("SELECT secret", {}, ConnectionResetError("reset"), connection_invalidated=True),
}


@pytest.mark.parametrize("name", OUTAGES)
def test_a_failed_database_takes_one_line_of_the_log(name: str, caplog: pytest.LogCaptureFixture) -> None:
    failures.log(logger, "periodic work failed", OUTAGES[name])
    [record] = caplog.records
    assert record.getMessage().startswith("periodic work failed: ")
    assert (record.exc_info, record.getMessage().count("\n")) == (None, 0)
    assert "secret" not in caplog.text


def test_an_error_of_the_code_has_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    failures.log(logger, "periodic work failed", RuntimeError("a bug"))
    [record] = caplog.records
    assert record.exc_info is not None

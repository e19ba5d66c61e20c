"""What several tests of accounts use."""

import pytest

from app.db.database import Database
from services.accounts import logins
from tests.support import accounts
from tests.support.accounts import Caller


@pytest.fixture
def failed_logins_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for what keeps attackers waiting."""
    monkeypatch.setattr(logins, "FAILED_LOGIN_SECONDS", 0.05)


@pytest.fixture
async def admin(database: Database) -> Caller:
    """An admin."""
    return await accounts.add(database, "root", role="admin")

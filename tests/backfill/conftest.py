"""What tests of archives share."""

from pathlib import Path

import pytest

from tests.support import archives
from tests.support.archives import Everyone


@pytest.fixture
def everyone(database_url: str) -> Everyone:
    """Users with messages of every kind in 2024-01 to 2024-03."""
    return archives.fill(database_url)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory for archives, which does not exist yet."""
    return tmp_path / "files"

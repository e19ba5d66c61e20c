"""Whatever is sent: no error of our own, no status and no body that `/openapi.json` does not tell of.

`SCHEMATHESIS_EXAMPLES=250 pytest tests/http/test_schemathesis.py` sends some 20,000 requests, and takes an hour.
"""

import asyncio
import logging
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from app import clock
from app.db.database import Database
from app.security import tokens
from tests.support import accounts, commands, invariants, programs
from tests.support.accounts import SECRET_KEY

pytestmark = pytest.mark.long

logger = logging.getLogger(__name__)

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "3"))
PHASES = "examples,coverage,fuzzing,stateful" if EXAMPLES > 10 else "fuzzing"
RULES = "positive_data_acceptance"
"""Left out: what a schema cannot say, such as that a user is there, is refused all the same."""

PROGRAM = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"


async def token_of(database: Database, role: str) -> str:
    caller = await accounts.add(database, role, role)
    return "Bearer " + tokens.issue(caller.id, SECRET_KEY, clock.now(), timedelta(days=1))


def explore(address: str, directory: Path, token: str | None) -> None:
    """Sends requests of every kind and demands that the answers are as documented."""
    arguments = [
        "run",
        f"{address}/openapi.json",
        f"--max-examples={EXAMPLES}",
        f"--phases={PHASES}",
        "--seed=1",
    ]
    arguments += [f"--exclude-checks={RULES}", "--continue-on-failure", "--no-color", "--generation-deterministic"]
    arguments += ["--header", f"Authorization: {token}"] if token else []
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [sent] = re.findall(r"(\d+) generated", done.stdout)
    logger.warning("%s requests, %s a token", sent, "with" if token else "without")
    assert int(sent) > EXAMPLES


@pytest.mark.parametrize(("kind", "role"), [("sqlite", None), ("postgresql", "service")], indirect=["kind"])
async def test_every_answer_is_as_documented(
    database: Database, database_url: str, tmp_path: Path, role: str | None
) -> None:
    token = await token_of(database, role) if role else None
    main = programs.install(tmp_path / "project") / "main.py"
    settings = {"DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY, "LOG_LEVEL": "WARNING"}
    with programs.serving(main, tmp_path, commands.free_port(), settings) as address:
        await asyncio.to_thread(explore, address, tmp_path, token)
    await invariants.check(database)

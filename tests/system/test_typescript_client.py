"""A TypeScript client that is generated from `/openapi.json` compiles, and works with the server."""

import json
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from app import BASE_DIR
from tests.support import commands

pytestmark = pytest.mark.long

PACKAGES = {"openapi-typescript": "7.13.0", "openapi-fetch": "0.17.0", "typescript": "5.9.3", "@types/node": "20.19.25"}
"""From npm; this is the one place that names their versions."""

OPTIONS = "--strict --noUncheckedIndexedAccess --module nodenext --target es2022 --types node --skipLibCheck"
DEADLINE_SECONDS = 120


@pytest.fixture(params=["sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    """The client does not depend on the database."""
    return str(request.param)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with the program and the packages, outside of the repository."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on this machine")
    directory = tmp_path / "client"
    directory.mkdir()
    description = {"private": True, "type": "module", "dependencies": PACKAGES}
    (directory / "package.json").write_text(json.dumps(description), encoding="utf-8")
    shutil.copy(BASE_DIR / "tests" / "typescript" / "client.ts", directory)
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    done = subprocess.run(install, cwd=directory, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install the packages: {done.stdout}{done.stderr}")
    return directory


def run(project: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_generated_client_compiles_and_works(project: Path, database_url: str, tmp_path: Path) -> None:
    with commands.server(database_url, tmp_path) as address:
        description = httpx.get(f"{address}/openapi.json", trust_env=False).text
        (project / "openapi.json").write_text(description, encoding="utf-8")
        run(project, "node_modules/.bin/openapi-typescript", "openapi.json", "-o", "api.ts")
        run(project, "node_modules/.bin/tsc", *OPTIONS.split(), "client.ts")
        said = run(project, "node", "client.js", address).splitlines()
    assert said == [
        "registered ayu user",
        "refused 401 Unauthorized 0",
        "invalid [ 'email' ]",
        "me true 0",
        "whole complete You said: Hello",
        "streamed You said: And again | complete true",
    ]

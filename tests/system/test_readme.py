"""The README's quickstart is true: its commands are run, and answer as it says."""

import itertools
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app import BASE_DIR
from tests.support import programs
from tests.support.accounts import SECRET_KEY

BLOCK = re.compile(r"^```(sh|json)\n(.*?)^```", re.MULTILINE | re.DOTALL)
VARYING = {"conversation_id", "created_at", "month"}


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Of a server as the quickstart starts it, but for its port, database and key."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    settings = {"PORT": str(port), "DATABASE_URL": f"sqlite:///{tmp_path / 'app.db'}", "SECRET_KEY": SECRET_KEY}
    environment = {name: value for name, value in os.environ.items() if name not in ("WORKERS", "HOST")} | settings
    with subprocess.Popen([sys.executable, BASE_DIR / "main.py"], env=environment, cwd=tmp_path) as server:
        try:
            programs.wait_until_ready(f"http://127.0.0.1:{port}", server)
            yield port
        finally:
            server.terminate()


def _quickstart() -> Iterator[tuple[str, Any]]:
    text = (BASE_DIR / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## Quickstart") : text.index("To use a real model")]
    blocks = BLOCK.findall(section)
    for (language, command), (following, answer) in itertools.pairwise(blocks):
        if language == "sh" and following == "json":
            yield command, json.loads(answer)


def _fixed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: "varies" if name in VARYING else _fixed(item) for name, item in value.items()}
    return [_fixed(item) for item in value] if isinstance(value, list) else value


def test_the_quickstart_answers_as_the_readme_says(port: int) -> None:
    steps = list(_quickstart())
    assert len(steps) == 3
    script = "\n".join(f"{command}\necho" for command, _ in steps).replace("localhost:8000", f"127.0.0.1:{port}")
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line]
    assert [_fixed(answer) for answer in answers] == [_fixed(answer) for _, answer in steps]


def test_every_setting_of_the_example_is_in_the_readme() -> None:
    readme = (BASE_DIR / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"^([A-Z_]+)=", (BASE_DIR / ".env.example").read_text(encoding="utf-8"), re.MULTILINE):
        assert f"`{name}`" in readme

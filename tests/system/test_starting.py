"""Programs that are interrupted while they start."""

import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.support import commands


@pytest.mark.parametrize("program", ["main.py", "migrate_token_data.py"])
@pytest.mark.sampled(1)
def test_an_interrupted_start_says_one_line(program: str, tmp_path: Path) -> None:
    process = commands.start([program], tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/app.db")
    while not any("pydantic_core" in each.path for each in psutil.Process(process.pid).memory_maps()):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    ended = commands.finish(process)
    name = "foundation-be" if program == "main.py" else program
    assert (ended.code, ended.out, ended.err) == (1, "", f"{name}: stopped before it began\n")

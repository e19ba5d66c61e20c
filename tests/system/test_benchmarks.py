"""The benchmark runs, and takes away what it says; how fast anything is, is not for tests."""

import json
import subprocess
import sys
from pathlib import Path

from app import BASE_DIR


def test_every_row_is_measured_on_both_databases(tmp_path: Path) -> None:
    report_file = tmp_path / "bench.json"
    printed = _run("benchmarks", "--size", "smoke", "--json", str(report_file))
    report = json.loads(report_file.read_text(encoding="utf-8"))
    rows = {kind: _rows(report, kind) for kind in ("SQLite", "PostgreSQL")}
    assert len(rows["SQLite"]) == 18
    assert rows["PostgreSQL"] - rows["SQLite"] == {("64 writers of one user's month", "of 64 users")}
    assert rows["SQLite"] <= rows["PostgreSQL"]
    assert len([line for line in printed.splitlines() if line.startswith("| ")]) == 1 + 18 + 19
    assert all(sample > 0 for row in report["figures"] for sample in row["ours"]["samples"])


def test_the_limits_of_the_databases_are_measured() -> None:
    lines = _run("benchmarks.limits", "--messages", "8", "--repeats", "1").splitlines()
    assert [line.split(" | ")[1] for line in lines] == ["SQLite"] * 3 + ["PostgreSQL"] * 3


def test_others_are_measured_while_attacks_go_on() -> None:
    rows = [line for line in _run("benchmarks.attacked", "--size", "smoke").splitlines() if line.startswith("| GET")]
    assert len(rows) == 2 * 5


def _run(module: str, *flags: str) -> str:
    command = [sys.executable, "-m", module, *flags]
    ended = subprocess.run(command, cwd=BASE_DIR, capture_output=True, text=True, timeout=150)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def _rows(report: dict[str, list[dict[str, str]]], kind: str) -> set[tuple[str, str]]:
    return {(row["what"], row["floor_is"]) for row in report["figures"] if row["database"] == kind}

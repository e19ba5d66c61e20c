"""The benchmark runs, and takes away what it says; how fast anything is, is not for tests."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import BASE_DIR
from benchmarks.callers import Findings
from benchmarks.mixed import Outcome

pytestmark = pytest.mark.long


def test_every_row_is_measured_on_both_databases(tmp_path: Path) -> None:
    report_file = tmp_path / "bench.json"
    printed = _run("benchmarks", "--size", "smoke", "--json", str(report_file))
    report = json.loads(report_file.read_text(encoding="utf-8"))
    rows = {kind: _rows(report, kind) for kind in ("SQLite", "PostgreSQL")}
    assert len(rows["SQLite"]) == 39
    assert rows["PostgreSQL"] - rows["SQLite"] == {("64 writers of one user's month", "of 64 users")}
    assert rows["SQLite"] <= rows["PostgreSQL"]
    assert len([line for line in printed.splitlines() if line.startswith("| ")]) == 1 + 39 + 40
    assert all(sample > 0 for row in report["figures"] for sample in row["ours"]["samples"])


def test_the_limits_of_the_databases_are_measured() -> None:
    lines = _run("benchmarks.limits", "--messages", "8", "--repeats", "1").splitlines()
    assert [line.split(" | ")[1] for line in lines] == ["SQLite"] * 3 + ["PostgreSQL"] * 3


def test_others_are_measured_while_attacks_go_on() -> None:
    rows = [line for line in _run("benchmarks.attacked", "--size", "smoke").splitlines() if line.startswith("| GET")]
    assert len(rows) == 2 * 5


def test_a_peer_that_cannot_be_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    sizes = ("--repeats", "1", "--seconds", "0.01", "--messages", "50")
    printed = _run("benchmarks.peers", str(tmp_path), *sizes, "--json", str(tmp_path / "bench.json"))
    assert [line.split(" ")[2] for line in printed.splitlines() if line.startswith("not measured: ")] == [
        "litellm",
        "open_webui",
    ]
    rows = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert len(rows) == len([line for line in printed.splitlines() if line.startswith("| ")]) - 2 == 4 * 8 + 1


@pytest.mark.long
def test_a_mixed_load_leaves_nothing_wrong() -> None:
    printed = _run("benchmarks.mixed", "--minutes", "0.1", "--callers", "8")
    assert printed.count("--verify: exit code 0") == 2
    assert "WRONG" not in printed


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"findings": Findings(wrong=["GET /ready: 503"])}, "1 × GET /ready: 503"),
        ({"memory": [100.0] * 6 + [111.0] * 3}, "memory grew"),
        ({"verified": 1}, "--verify ended with exit code 1"),
        ({"ended": -9}, "the server ended with exit code -9"),
        ({"memory": [100.0] * 6 + [109.0] * 3}, None),
    ],
)
def test_a_mixed_load_reports_what_is_wrong(changes: dict[str, Any], problem: str | None) -> None:
    good: dict[str, Any] = {"findings": Findings(), "memory": [100.0] * 9, "verified": 0, "ended": 0}
    assert Outcome(**good | changes).problems(minutes=1) == ([problem] if problem else [])


def test_a_mixed_load_notes_every_5xx() -> None:
    findings = Findings()
    for status in (200, 204, 401, 404, 500, 503):
        findings.check("GET /", httpx.Response(status), 404)
    assert findings.wrong == ["GET /: 500", "GET /: 503"]


def _run(module: str, *flags: str) -> str:
    command = [sys.executable, "-m", module, *flags]
    ended = subprocess.run(command, cwd=BASE_DIR, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr
    return ended.stdout


def _rows(report: dict[str, list[dict[str, str]]], kind: str) -> set[tuple[str, str]]:
    return {(row["what"], row["floor_is"]) for row in report["figures"] if row["database"] == kind}

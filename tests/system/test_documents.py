"""The documents for contributors keep up with the code."""

import re
import subprocess
from pathlib import Path

import pytest

from app import BASE_DIR
from tools import prose

DOCUMENTS = (
    "CONTRIBUTING.md",
    "SECURITY.md",
    "README.md",
    "docs/architecture.md",
    "docs/operations.md",
    "docs/migration.md",
    "docs/migration.id.md",
)
PACKAGES = ("app", "routers", "services")
FILE = re.compile(r"`([\w./]+\.(?:py|md))`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")


def sources() -> set[str]:
    return {path.name for folder in (*PACKAGES, "models", "tests") for path in (BASE_DIR / folder).rglob("*.py")}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_names_exists(document: str) -> None:
    text = (BASE_DIR / document).read_text(encoding="utf-8")
    named = set(FILE.findall(text))
    missing = {name for name in named if not (BASE_DIR / name).exists() and name not in sources()}
    assert not missing
    links = [(BASE_DIR / document).parent / target for target in LINK.findall(text)]
    assert [target for target in links if not target.exists()] == []


def test_the_architecture_names_every_module() -> None:
    text = (BASE_DIR / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = {word.rpartition("/")[2].removesuffix(".py") for word in re.findall(r"`([\w./]+)`", text)}
    modules = {path.stem for folder in PACKAGES for path in (BASE_DIR / folder).rglob("*.py")} - {"__init__"}
    assert modules - named == set()


def test_no_file_is_longer_than_the_rule() -> None:
    text = (BASE_DIR / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (most,) = re.findall(r"never over (\d+)", text)
    folders = (*PACKAGES, "models", "benchmarks", "tools", "tests")
    paths = [*BASE_DIR.glob("*.py"), *(path for folder in folders for path in (BASE_DIR / folder).rglob("*.py"))]
    lengths = {str(path.relative_to(BASE_DIR)): path.read_bytes().count(b"\n") for path in paths}
    assert {path: length for path, length in lengths.items() if length > int(most)} == {}


def test_every_decision_has_all_its_parts() -> None:
    folder = BASE_DIR / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    decisions = sorted(folder.glob("0*.md"))
    assert decisions
    for path in decisions:
        text = path.read_text(encoding="utf-8")
        title = re.match(rf"# {int(path.name[:4])}\. (.+)\n\nStatus: [^·\n]+ · \d{{4}}-\d\d-\d\d", text)
        assert title, path.name
        assert f"[{title[1]}]({path.name})" in index
        assert re.findall(r"^## (\w+)", text, re.M)[:3] == ["Context", "Decision", "Consequences"], path.name


def test_make_help_names_every_target() -> None:
    text = (BASE_DIR / "Makefile").read_text(encoding="utf-8")
    targets = set(text.split(".PHONY: ")[1].splitlines()[0].split()) - {"help", "clean"}
    # A run of `make -C` makes the makes below it print the directories that they enter.
    command = ["make", "-s", "--no-print-directory", "-C", str(BASE_DIR), "help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {line.split()[1] for line in done.stdout.splitlines()} == targets


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        ('"""Whoever asks is told."""\n', 2),
        ("x = 1  # nobody\n  # else\n", 1),
        ('raise ValueError(f"{x} broke off")\n', 1),
        ('"""Say in far more than the twelve words that fit into one first line."""\n', 1),
        ('"""Return the count."""\n', 0),
    ],
)
def test_banned_phrases_are_found(tmp_path: Path, text: str, findings: int) -> None:
    path = tmp_path / "module.py"
    path.write_text(text, encoding="utf-8")
    assert len(list(prose.check(path, prose.phrases()))) == findings

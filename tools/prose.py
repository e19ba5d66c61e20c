"""Report banned phrases, long docstring summaries, and long test names.

`tools/phrases.txt` lists the phrases, which are searched in docstrings, comments, messages and documents: a regular
expression, a tab, and the replacement.
"""

import ast
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PHRASES = PROJECT / "tools" / "phrases.txt"

# Words in the first line of a docstring.
MAX_SUMMARY_WORDS = 12
# Characters of a test's name, without `test_`.
MAX_TEST_NAME = 60

_PROSE = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

Finding = tuple[int, str]


def phrases() -> dict[re.Pattern[str], str]:
    """Return each banned phrase with its replacement."""
    lines = (line for line in PHRASES.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#"))
    pairs = (line.split("\t") for line in lines)
    return {re.compile(rf"\b(?:{phrase})\b", re.IGNORECASE): instead for phrase, instead in pairs}


def check(path: Path, banned: dict[re.Pattern[str], str]) -> Iterator[Finding]:
    """Yield the line and description of each finding in a file."""
    for line, text in _texts(path):
        for phrase, instead in banned.items():
            for found in phrase.finditer(text):
                at = line + text[: found.start()].count("\n")
                yield at, f"{' '.join(found[0].split())!r}: write {instead}"
    if path.suffix == ".py":
        yield from _long_summaries(path)


def _texts(path: Path) -> Iterator[Finding]:
    if path.suffix == ".md":
        yield 1, path.read_text(encoding="utf-8")
        return
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type in _PROSE:
                yield token.start[0], token.string


def _long_summaries(path: Path) -> Iterator[Finding]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            words = len(text.splitlines()[0].split())
            if words > MAX_SUMMARY_WORDS:
                yield node.body[0].lineno, f"the docstring's first line has {words} words: {MAX_SUMMARY_WORDS} at most"


def _long_test_names(path: Path) -> Iterator[Finding]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            length = len(node.name.removeprefix("test_"))
            if length > MAX_TEST_NAME:
                yield node.lineno, f"the test's name has {length} characters: {MAX_TEST_NAME} at most"


def _pending() -> tuple[str, ...]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    return tuple(project["tool"]["prose"]["pending"])


def main(arguments: list[str]) -> int:
    """Check these files, or all of the repository; return the exit code."""
    tracked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.md"]
    names = arguments or subprocess.run(tracked, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.split()
    banned, pending, failed = phrases(), _pending(), False
    for name in names:
        found = [] if name.startswith(pending) else list(check(PROJECT / name, banned))
        if name.startswith("tests/") and name.endswith(".py"):
            found += _long_test_names(PROJECT / name)
        for line, message in found:
            failed = True
            print(f"{name}:{line}: {message}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

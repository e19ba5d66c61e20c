"""Write the settings into README.md and `.env.example`: `python -m app.setting_docs`."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from zoneinfo import ZoneInfo

from pydantic.fields import FieldInfo

from app import BASE_DIR
from app.settings import Settings

README = BASE_DIR / "README.md"
EXAMPLE = BASE_DIR / ".env.example"
_TABLE = re.compile(r"^\| name \| default \| meaning \|\n(?:\|.*\n)+", re.MULTILINE)
_WIDTH = 120


def readme(text: str) -> str:
    """Return the text of README.md with the current table of settings."""
    table = "\n".join(_rows()) + "\n"
    replaced, count = _TABLE.subn(lambda _: table, text)
    if count != 1:
        raise ValueError(f"README.md has {count} tables of settings: leave one, with | name | default | meaning |")
    return replaced


def example() -> str:
    """Return the text of `.env.example`."""
    return "\n\n".join(_paragraphs()) + "\n"


def _rows() -> Iterator[str]:
    yield "| name | default | meaning |"
    yield "| --- | --- | --- |"
    for name, field in Settings.model_fields.items():
        shown = _default(field)
        yield f"| `{name.upper()}` | {f'`{shown}`' if shown else 'empty'} | {field.description} |"


def _paragraphs() -> Iterator[str]:
    yield "# Copy to .env beside main.py. Every setting, with its default; an empty value means the default."
    for name, field in Settings.model_fields.items():
        comment = textwrap.wrap((field.description or "").replace("`", ""), _WIDTH - 2, break_long_words=False)
        yield "\n".join([*(f"# {line}" for line in comment), f"{name.upper()}={_default(field)}"])


def _default(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | str | Path | ZoneInfo):
        return str(value)
    return ""  # None, no items, or a secret


def main() -> None:
    """Write both files."""
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
    EXAMPLE.write_text(example(), encoding="utf-8")


if __name__ == "__main__":
    main()

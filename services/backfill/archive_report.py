"""Report what was archived or imported, as text or JSON."""

from dataclasses import dataclass, field
from typing import Any

from app.console import PlainConsole
from services.backfill.archive_files import WHOLE, Writer


@dataclass
class Archived:
    """Count what a run archived."""

    messages: int = 0
    size_bytes: int = 0
    files: list[str] = field(default_factory=list)

    def add_file(self, writer: Writer) -> None:
        """Add a file that is finished."""
        if writer.committed.messages:
            self.files.append(f"{writer.name}{WHOLE}")
            self.size_bytes += writer.committed.size_bytes


@dataclass
class Imported:
    """Count what a run imported."""

    messages: int = 0
    files: list[str] = field(default_factory=list)
    users_gone: int = 0
    """Messages whose user is deleted: they are not imported."""
    content_erased: int = 0
    """Messages whose conversation is deleted: only their figures are imported."""
    new_ids: int = 0
    """Messages whose id another message has meanwhile."""
    files_skipped: list[str] = field(default_factory=list)
    """Files that are imported already, or belong to another database."""
    files_missing: list[str] = field(default_factory=list)
    """Archives of this database that were not found."""


Moved = Archived | Imported


def moved_as_json(moved: Moved, seconds: float) -> dict[str, Any]:
    """Return the JSON object that `--json` prints."""
    return {**vars(moved), "seconds": round(seconds, 3)}


def show_moved(moved: Moved, seconds: float) -> None:
    """Print the report as text.

    Raises:
        OSError: standard output is closed.
    """
    console = PlainConsole()
    done = "archived" if isinstance(moved, Archived) else "imported"
    for name, value in vars(moved).items():
        title = f"messages {done}" if name == "messages" else name.replace("_", " ")
        shown = ", ".join(value) or "none" if isinstance(value, list) else f"{value:,}"
        console.print(f"{title}: {shown}")
    console.print(f"seconds: {seconds:.1f}")

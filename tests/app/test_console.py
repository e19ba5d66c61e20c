"""Progress on a terminal: all of it fits a narrow one."""

import io

from rich.console import Console

from app import console
from app.console import Progress


def test_the_progress_bar_fits_60_columns() -> None:
    screen = io.StringIO()
    narrow = Console(file=screen, width=60, force_terminal=True, color_system=None)
    with console._bar(narrow) as bar:
        listener = console.BarListener(bar)
        for done in (0, 12_345_678):
            listener(Progress("comparing", done, 123_456_789))
        bar.tasks[0].fields["speed"] = "123,456"
        narrow.print(bar.get_renderable())
    lines = [line.rstrip() for line in screen.getvalue().splitlines() if "12345678/123456789" in line]
    assert lines
    for line in lines:
        assert "comparing " in line
        assert len(line) <= 60
    assert any("123,456/s" in line for line in lines)

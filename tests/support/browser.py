"""A real browser, where the machine has Chromium."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needed = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
"""Marks a test that opens a page."""

_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
    *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--dump-dom"),
)


def browse(url: str, directory: Path, virtual_milliseconds: int | None = 10_000) -> tuple[str, list[str]]:
    """Opens a page in a browser that reaches this machine alone: what is on it, and what its console says.

    Args:
        url: the page.
        directory: for the browser's profile.
        virtual_milliseconds: the time of the page, which stands still while it is loaded; None: until it is loaded.
    """
    budget = [] if virtual_milliseconds is None else [f"--virtual-time-budget={virtual_milliseconds}"]
    command = [str(CHROMIUM), *_FLAGS, f"--user-data-dir={directory / 'profile'}", *budget, url]
    environment = os.environ | {"HOME": str(directory)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

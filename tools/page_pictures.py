"""Take the pictures of `/app` in `docs/page/`, in Chromium.

Run `python -m tools.page_pictures ADDRESS USERNAME PASSWORD`, for an admin of a server with some usage.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

DIRECTORY = Path(__file__).parents[1] / "docs" / "page"
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1100, "height": 900}, "locale": "en-US"},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1100, "height": 900}, "locale": "id-ID"},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "locale": "en-US"},
}
PAGES = ("usage", "chat", "everyone", "users", "models", "health")


def main(address: str, username: str, password: str) -> None:
    """Take a picture of each page in each look."""
    DIRECTORY.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for look in LOOKS:
            _take(chromium, look, address, username, password)
        chromium.close()


def _take(chromium: Browser, look: str, address: str, username: str, password: str) -> None:
    page = chromium.new_context(reduced_motion="reduce", **LOOKS[look]).new_page()
    page.goto(address)
    page.fill("[name=username]", username)
    _save(page, f"login-{look}")
    page.fill("[name=password]", password)
    page.press("[name=password]", "Enter")
    page.wait_for_selector("nav")
    for name in PAGES:
        page.goto(f"{address}/app#/{name}")
        page.wait_for_timeout(100)
        page.wait_for_selector("main:not([aria-busy]) h1")
        if name == "chat":
            page.fill("textarea", "How many tokens is this?")
            page.press("textarea", "Enter")
            page.wait_for_selector("article.assistant .quiet")
        _save(page, f"{name}-{look}")


def _save(page: Page, name: str) -> None:
    path = DIRECTORY / f"{name}.png"
    page.screenshot(path=path)
    Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(path, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

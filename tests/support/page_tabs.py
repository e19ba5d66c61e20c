"""A tab of a browser in which `/app` is open."""

from typing import Any

from tests.support.accounts import PASSWORD

LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1200, "height": 900}, "locale": "en-US"},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1200, "height": 900}, "locale": "id-ID"},
    "phone": {"color_scheme": "light", "viewport": {"width": 360, "height": 740}, "locale": "en-GB"},
}


def submit(page: Any, name: str, password: str) -> None:
    """Fills in the form, and sends it."""
    page.fill("[name=username]", name)
    page.fill("[name=password]", password)
    page.press("[name=password]", "Enter")


class Tab:
    """A page, with all that the browser complains about."""

    def __init__(self, chromium: Any, address: str, look: str = "light") -> None:
        self.context = chromium.new_context(**LOOKS[look])
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self._address = address

    def log_in(self, name: str) -> None:
        self.page.goto(self._address)
        submit(self.page, name, PASSWORD)
        self.page.wait_for_selector("nav")

    def open(self, place: str) -> None:
        """Opens one of its pages, and waits until it is complete."""
        self.page.goto(f"{self._address}/app#{place}")
        self.wait()

    def wait(self) -> None:
        self.page.wait_for_timeout(50)
        self.page.wait_for_selector("main:not([aria-busy]) h1")

    def table(self, caption: str) -> list[list[str]]:
        """The cells of a table."""
        rows = self.page.locator("table", has=self.page.locator("caption", has_text=caption)).locator("tbody tr")
        return [row.locator("th, td").all_text_contents() for row in rows.all()]

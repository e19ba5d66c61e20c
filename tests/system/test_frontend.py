"""The calls of the earlier backend's frontend, made by a page of another origin in a real browser."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support import browser, commands, openai_server
from tests.support.openai_server import OpenAIServer

PAGE = Path(__file__).parents[1] / "support" / "frontend.html"
STEPS = re.findall(r"^  async (\w+)\(\) \{", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


DEADLINE_SECONDS = 100.0


class Page(ThreadingHTTPServer):
    """Serves the page, and hears which steps succeeded."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.steps: list[str] = []
        self.has_ended = threading.Event()

    @property
    def origin(self) -> str:
        """Another one than the backend's."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers `end` once the page has sent its steps."""

    server: Page

    def do_GET(self) -> None:
        if self.path == "/end":
            self.server.has_ended.wait(DEADLINE_SECONDS)
        is_page = self.path.startswith("/?")
        self.send_response(200 if is_page else 204)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(PAGE.read_bytes() if is_page else b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.steps = body.decode().splitlines()
        self.server.has_ended.set()
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def page() -> Iterator[Page]:
    """The server of the page."""
    with Page() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.has_ended.set()
            server.shutdown()
            thread.join()


@pytest.mark.any_database
@browser.needed
def test_every_call_of_the_frontend_works(database_url: str, page: Page, model: OpenAIServer, tmp_path: Path) -> None:
    llm = {"LLM_BASE_URL": model.url, "LLM_API_KEY": openai_server.KEY, "LLM_MODEL": "gpt-4o"}
    with commands.server(database_url, tmp_path, CORS_ORIGINS=page.origin, **llm) as backend:
        _, console = browser.browse(f"{page.origin}/?backend={backend}", tmp_path, None)
    assert page.steps == [*STEPS, "done"]
    assert console == []
    assert len(STEPS) > 10

"""Start servers in separate processes: the product, its floor, and a model."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from app import BASE_DIR
from app.settings import Settings
from benchmarks.databases import SECRET_KEY

_DEADLINE_SECONDS = 60.0


@dataclass(frozen=True)
class Server:
    """Hold a server process and its address.

    The server may not listen yet. Leaving the context terminates the process.
    """

    address: str
    process: "subprocess.Popen[bytes]"

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def wait_until_ready(self) -> str:
        """Return the address as soon as the server is ready.

        Raises:
            RuntimeError: the server exited, or was not ready within 60 s.
        """
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.address}/ready", timeout=5):
                    return self.address
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.01)
        raise RuntimeError("the server did not become ready")


def started(url: str, *arguments: str, **settings: str) -> Server:
    """Start a server on a database.

    Args:
        url: the URL of the database.
        *arguments: the arguments of Python, by default `main.py`.
        **settings: further environment variables.
    """
    port = free_port()
    names = {name.upper() for name in Settings.model_fields}
    environment = {name: value for name, value in os.environ.items() if name.upper() not in names}
    # These override the settings of an existing `.env`.
    environment |= {"WORKERS": "1", "HOST": "127.0.0.1", "USAGE_TIMEZONE": "UTC", "CORS_ORIGINS": ","}
    environment |= {"DATABASE_URL": url, "SECRET_KEY": SECRET_KEY, "PORT": str(port), "LOG_LEVEL": "WARNING"}
    environment |= {"LLM_BASE_URL": "", "LOG_FORMAT": "text"} | settings
    command = [sys.executable, *(arguments or ("main.py",))]
    return Server(f"http://127.0.0.1:{port}", subprocess.Popen(command, cwd=BASE_DIR, env=environment))


@contextlib.contextmanager
def model(pause_seconds: float | None = None) -> Iterator[str]:
    """Start the model's service, and yield its address.

    Args:
        pause_seconds: the pause between two pieces; None for the usual one.
    """
    command = [sys.executable, "-m", "benchmarks.upstream", *([] if pause_seconds is None else [str(pause_seconds)])]
    with subprocess.Popen(command, cwd=BASE_DIR, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])

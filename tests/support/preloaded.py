"""Python that has imported the product's packages already, and forks: starting a program takes a third of the time.

As a program (`python preloaded.py`) it follows the orders of `Popen`. It imports nothing of the product itself, which
each program imports from its own directory and with its own settings. `launching` forks the scripts of this directory
with the product imported, and set to small steps. The processes of `multiprocessing`'s fork server are no children of
the test: it could neither wait for them nor read what they say.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

# All but prometheus_client, which reads its settings when it is imported.
PACKAGES = (
    *("aiohttp", "aiosqlite", "alembic.command", "alembic.config", "asyncpg", "email_validator", "fastapi.responses"),
    *("genai_prices", "httptools", "jose.jwt", "multiprocessing", "passlib.context", "passlib.hash", "psutil"),
    *("pydantic_settings", "python_multipart", "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.sqlite"),
    *("sqlalchemy.ext.asyncio", "tenacity", "uvicorn", "uvloop"),
)
_CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
_lock = threading.Lock()
_servers: list[socket.socket] = []


class Popen(subprocess.Popen[str]):
    """A process of `python SCRIPT …`: a child of this one, which can be waited for, killed and read as any other."""

    def _execute_child(self, args: Any, *others: Any) -> None:
        cwd, env, pipes = others[4], others[5], others[9:15]
        order = {"arguments": [str(word) for word in args[1:]], "directory": str(cwd), "environment": env}
        self.pid = _fork(order, [pipes[0], pipes[3], pipes[5]])
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def _fork(order: dict[str, Any], standard: list[int]) -> int:
    prctl = ctypes.CDLL(None).prctl
    with _lock:
        server = _server()
        prctl(_CHILD_SUBREAPER, 1)  # so that a grandchild whose parent ends becomes a child
        try:
            socket.send_fds(server, [json.dumps(order).encode()], standard)
            return int(server.recv(100))
        finally:
            prctl(_CHILD_SUBREAPER, 0)


def _server() -> socket.socket:
    """The connection to the process that forks."""
    if not _servers:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        atexit.register(process.wait)
        atexit.register(ours.close)  # at which it ends
        _servers.append(ours)
    return _servers[0]


def _serve(orders: socket.socket) -> list[str]:
    """Fork by order until there are no more; return the arguments of the program that a forked process is to be."""
    while True:
        order, standard, _, _ = socket.recv_fds(orders, 200_000, 3)
        if not order:
            return []
        reading, writing = os.pipe()
        parent = os.fork()
        if parent == 0:
            if pid := os.fork():
                os.write(writing, str(pid).encode())
                os._exit(0)
            orders.close()
            return _become(json.loads(order), standard)
        os.waitpid(parent, 0)  # its child has another parent now
        orders.send(os.read(reading, 100))
        for number in (*standard, reading, writing):
            os.close(number)


def _become(order: dict[str, Any], standard: list[int]) -> list[str]:
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
    os.closerange(3, 256)
    os.chdir(order["directory"])
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    warnings.simplefilter("default", ResourceWarning)  # PYTHONWARNINGS was read long ago
    arguments: list[str] = order["arguments"]
    return arguments


if __name__ == "__main__":
    gc.disable()
    for name in PACKAGES:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    sys.argv = _serve(socket.socket(fileno=int(sys.argv[1])))
    if sys.argv:
        sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
        runpy.run_path(sys.argv[0], run_name="__main__")

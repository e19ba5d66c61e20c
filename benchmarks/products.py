"""Install and start the products that `benchmarks.peers` compares.

Each peer is installed from PyPI into a virtual environment of its own, and stores in a database of its own.
"""

import contextlib
import itertools
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
import uuid
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app import clock
from benchmarks import databases, load, servers
from benchmarks.servers import Server
from benchmarks.stages import Stage
from benchmarks.turns import turns

USERS = 32
# LiteLLM needs Prisma's query engine to use a database. This variable names the program; it is Prisma's own.
ENGINE = "PRISMA_QUERY_ENGINE_BINARY"
_START_SECONDS = 300
_MODEL = "gpt-4o-mini"
_QUESTION = "Hello there"
_KEY = "sk-bench"
_COPY = """
    INSERT INTO chat_message SELECT (jsonb_populate_record(message, jsonb_build_object(
        'id', message.id || '-' || number, 'created_at', {start} + number % 28 * 86400 + 43200))).*
    FROM chat_message AS message, generate_series(1, {many}) AS number WHERE user_id = '{user}'
    LIMIT {many} - (SELECT count(*) FROM chat_message WHERE user_id = '{user}')
"""


@dataclass(frozen=True)
class Product:
    """Hold a running product and its requests.

    `chat` returns endless requests of streamed or whole turns. `usage` holds the requests for usage by what they read.
    `stored` returns the number of answers that the product has stored, or None if it stores none.
    """

    name: str
    server: Server
    chat: Callable[[bool], Iterator[bytes]]
    usage: dict[str, bytes] = field(default_factory=dict)
    stored: Callable[[], int | None] = lambda: None


@dataclass(frozen=True)
class Setup:
    """Hold what a peer needs to be installed, started and filled."""

    directory: Path
    version: str
    database: str
    model: str
    messages: int
    stack: contextlib.ExitStack


def ours(stage: Stage, model: str, stack: contextlib.ExitStack) -> Product:
    """Start this product, as an operator starts it."""
    settings = {"LLM_BASE_URL": model, "LLM_API_KEY": "none", "LLM_MODEL": _MODEL}
    server = stack.enter_context(servers.started(stage.url, **settings))
    server.wait_until_ready()
    writers = stage.users.writers[:USERS]
    tokens = [databases.token(user) for user in writers]
    reader, now = databases.token(stage.users.usual), clock.now()
    usage = {
        f"the sums of a month of {stage.usual:,} messages": load.request("GET", "/auth/me", reader),
        f"the days of a month of {stage.usual:,} messages": load.request(
            "GET", f"/auth/token-stats/monthly/{now.year}/{now.month}/daily", reader
        ),
    }
    count = f"SELECT count(*) FROM messages WHERE role = 'assistant' AND output_tokens > 0 AND user_id IN {writers}"
    return Product(
        name="this product",
        server=server,
        chat=lambda stream: itertools.cycle(turns(tokens, USERS, stream=stream)),
        usage=usage,
        stored=lambda: int(_sql(stage.url, count)),
    )


def litellm(setup: Setup) -> Product:
    """Start LiteLLM; its database needs Prisma's query engine."""
    engine = os.environ.get(ENGINE)
    home = _installed(setup, "litellm", [f"litellm[proxy]=={setup.version}", *(["prisma"] if engine else [])])
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": _KEY}
    if engine:
        schema = next(home.glob("lib/python*/site-packages/litellm/proxy/schema.prisma"))
        _run([home / "bin/prisma", "generate", "--schema", schema], PATH=f"{home}/bin:{os.environ['PATH']}")
        environment["DATABASE_URL"] = _new_database(setup.database, "litellm")
    config = setup.directory / "litellm.json"
    model = {"model": f"openai/{_MODEL}", "api_base": setup.model, "api_key": "none"}
    config.write_text(json.dumps({"model_list": [{"model_name": _MODEL, "litellm_params": model}]}))
    arguments = [f"--config={config}", "--telemetry=False", "--num_workers=1", "--host=127.0.0.1", "--port"]
    server = _started(setup, [home / "bin/litellm", *arguments], "/health/readiness", environment)
    key = _asked(server, "/key/generate", _KEY, {"user_id": "bench"})["key"] if engine else _KEY

    def chat(stream: bool) -> Iterator[bytes]:
        asked = {"model": _MODEL, "messages": [{"role": "user", "content": _QUESTION}], "stream": stream}
        return itertools.repeat(load.request("POST", "/v1/chat/completions", key, json.dumps(asked).encode()))

    days = f"{clock.now():start_date=%Y-%m-01&end_date=%Y-%m-28}"
    usage = {"the days": load.request("GET", f"/user/daily/activity?{days}", key)} if engine else {}
    return Product(f"LiteLLM {setup.version}{'' if engine else ' without a database'}", server, chat, usage)


def open_webui(setup: Setup) -> Product:
    """Start Open WebUI in its slim form, whose packages its wheel lists."""
    home = _installed(setup, "open-webui", ["--no-deps", f"open-webui=={setup.version}"])
    slim = next(home.glob("lib/python*/site-packages/requirements-slim.txt"))
    _run([home / "bin/pip", "install", "--quiet", "--requirement", slim])
    url = _new_database(setup.database, "open_webui")
    environment = {
        "DATABASE_URL": url,
        "DATA_DIR": str(setup.directory / "open-webui-data"),
        "WEBUI_SECRET_KEY": databases.SECRET_KEY,
        "USE_SLIM_DOCKER": "true",
        "OFFLINE_MODE": "true",
        "GLOBAL_LOG_LEVEL": "WARNING",
        "BYPASS_MODEL_ACCESS_CONTROL": "true",
        "ENABLE_OLLAMA_API": "false",
        "OPENAI_API_BASE_URL": setup.model,
        "OPENAI_API_KEY": "none",
        "OPENAI_API_CONFIGS": json.dumps({"0": {"enable": True, "model_ids": [_MODEL]}}),
    }
    arguments = ["serve", "--host=127.0.0.1", "--port"]
    server = _started(setup, [home / "bin/open-webui", *arguments], "/ready", environment)
    person = {"name": "bench", "email": "admin@example.com", "password": "bench-bench"}
    admin = _asked(server, "/api/v1/auths/signup", "", person)["token"]
    added = [
        _asked(server, "/api/v1/auths/add", admin, person | {"email": f"user{i}@example.com", "role": "user"})
        for i in range(USERS + 1)
    ]
    tokens = [user["token"] for user in added]

    def chat(stream: bool) -> Iterator[bytes]:
        return (_new_chat(token, stream) for token in itertools.cycle(tokens[:USERS]))

    reader, token = added[USERS]["id"], tokens[USERS]
    load.run(server.address, (_new_chat(token, stream=False) for _ in range(20)))
    start = int(clock.now().replace(day=1, hour=0, minute=0, second=0).timestamp())
    _sql(url, _COPY.format(start=start, many=setup.messages, user=reader))
    _sql(url, "ANALYZE")
    path = f"/api/v1/users/usage?start_date={start}&end_date={start + 31 * 86400}"
    if (read := _asked(server, path, token)["totals"]["messages"]) != setup.messages:
        raise RuntimeError(f"its user has {read} messages")
    count = "SELECT count(*) FROM chat_message WHERE role = 'assistant' AND done AND (usage->>'output_tokens')::int > 0"
    return Product(
        f"Open WebUI {setup.version}",
        server,
        chat,
        {"the days": load.request("GET", path, token)},
        lambda: int(_sql(url, count)),
    )


def _new_chat(token: str, stream: bool) -> bytes:
    """Return the request of a first turn, as the frontend sends it.

    The server stores the turn. Without the frontend's `session_id` the response comes when the turn is done, instead
    of over a web socket.
    """
    question, answer = str(uuid.uuid4()), str(uuid.uuid4())
    message = {"id": question, "parentId": None, "role": "user", "content": _QUESTION, "timestamp": int(time.time())}
    asked = {"model": _MODEL, "messages": [{"role": "user", "content": _QUESTION}], "stream": stream}
    asked |= {"id": answer, "parent_id": None, "user_message": message | {"childrenIds": [], "models": [_MODEL]}}
    return load.request("POST", "/api/chat/completions", token, json.dumps(asked).encode())


def _installed(setup: Setup, name: str, packages: Sequence[str]) -> Path:
    """Return a virtual environment with these packages."""
    home = setup.directory / name
    if not (home / "bin/pip").exists():
        venv.create(home, with_pip=True)
    _run([home / "bin/pip", "install", "--quiet", *packages])
    return home


def _run(command: Sequence[str | Path], **settings: str) -> str:
    """Return what a program prints.

    Raises:
        RuntimeError: the program failed.
    """
    environment = {**os.environ, **settings}
    ended = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {ended.stderr.strip().rpartition(chr(10))[2]}")
    return ended.stdout.strip()


def _started(setup: Setup, command: Sequence[str | Path], ready: str, environment: dict[str, str]) -> Server:
    """Start a peer, and wait until it is ready.

    Raises:
        RuntimeError: the peer exited, or was not ready in time.
    """
    port = servers.free_port()
    log = setup.directory / f"{Path(command[0]).name}.log"
    inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    process = subprocess.Popen(
        [*command, str(port)],
        cwd=setup.directory,
        env=inherited | environment,
        stdin=subprocess.DEVNULL,
        stdout=setup.stack.enter_context(log.open("wb")),
        stderr=subprocess.STDOUT,
    )
    server = setup.stack.enter_context(Server(f"http://127.0.0.1:{port}", process))
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(server.address + ready, timeout=30).close()
            return server
        time.sleep(0.5)
    raise RuntimeError(f"it did not become ready; its log is {log}")


def _asked(server: Server, path: str, key: str, body: dict[str, str] | None = None) -> Any:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(server.address + path, data, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def _new_database(url: str, name: str) -> str:
    """Create a database in the same PostgreSQL, and return its URL."""
    _sql(url, f"CREATE DATABASE {name}")
    before, _, options = url.partition("?")
    return f"{before.rpartition('/')[0]}/{name}?{options}"


def _sql(url: str, statement: str) -> str:
    return _run([databases.program("psql"), url, "--no-psqlrc", "--tuples-only", "--quiet", "--command", statement])

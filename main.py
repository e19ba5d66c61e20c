"""The application, its lifespan, and `python main.py`: bring the database up to date, then serve."""

import asyncio
import gc
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import uvicorn
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from uvicorn.supervisors import Multiprocess

from app import database, logs, migrations
from app.database import Database
from app.errors import ConfigurationError
from app.settings import BASE_DIR, Settings
from routers import accounts, chat, conversations, operation, problems, usage, usage_breakdowns
from routers.dependencies import State
from services import pricing, turns, upstream, usage_zone
from services.pricing import PriceList

logger = logging.getLogger(__name__)

VERSION = "1.0.0"
PRICES_FILE = BASE_DIR / "prices.toml"
STATEMENT_TIMEOUT_MS = 30_000
LOCK_TIMEOUT_MS = 10_000
GRACEFUL_SHUTDOWN_SECONDS = 10
WORKER_START_SECONDS = 120  # a worker that is importing does not answer its supervisor, which then kills it


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; reads the settings from the environment where none are given.

    Raises:
        ConfigurationError: the settings cannot work.
    """
    settings = settings or Settings.load()
    logs.configure(settings.log_level, settings.log_format)
    app = FastAPI(
        title="foundation-be",
        version=VERSION,
        redirect_slashes=False,
        summary="An AI chat backend that counts tokens and money exactly, at once.",
        lifespan=_lifespan(settings, settings.signing_key(), pricing.load(PRICES_FILE)),
    )
    problems.install(app)
    for router in (
        accounts.router,
        chat.router,
        conversations.router,
        usage.router,
        usage_breakdowns.router,
        operation.router,
    ):
        app.include_router(router)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_credentials="*" not in settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "WWW-Authenticate"],
        )
    return app


def create_served_app() -> FastAPI:
    """The application of a process that does nothing but serve it.

    What was made until now, some 200,000 objects, stays for good: without `gc.freeze` each full collection goes
    through all of it, and holds every request up for a quarter of a second.
    """
    app = create_app()
    gc.collect()
    gc.freeze()
    return app


def _lifespan(
    settings: Settings, signing_key: str, prices: PriceList
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opened = Database.open(
            settings.database_url,
            statement_timeout=str(STATEMENT_TIMEOUT_MS),
            lock_timeout=str(LOCK_TIMEOUT_MS),
        )
        model = upstream.connect(settings.llm_base_url, settings.llm_api_key.get_secret_value(), settings.llm_model)
        state = app.state.foundation = State(settings, signing_key, prices, opened, model)
        stop = asyncio.Event()
        janitor = asyncio.create_task(turns.keep_settling_stale(state.turns, stop))
        try:
            yield
        finally:
            stop.set()
            await janitor
            await state.turns.close()
            await model.close()
            await opened.close()

    return lifespan


def serve(settings: Settings) -> None:
    """Serves until it is told to stop.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    listener = _listen(settings.host, settings.port)
    config = uvicorn.Config(
        "main:create_served_app",
        factory=True,
        workers=settings.workers,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
        timeout_worker_healthcheck=WORKER_START_SECONDS,
    )
    logger.info("serving on http://%s:%d (documentation: /docs)", settings.host, settings.port)
    if settings.workers > 1:
        Multiprocess(config, [listener]).run()
    else:
        uvicorn.Server(config).run([listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
        listener.set_inheritable(True)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


async def _prepare(settings: Settings) -> None:
    await migrations.upgrade(settings.database_url)
    opened = Database.open(settings.database_url)
    try:
        await opened.transaction(lambda session: usage_zone.check(session, settings.usage_timezone), repeatable=True)
    finally:
        await opened.close()


def main() -> int:
    """Runs the server; answers with the exit code."""
    os.chdir(BASE_DIR)
    try:
        settings = Settings.load()
        logs.configure(settings.log_level, settings.log_format)
        settings.signing_key()
        pricing.load(PRICES_FILE)
        with database.failures_as_configuration_errors(settings.database_url):
            asyncio.run(_prepare(settings))
        serve(settings)
    except ConfigurationError as error:
        print(f"foundation-be: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

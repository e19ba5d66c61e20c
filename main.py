"""Compose the application, and run `python main.py`: migrate, then serve.

`account_commands` defines the commands that run instead of serving.
"""

if __name__ == "__main__":
    from app import starting

    starting.end_on_interrupt("foundation-be")

import argparse
import asyncio
import gc
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

import account_commands
from app import BASE_DIR, __version__, logs, metrics, redaction, serving, setting_names
from app.db import database, identity, migrations, urls
from app.db.database import Database
from app.db.urls import Target
from app.errors import FoundationError
from app.settings import Settings, exposed, exposed_files
from routers import (
    accounts,
    admin,
    auth_users,
    branches,
    chat,
    conversations,
    feedback,
    health,
    images,
    logins,
    model_catalogue,
    model_categories,
    openapi,
    operation,
    page,
    preferences,
    usage,
    usage_breakdowns,
    usage_ranges,
)
from routers.http import documentation, problems, reset_page
from routers.http.connections import KEEP_ALIVE_SECONDS, Connection
from routers.http.dependencies import State
from routers.http.edge import Edge
from routers.http.guard import Guard, Limits
from services.chat import openai_upstream, recovery
from services.usage import full_runs, pricing, time_zone
from services.usage.pricing import PriceList

logger = logging.getLogger(__name__)

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

STATEMENT_TIMEOUT_MS = 30_000
LOCK_TIMEOUT_MS = 10_000
SETTLING_SECONDS = 10  # from the interruption of the last answer to the close of open connections


def create_app(settings: Settings | None = None, prices: PriceList | None = None) -> FastAPI:
    """Create the application; load settings and prices unless they are passed.

    Raises:
        ConfigurationError: the settings or the prices are invalid.
    """
    settings = settings or Settings.load()
    prices = _prices(settings) if prices is None else prices
    logs.configure(settings.log_level, settings.log_format)
    app = FastAPI(
        title="foundation-be",
        version=__version__,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if settings.docs_enabled else None,
        generate_unique_id_function=openapi.operation_id,
        summary="An AI chat backend that counts tokens and money exactly, at once.",
        lifespan=_lifespan(settings, settings.signing_key(), prices),
    )
    app.openapi_version = openapi.VERSION
    openapi.install(app)
    problems.install(app)
    for router in (
        accounts.router,
        logins.router,
        chat.router,
        branches.router,
        conversations.router,
        feedback.router,
        images.router,
        model_catalogue.router,
        model_categories.router,
        preferences.router,
        usage.router,
        usage_breakdowns.router,
        usage_ranges.router,
        admin.router,
        auth_users.router,
        reset_page.router,
        health.router,
        operation.router,
        page.router,
    ):
        app.include_router(router)
    if app.openapi_url is not None:
        app.include_router(documentation.router(app.title, app.openapi_url))
    app.add_middleware(Edge, settings=settings)
    return app


def _prices(settings: Settings) -> PriceList:
    return pricing.load(settings.prices_file, trust_provider_cost=settings.trust_provider_cost)


def create_served_app(settings: Settings, prices: PriceList) -> FastAPI:
    """Create the application of a process that only serves.

    About 200,000 objects live until the process ends. Without `gc.freeze` each full collection would traverse them, and
    block every request for 0.25 s.
    """
    app = create_app(settings, prices)
    gc.collect()
    gc.freeze()
    return app


def _lifespan(settings: Settings, signing_key: str, prices: PriceList) -> Lifespan:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opened = _open(settings.target())
        replica = _open(target) if (target := settings.read_target()) else None
        model = openai_upstream.connect(
            settings.llm_base_url, settings.llm_api_key.get_secret_value(), settings.llm_model
        )
        metrics.bury_dead_workers()
        metrics.watch_pool(opened.engine.pool)
        state = app.state.foundation = State(settings, signing_key, prices, opened, model, replica)
        stop = asyncio.Event()
        janitor = asyncio.create_task(recovery.watch(state.runner, stop))
        try:
            with _noticing_the_end(state.runner.begin_shutdown), _following_the_parent():
                yield
        finally:
            await state.runner.close()
            stop.set()  # after close: the lease must be renewed until the last turn is settled
            await janitor
            await model.close()
            await opened.close()
            if replica is not None:
                await replica.close()

    return _redacting(lifespan)


def _open(target: Target) -> Database:
    return Database.open(target, statement_timeout=str(STATEMENT_TIMEOUT_MS), lock_timeout=str(LOCK_TIMEOUT_MS))


def _redacting(lifespan: Lifespan) -> Lifespan:
    """Redact failures of the lifespan, whose traceback Starlette logs."""

    @asynccontextmanager
    async def redacting(app: FastAPI) -> AsyncIterator[None]:
        failure = None
        try:
            async with lifespan(app):
                yield
        except Exception as error:
            failure = redaction.redacted(error)
        if failure is not None:  # outside of the handler, or the original would be its context
            raise failure

    return redacting


@contextmanager
def _noticing_the_end(call: Callable[[], None]) -> Iterator[None]:
    """Call a function when a signal stops the server.

    Uvicorn ends the lifespan only after all open streams have ended.
    """
    loop = asyncio.get_running_loop()
    servers = {number: signal.getsignal(number) for number in serving.STOPPING}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(call)
        if callable(server := servers[signal.Signals(number)]):
            server(number, frame)

    ours = [
        number for number, server in servers.items() if isinstance(getattr(server, "__self__", None), uvicorn.Server)
    ]
    for number in ours:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, servers[number])


@contextmanager
def _following_the_parent() -> Iterator[None]:
    """Stop a worker, as SIGTERM does, when its supervisor has died."""
    parent = multiprocessing.parent_process()
    if parent is None:
        yield
        return
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.remove_reader(parent.sentinel)
        signal.raise_signal(signal.SIGTERM)

    loop.add_reader(parent.sentinel, stop)
    try:
        yield
    finally:
        loop.remove_reader(parent.sentinel)


def serve(settings: Settings) -> None:
    """Serve until a signal, and then until all answers are settled.

    A worker that starts later uses the same settings, key and prices: it does not read the files again.

    Raises:
        ConfigurationError: the server cannot listen on the address, or a file cannot be read.
    """
    settings = settings.model_copy(update={"secret_key": SecretStr(settings.signing_key())})
    for line in exposed(*urls.files(settings.database_url)):
        logger.warning(line)
    make_config = partial(_config, settings, _prices(settings))
    with serving.listen(settings.host, settings.port) as listener:
        logger.info("serving on http://%s:%d", settings.host, settings.port)
        for line in setting_names.no_model(settings, os.environ):
            logger.warning(line)
        grace_seconds = settings.shutdown_seconds + SETTLING_SECONDS
        serving.run(make_config, listener, settings.workers, grace_seconds)


def _config(settings: Settings, prices: PriceList) -> uvicorn.Config:
    most = min(settings.max_connections, serving.connections_possible())
    guard = Guard(Limits(most, settings.max_connections_per_address))
    return uvicorn.Config(
        partial(create_served_app, settings, prices),
        factory=True,
        http=cast(Any, partial(Connection, guard)),
        ws="none",
        workers=settings.workers,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.shutdown_seconds + SETTLING_SECONDS,
    )


async def _migrate(settings: Settings) -> None:
    if settings.database_direct_url or settings.database_read_url:
        await _check_urls(settings)
    with database.failures_as_configuration_errors(settings.direct_target().url):
        await migrations.upgrade(settings.direct_target())


async def _check_urls(settings: Settings) -> None:
    opened = Database.open(settings.target())
    try:
        if settings.database_direct_url:
            await identity.check(opened, settings.direct_target(), "DATABASE_DIRECT_URL")
        if replica := settings.read_target():
            await identity.check(opened, replica, "DATABASE_READ_URL")
    finally:
        await opened.close()


async def _prepare(settings: Settings) -> None:
    await _migrate(settings)
    opened = Database.open(settings.target())
    try:
        zone = settings.usage_timezone
        former = await opened.transaction(lambda session: time_zone.check(session, zone), repeatable=True)
        if former is not None:
            logger.warning("USAGE_TIMEZONE is %s now: stop each server that still runs with %s", zone.key, former)
        if await opened.read(full_runs.is_due):
            logger.warning("the usage sums are not complete yet: run python migrate_token_data.py")
    finally:
        await opened.close()


def main(arguments: Sequence[str] = ()) -> int:
    """Run the server or a command; return the exit code."""
    os.chdir(BASE_DIR)
    try:
        wanted = account_commands.parse(arguments)
        settings = Settings.load()
        logs.configure(settings.log_level, settings.log_format)
        setting_names.log_misread(settings)
        if wanted.command is not None:
            with database.failures_as_configuration_errors(settings.database_url):
                asyncio.run(_carry_out(wanted, settings))
            return 0
        settings.signing_key()
        _prices(settings)
        for line in exposed_files():
            logger.warning(line)
        with database.failures_as_configuration_errors(settings.database_url):
            asyncio.run(_prepare(settings))
        serve(settings)
    except FoundationError as error:
        print(f"foundation-be: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except Exception as error:
        print(f"foundation-be: {redaction.one_line(error)}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


async def _carry_out(wanted: argparse.Namespace, settings: Settings) -> None:
    await _migrate(settings)  # and not the time zone: a command dates nothing
    await account_commands.run(wanted, settings.target())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

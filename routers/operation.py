"""Serve operators: liveness, readiness and metrics."""

import asyncio
import logging
import secrets
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from app import metrics
from app.db import failures, revisions
from app.errors import DatabaseUnavailable, Unauthenticated
from routers.http.dependencies import ACCEPTS_METRICS_TOKEN, StateDep
from routers.http.problems import documented
from services.chat import runner

logger = logging.getLogger(__name__)

PENDING_SECONDS = 2.0
"""Seconds that the database has for `/metrics`, which must respond during an outage, too."""

READY_SECONDS = 5.0
"""Seconds that the database has for `/ready`."""

router = APIRouter(tags=["operation"])


class Status(BaseModel):
    """A good state."""

    status: Literal["ok"] = "ok"


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def get_health() -> Status:
    """Answer 200 while the process lives."""
    return Status()


@router.head("/ready", include_in_schema=False)
@router.get("/ready", responses=documented(503))
async def get_readiness(state: StateDep) -> Status:
    """Answer 200 when the database answers and is at the newest schema."""
    async with asyncio.timeout(READY_SECONDS):
        is_current = await revisions.is_current(state.database)
    if not is_current:
        raise DatabaseUnavailable("The database is not at the newest schema: restart the server.")
    return Status()


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses=documented(401),
    dependencies=[ACCEPTS_METRICS_TOKEN],
    openapi_extra={"security": [{}]},  # or no token, while METRICS_TOKEN is empty
)
async def get_metrics(request: Request, state: StateDep) -> PlainTextResponse:
    """Show the metrics of all workers in the Prometheus format."""
    wanted = state.settings.metrics_token.get_secret_value()
    shown = request.headers.get("authorization", "")
    if wanted and not secrets.compare_digest(shown.encode(), f"Bearer {wanted}".encode()):
        raise Unauthenticated("The token of METRICS_TOKEN is required.")
    try:
        async with asyncio.timeout(PENDING_SECONDS):
            pending = await state.database.read(runner.count_pending)
    except failures.FAILURES as error:
        logger.warning("pending messages could not be counted: %s", failures.describe(error))
        pending = None
    return PlainTextResponse(metrics.exposition(pending), media_type=metrics.CONTENT_TYPE)

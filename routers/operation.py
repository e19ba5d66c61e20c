"""For those who run the server: is it alive, is it ready."""

from fastapi import APIRouter
from pydantic import BaseModel

from app import migrations
from app.errors import DatabaseUnavailable
from routers.dependencies import StateDep
from routers.problems import documented

router = APIRouter(tags=["operation"])


class Status(BaseModel):
    """All is well."""

    status: str = "ok"


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health() -> Status:
    """Answers while the process lives."""
    return Status()


@router.head("/ready", include_in_schema=False)
@router.get("/ready", responses=documented(503))
async def ready(state: StateDep) -> Status:
    """Answers 200 when the database answers and is at the newest schema."""
    if not await migrations.is_current(state.database):
        raise DatabaseUnavailable("The database is not at the newest schema.")
    return Status()

"""A talk, whose answers are streamed or not."""

import httpx
import pytest

from app.db.database import Database
from tests.support.accounts import Caller
from tests.support.billed_answers import Talk
from tests.support.openai_server import OpenAIServer


@pytest.fixture(params=[True, False], ids=["stream", "whole"])
def is_stream(request: pytest.FixtureRequest) -> bool:
    """Whether answers are streamed to the caller."""
    return bool(request.param)


@pytest.fixture
def talk(client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, is_stream: bool) -> Talk:
    """A user, and the service that the application asks."""
    return Talk(client, database, ayu, model, is_stream)

"""Users for tests: registered over HTTP, or put into the database directly."""

from dataclasses import dataclass
from datetime import timedelta

import httpx
from sqlalchemy import insert

from app import clock
from app.db.database import Database
from app.security import tokens
from models import User

SECRET_KEY = "WyL2dNUoJQPXNDZjCI2X6dAaf4rM360LFNZaMyOqhlhQtXnM"
PASSWORD = "correct horse battery"


@dataclass(frozen=True)
class Caller:
    """A user and the header that says so."""

    id: int
    username: str

    @property
    def headers(self) -> dict[str, str]:
        """A valid token."""
        token = tokens.issue(self.id, SECRET_KEY, clock.now(), timedelta(minutes=5))
        return {"Authorization": f"Bearer {token}"}


async def add(database: Database, username: str, role: str = "user") -> Caller:
    """Puts a user, who cannot log in with a password, into the database."""
    values = {"username": username, "email": f"{username}@example.com", "hashed_password": "!", "role": role}
    async with database.sessions.begin() as session:
        statement = insert(User).values(is_active=True, created_at=clock.now(), **values).returning(User.id)
        return Caller((await session.execute(statement)).scalar_one(), username)


async def register(client: httpx.AsyncClient, username: str) -> Caller:
    """Registers a user over HTTP."""
    body = {"username": username, "email": f"{username}@example.com", "password": PASSWORD}
    answer = await client.post("/auth/register", json=body)
    assert answer.status_code == 201, answer.text
    return Caller(answer.json()["id"], username)

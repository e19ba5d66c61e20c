"""How a database looks for a keyword."""

from typing import Any

from sqlalchemy import event

from app.db.database import Database
from services.chat import searches

_EXPLAIN = {"sqlite": "EXPLAIN QUERY PLAN", "postgresql": "EXPLAIN"}


async def plan(database: Database, user_id: int, keyword: str) -> str:
    """The plan of the statement that looks for messages with a rare keyword, a line for each step."""
    asked: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, values: object, *_more: object) -> None:
        asked.append((statement, values))

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    assert await database.read(lambda session: searches.hits(session, user_id, keyword)) is not None
    event.remove(database.engine.sync_engine, "before_cursor_execute", note)
    statement, values = asked[-1]
    async with database.engine.connect() as connection:
        explain = _EXPLAIN[connection.dialect.name]
        return "\n".join(str(row[-1]) for row in await connection.exec_driver_sql(f"{explain} {statement}", values))

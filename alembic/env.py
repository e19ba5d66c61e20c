"""Run migrations on a given connection, or on one from the settings.

`app.db.migrations` passes its connection; the `alembic` command uses the settings.
"""

import asyncio
from contextlib import nullcontext

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection

from app import logs
from app.db import going_back, migrations
from app.db.database import Database
from app.errors import ConfigurationError
from app.settings import Settings
from models import Base


def include_object(_object: object, _name: str | None, _type: str, reflected: bool, compare_to: object) -> bool:
    """Ignore objects of an adopted database that the models do not define."""
    return not (reflected and compare_to is None)


def run(connection: Connection) -> None:
    """Run the requested revisions on this connection."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_object=include_object,
        transaction_per_migration=True,
    )
    options = context.get_context().opts
    is_going_back = getattr(options.get("fn"), "__name__", None) == "downgrade"
    is_asked = going_back.CONFIRMATION not in context.get_x_argument() and not context.is_offline_mode()
    if is_going_back and is_asked:
        going_back.refuse_unconfirmed(connection, str(options.get("destination_rev")))
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_run() -> None:
    """Run the revisions on a new connection.

    No other process changes the schema concurrently.
    """
    settings = Settings.load()
    logs.configure(settings.log_level, settings.log_format)
    database = Database.open(settings.direct_target())
    is_sqlite = database.engine.dialect.name == "sqlite"
    turn = nullcontext() if is_sqlite else migrations.alone(database)
    try:
        async with turn, database.engine.connect() as connection:
            if is_sqlite:
                await connection.run_sync(migrations.prepare_for_recreating)
            await connection.run_sync(run)
            await connection.commit()
    finally:
        await database.close()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    try:
        asyncio.run(connect_and_run())
    except ConfigurationError as error:
        raise CommandError(str(error)) from None

"""The tables of the earlier backend, as its `create_all` made them."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine.mock import MockConnection
from sqlalchemy.schema import SchemaItem

GENERATIONS = (1, 2, 3)


def statements(generation: int, dialect: str, *, time_zone: bool) -> list[str]:
    """The DDL of `create_all`, for `sqlite` or `postgresql`.

    Args:
        generation: 1 has no token columns, 2 has them, 3 has the rollup as well.
        dialect: the name of SQLAlchemy's dialect.
        time_zone: whether `created_at` of messages is with time zone, which is seen on PostgreSQL only.
    """
    collected: list[str] = []

    def collect(statement: Any, *_args: Any, **_kwargs: Any) -> None:
        collected.append(str(statement.compile(dialect=engine.dialect)))

    url = {"sqlite": "sqlite://", "postgresql": "postgresql+asyncpg://"}[dialect]
    engine: MockConnection = sa.create_mock_engine(url, collect)
    metadata(generation, time_zone=time_zone).create_all(engine, checkfirst=False)
    return collected


def metadata(generation: int, *, time_zone: bool = True) -> sa.MetaData:
    """The tables of a generation, foreign ones included."""
    tables = sa.MetaData()
    sa.Table(
        "users",
        tables,
        sa.Column("id", sa.Integer, primary_key=True, index=True),
        sa.Column("username", sa.String, unique=True, index=True, nullable=False),
        sa.Column("email", sa.String, unique=True, nullable=False),
        sa.Column("hashed_password", sa.String, nullable=False),
        sa.Column("role", sa.String, default="user"),
        sa.Column("is_active", sa.Boolean, default=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now()),
    )
    sa.Table("conversations", tables, *_conversation_columns(generation))
    sa.Table("messages", tables, *_message_columns(generation, time_zone))
    if generation >= 3:
        sa.Table("user_monthly_token_usage", tables, *_rollup_columns())
    _foreign_tables(tables, generation)
    return tables


def _conversation_columns(generation: int) -> list[sa.Column[Any]]:
    columns: list[sa.Column[Any]] = [
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id")),
        sa.Column("title", sa.String, nullable=False),
        sa.Column("model_type", sa.String, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now()),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now()),
    ]
    if generation >= 2:
        columns.append(sa.Column("parent_conversation_id", sa.String, sa.ForeignKey("conversations.id")))
        columns.append(sa.Column("edited_message_id", sa.Integer))
    if generation >= 3:
        columns.append(sa.Column("category_id", sa.Integer, sa.ForeignKey("user_model_categories.id")))
    return columns


def _message_columns(generation: int, time_zone: bool) -> list[sa.Column[Any]]:
    columns: list[sa.Column[Any]] = [
        sa.Column("id", sa.Integer, primary_key=True, index=True),
        sa.Column("conversation_id", sa.String, sa.ForeignKey("conversations.id"), nullable=False),
        sa.Column("role", sa.String),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("image_urls", sa.Text),
        sa.Column("document_context", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=time_zone), server_default=sa.func.now()),
    ]
    if generation >= 2:
        columns.append(sa.Column("parent_message_id", sa.Integer, sa.ForeignKey("messages.id")))
        columns.append(sa.Column("branch_id", sa.String))
        columns.append(sa.Column("is_active_branch", sa.Boolean))
        columns += [sa.Column(name, sa.Integer) for name in ("input_tokens", "output_tokens", "total_tokens")]
        columns.append(sa.Column("model_cost", sa.Float))
    return columns


def _rollup_columns() -> list[SchemaItem]:
    figures = [sa.Column(name, sa.Integer) for name in ("input_tokens", "output_tokens", "total_tokens")]
    return [
        sa.Column("id", sa.Integer, primary_key=True, index=True),
        sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id")),
        sa.Column("year", sa.Integer),
        sa.Column("month", sa.Integer),
        *figures,
        sa.Column("total_cost", sa.Float),
        sa.Column("message_count", sa.Integer),
        sa.Column("last_updated", sa.DateTime(timezone=True), server_default=sa.func.now()),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now()),
        sa.UniqueConstraint("user_id", "year", "month", name="unique_user_month"),
    ]


def _foreign_tables(tables: sa.MetaData, generation: int) -> None:
    """Tables beside those that count."""
    sa.Table(
        "feedback",
        tables,
        *_owned(),
        _key("message_id", sa.Integer, "messages"),
        *_texts("feedback_type!", "description"),
    )
    preferences = _texts("nickname", "job", "chatbot_preference")
    sa.Table("user_preferences", tables, *_owned(unique=True), *preferences, _instant("updated_at"))
    files = _texts("filename!", "original_filename!", "file_type!", "file_path!", "processing_status")
    sa.Table("documents", tables, *_owned(sa.String), *files, sa.Column("file_size", sa.Integer, nullable=False))
    chunks = sa.Column("id", sa.String, primary_key=True), _key("document_id", sa.String, "documents")
    sa.Table(
        "document_chunks", tables, *chunks, sa.Column("chunk_index", sa.Integer, nullable=False), *_texts("content!")
    )
    sa.Table("document_collections", tables, *_owned(sa.String), *_texts("name!", "document_ids!"))
    sa.Table(
        "conversation_contexts",
        tables,
        sa.Column("id", sa.Integer, primary_key=True, index=True),
        _key("conversation_id", sa.String, "conversations"),
        sa.Column("collection_id", sa.String, sa.ForeignKey("document_collections.id")),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now()),
    )
    if generation >= 3:
        sa.Table("model_metadata", tables, sa.Column("id", sa.String, primary_key=True), *_texts("name!"))
        sa.Table(
            "user_model_categories",
            tables,
            *_owned(),
            *_texts("category_name!", "display_name!", "description"),
            _key("model_id", sa.String, "model_metadata", index=False),
            sa.Column("sort_order", sa.Integer),
            sa.Column("is_active", sa.Boolean),
            _instant("updated_at"),
            sa.UniqueConstraint("user_id", "category_name", name="unique_user_category"),
        )


def _owned(key: type[sa.types.TypeEngine[Any]] = sa.Integer, *, unique: bool = False) -> list[sa.Column[Any]]:
    owner = sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), nullable=False, index=True, unique=unique)
    return [sa.Column("id", key, primary_key=True, index=True), owner, _instant("created_at")]


def _key(name: str, kind: type[sa.types.TypeEngine[Any]], table: str, *, index: bool = True) -> sa.Column[Any]:
    return sa.Column(name, kind, sa.ForeignKey(f"{table}.id"), nullable=False, index=index)


def _texts(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name.rstrip("!"), sa.String, nullable=not name.endswith("!")) for name in names]


def _instant(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.func.now())

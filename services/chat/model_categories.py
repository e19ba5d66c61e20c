"""Store model categories: a user's own names for models.

Every user starts with the four categories of the earlier backend.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.errors import Conflict, NotFound
from models import ModelCategory, User
from services.chat import requested_models

MAX_CATEGORIES = 100

_LAST_PLACE = 2**31 - 1

# An old row without a value is active.
_IS_ACTIVE = ModelCategory.is_active.is_not(False)


class NewCategory(NamedTuple):
    """A category to store."""

    category_name: str
    display_name: str
    model_id: str
    description: str | None = None


async def listed(session: AsyncSession, user_id: int) -> Sequence[ModelCategory] | None:
    """Return the user's categories in order; None if there never were any."""
    order = func.coalesce(ModelCategory.sort_order, 0), ModelCategory.category_name, ModelCategory.id
    rows = (await session.scalars(select(ModelCategory).where(ModelCategory.user_id == user_id).order_by(*order))).all()
    return [row for row in rows if row.is_active is not False] if rows else None


async def start(session: AsyncSession, user_id: int, model_of: Callable[[str], str]) -> Sequence[ModelCategory]:
    """Return the user's categories; store the first four if necessary.

    The four are stored only for a user who never had any category.

    Args:
        session: the caller's transaction.
        user_id: the user.
        model_of: returns the model id for a category's display name.
    """
    await _lock(session, user_id)
    present = await listed(session, user_id)
    if present is not None:
        return present
    for place, name in enumerate(requested_models.USUAL_MODELS, start=1):
        await _insert(session, user_id, NewCategory(name.upper().replace(" ", "_"), name, model_of(name)), place)
    return await listed(session, user_id) or []


async def add(session: AsyncSession, user_id: int, new: NewCategory) -> ModelCategory:
    """Store a category, which replaces a deleted one of the same name.

    Raises:
        Conflict: the user has a category of this name, or too many.
    """
    await _lock(session, user_id)
    own = select(ModelCategory).where(ModelCategory.user_id == user_id)
    rows = (await session.scalars(own)).all()
    present = [row for row in rows if row.is_active is not False]
    if any(row.category_name == new.category_name for row in present):
        raise Conflict("You have a category of this name: choose another name.")
    if len(present) >= MAX_CATEGORIES:
        raise Conflict(f"You have {MAX_CATEGORIES} categories: delete one first.")
    place = min(max((row.sort_order or 0 for row in present), default=0) + 1, _LAST_PLACE)
    deleted = next((row.id for row in rows if row.category_name == new.category_name), None)
    if deleted is None:
        return await _insert(session, user_id, new, place)
    return await change(
        session, user_id, deleted, {**new._asdict(), "sort_order": place, "is_active": True}, even_deleted=True
    )


async def change(
    session: AsyncSession, user_id: int, category_id: int, values: Mapping[str, Any], *, even_deleted: bool = False
) -> ModelCategory:
    """Change a category of the user.

    With `even_deleted`, also one that was deleted.

    Raises:
        NotFound: the user has no such category.
    """
    own = ModelCategory.id == category_id, ModelCategory.user_id == user_id
    changed = (
        update(ModelCategory)
        .where(*own, *(() if even_deleted else (_IS_ACTIVE,)))
        .values(updated_at=clock.now(), **values)
    )
    options = {"populate_existing": True}
    row = (await session.scalars(changed.returning(ModelCategory), execution_options=options)).one_or_none()
    if row is None:
        raise NotFound("There is no such model category.")
    return row


async def remove(session: AsyncSession, user_id: int, category_id: int) -> None:
    """Delete a category of the user.

    The row stays, so that the first four do not come back.

    Raises:
        NotFound: the user has no such category.
    """
    await change(session, user_id, category_id, {"is_active": False, "description": None})


async def find(session: AsyncSession, user_id: int, category_id: int) -> ModelCategory | None:
    """Return a category of the user; None if there is none."""
    own = ModelCategory.id == category_id, ModelCategory.user_id == user_id, _IS_ACTIVE
    return await session.scalar(select(ModelCategory).where(*own))


async def named(session: AsyncSession, user_id: int, name: str) -> ModelCategory:
    """Return the user's category with a name.

    Raises:
        NotFound: the user has no such category.
    """
    own = ModelCategory.category_name == name, ModelCategory.user_id == user_id, _IS_ACTIVE
    row = await session.scalar(select(ModelCategory).where(*own).order_by(ModelCategory.id).limit(1))
    if row is None:
        raise NotFound("There is no such model category.")
    return row


async def _lock(session: AsyncSession, user_id: int) -> None:
    await session.execute(select(User.id).where(User.id == user_id).with_for_update(key_share=True))


async def _insert(session: AsyncSession, user_id: int, new: NewCategory, place: int) -> ModelCategory:
    now = clock.now()
    values = {**new._asdict(), "user_id": user_id, "sort_order": place, "is_active": True}
    statement = insert(ModelCategory).values(**values, created_at=now, updated_at=now)
    return (await session.scalars(statement.returning(ModelCategory))).one()

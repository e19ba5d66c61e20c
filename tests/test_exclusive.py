"""One run at a time: what a run has read is only taken for good where no other has written since."""

from app.database import Database
from services import exclusive
from services.exclusive import Mark


async def found_by(database: Database, mark: Mark) -> str | None:
    return await database.read(mark.find)


async def is_good(database: Database, mark: Mark, found: str | None = None) -> bool:
    return await exclusive.transaction(database, lambda session: mark.take(session, found))


async def test_alone_a_run_finds_its_own_mark_once_it_has_put_it_there(database: Database) -> None:
    mark = Mark()
    assert not await is_good(database, mark, await found_by(database, mark)), "it was nobody's"
    for _ in range(2):
        found = await found_by(database, mark)
        assert await is_good(database, mark, found)
        assert await is_good(database, mark, found), "only it has written"


async def test_what_was_read_before_another_run_wrote_is_not_good(database: Database) -> None:
    ours, others = Mark(), Mark()
    await is_good(database, ours)
    before = await found_by(database, ours)
    await is_good(database, others)
    assert not await is_good(database, ours, before)
    assert not await is_good(database, ours, before), "also when the mark is ours again"
    assert await is_good(database, ours, await found_by(database, ours))


async def test_what_was_read_while_the_mark_was_another_runs_is_not_good(database: Database) -> None:
    """The other may have written under the same mark since."""
    ours, others = Mark(), Mark()
    await is_good(database, ours)
    await is_good(database, others)
    during = await found_by(database, ours)
    assert await is_good(database, others, await found_by(database, others))
    assert not await is_good(database, ours, during)


async def test_a_mark_that_was_rolled_back_is_not_taken_for_ours(database: Database) -> None:
    mark = Mark()
    try:
        async with database.sessions.begin() as session:
            await mark.take(session)
            raise LookupError
    except LookupError:
        assert not await is_good(database, mark, await found_by(database, mark))

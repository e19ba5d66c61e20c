"""Show admins whether counting goes well."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app import metrics
from app.db.database import Session
from routers.http.dependencies import CallerDep, StateDep
from routers.http.problems import documented
from services.accounts import users
from services.chat import runner
from services.usage import full_runs

router = APIRouter(prefix="/admin", tags=["administration"])


class Counts(BaseModel):
    """What all workers of this server have counted since it started."""

    messages: int = Field(description="Messages with usage that were stored and counted.")
    estimated: int = Field(description="Those whose tokens were estimated: the provider reported none.")
    unpriced: int = Field(description="Those without a known price.")
    complete: int = Field(description="Answers of models that are complete.")
    interrupted: int = Field(description="Answers that ended early, and are counted as far as they came.")
    failed: int = Field(description="Answers that failed; the log has the reasons.")
    model_retries: int = Field(description="Requests to the model that were sent again.")
    transaction_retries: int = Field(description="Transactions that were repeated.")
    settlement_failures: int = Field(description="Answers that had to be settled in a simpler way; see the log.")


class HealthView(BaseModel):
    """The state of counting."""

    messages_pending: int = Field(description="Answers in progress, of all servers of this database.")
    backfill_is_due: bool = Field(description="Whether `python migrate_token_data.py` has to complete the sums.")
    since_start: Counts


@router.get("/health", responses=documented(401, 403, 503))
async def get_counting_health(caller: CallerDep, state: StateDep) -> HealthView:
    """Show what is in progress, and what went wrong since the start."""

    async def work(session: Session) -> HealthView:
        await users.require_role(session, caller, "admin")
        pending, is_due = await runner.count_pending(session), await full_runs.is_due(session)
        return HealthView(messages_pending=pending, backfill_is_due=is_due, since_start=_counts())

    return await state.database.read(work)


def _counts() -> Counts:
    found = metrics.totals()

    def count(name: str, label: str = "") -> int:
        return found.get(f"foundation_{name}", {}).get(label, 0)

    return Counts(
        messages=count("messages_counted"),
        estimated=count("messages_estimated"),
        unpriced=count("messages_unpriced"),
        complete=count("turns_settled", "complete"),
        interrupted=count("turns_settled", "interrupted"),
        failed=count("turns_settled", "failed"),
        model_retries=count("retries", "model"),
        transaction_retries=count("retries", "transaction"),
        settlement_failures=count("settlement_failures"),
    )

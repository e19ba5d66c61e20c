"""Adopt old rows, repair the rollups from the ledger, and verify them.

`run`, `verify` and `redate` are the entry points. Other packages import only them, the types of their arguments and
results, and what presents a report.
"""

from services.backfill.comparisons import Difference, Policy, Report
from services.backfill.full_runs import is_due
from services.backfill.key_ranges import Scope, highest_id
from services.backfill.progress import Listener, Progress
from services.backfill.runs import DEFAULT_BATCH_SIZE, redate, run, unknown_users
from services.backfill.summary import Mode, as_json, is_right, show
from services.backfill.verification import verify

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "Difference",
    "Listener",
    "Mode",
    "Policy",
    "Progress",
    "Report",
    "Scope",
    "as_json",
    "highest_id",
    "is_due",
    "is_right",
    "redate",
    "run",
    "show",
    "unknown_users",
    "verify",
]

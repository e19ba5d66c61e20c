"""Adopt old rows, repair the rollups from the ledger, and verify them.

`run`, `verify` and `redate` are the entry points. Other packages import only them, the types of their arguments and
results, and what presents a report.
"""

from services.backfill.full_runs import is_due
from services.backfill.key_ranges import Scope
from services.backfill.plans import Policy
from services.backfill.report import Difference, Mode, Report, as_json, show
from services.backfill.runs import DEFAULT_BATCH_SIZE, redate, run, unknown_users
from services.backfill.verification import verify

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "Difference",
    "Mode",
    "Policy",
    "Report",
    "Scope",
    "as_json",
    "is_due",
    "redate",
    "run",
    "show",
    "unknown_users",
    "verify",
]

"""Adopt old rows, repair the rollups from the ledger, and verify them.

`run`, `verify`, `redate`, `archive` and `import_archive` are the entry points. Other packages import only them, the
types of their arguments and results, and what presents a report.
"""

from services.backfill.archive_import import import_archive
from services.backfill.archive_report import Moved, moved_as_json, show_moved
from services.backfill.archiving import Old, archive, check_months
from services.backfill.key_ranges import Scope, highest_id
from services.backfill.plans import Policy
from services.backfill.report import Difference, Mode, Report, as_json, show
from services.backfill.runs import DEFAULT_BATCH_SIZE, redate, run, unknown_users
from services.backfill.verification import verify

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "Difference",
    "Mode",
    "Moved",
    "Old",
    "Policy",
    "Report",
    "Scope",
    "archive",
    "as_json",
    "check_months",
    "highest_id",
    "import_archive",
    "moved_as_json",
    "redate",
    "run",
    "show",
    "show_moved",
    "unknown_users",
    "verify",
]

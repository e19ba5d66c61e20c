"""Where tests keep their files: in memory, if there is enough.

Copying a database takes a tenth of the processor time there, and no commit waits for a disk. No test switches the
machine off, so none depends on what a disk keeps.
"""

import os
import shutil
import tempfile
from pathlib import Path

_MEMORY = Path("/dev/shm")
# Bytes. A run of all tests needs a fourth of it.
_LEAST_FREE = 4 * 2**30


def temporary() -> Path:
    """Return the directory for temporary files."""
    return _MEMORY if _is_usable(_MEMORY) else Path(tempfile.gettempdir())


def _is_usable(directory: Path) -> bool:
    if "TMPDIR" in os.environ or not os.access(directory, os.W_OK):
        return False
    can_execute = not os.statvfs(directory).f_flag & os.ST_NOEXEC
    return can_execute and shutil.disk_usage(directory).free >= _LEAST_FREE

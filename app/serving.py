"""Serve with one process or several workers, until a signal."""

import contextlib
import logging
import multiprocessing
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

import uvicorn

from app import log_writer, metrics
from app.errors import ConfigurationError, FoundationError

logger = logging.getLogger(__name__)

STOPPING = (signal.SIGTERM, signal.SIGINT)
MAX_FAILED_STARTS = 5

# Seconds
_BEAT_SECONDS = 5
_STUCK_SECONDS = 120
_YOUNG_SECONDS = 10
_KILL_SECONDS = 10
_FRESH_SECONDS = 3600

# Descriptors that are not connections: the database, the log, libraries.
_OTHER_FILES = 64

_processes = multiprocessing.get_context("spawn")


class Server(uvicorn.Server):
    """Run uvicorn's server, but settle all answers also after a second Ctrl-C."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop in order."""
        super().handle_exit(signal.SIGTERM, frame)


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket.

    Raises:
        ConfigurationError: the server cannot listen on the address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
        listener.set_inheritable(True)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def connections_possible() -> int:
    """Raise the limit of open files; return the connections it allows.

    Each connection may need a second descriptor: a stream has a connection to the upstream.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return sys.maxsize
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):  # macOS allows less than it reports
            pass
    return max((soft - _OTHER_FILES) // 2, 1) if soft != resource.RLIM_INFINITY else sys.maxsize


def run(make_config: Callable[[], uvicorn.Config], listener: socket.socket, workers: int, grace_seconds: float) -> None:
    """Serve until a signal ends it, in this process or in several.

    SIGTERM, SIGINT and SIGHUP all stop the server in order. An ignored SIGHUP stays ignored, as with `nohup`.

    Args:
        make_config: returns uvicorn's configuration; called in each process that serves.
        listener: the listening socket, which the caller closes.
        workers: the number of processes.
        grace_seconds: a worker that still runs this long after a signal is killed.

    Raises:
        SystemExit: 1 if the workers cannot start.
    """
    log_writer.write_in_background()
    if workers == 1:
        _exit_on_signals()
        _serve(make_config(), listener)
        return
    with metrics.shared_by_workers():
        _Workers(make_config, listener, workers).run(grace_seconds)


def _exit_on_signals() -> None:
    """Exit with code 0 on a signal that uvicorn does not handle.

    Later signals are ignored: they would interrupt the exit.
    """

    def end(*_: object) -> None:
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)
        sys.exit(0)

    for number in STOPPING:
        signal.signal(number, end)
    _stop_on_hangup()


def _stop_on_hangup() -> None:
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def _work(make_config: Callable[[], uvicorn.Config], listener: socket.socket, pulse: Connection) -> None:
    with listener:  # the worker's own copy
        _exit_on_signals()
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        log_writer.write_in_background()
        try:
            config = make_config()
            config.callback_notify = partial(_beat, pulse)
            config.timeout_notify = _BEAT_SECONDS
            _serve(config, listener)
        except FoundationError as error:
            logger.critical("a worker cannot start: %s", error)
            sys.exit(1)


def _serve(config: uvicorn.Config, listener: socket.socket) -> None:
    config.load()
    log_writer.write_in_background()  # again, since creating the application has configured the log
    Server(config).run([listener])


async def _beat(pulse: Connection) -> None:
    with contextlib.suppress(OSError):  # the first process has exited; the lifespan detects that
        pulse.send(None)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold back Ctrl-C, also in a process that starts meanwhile.

    That process releases it when it can handle it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # its start would release the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
    def __init__(self, *arguments: Any) -> None:
        self.pulse, sender = _processes.Pipe(duplex=False)
        self.process = _processes.Process(target=_work, args=(*arguments, sender), daemon=True)
        with _interrupts_held():
            self.process.start()
        sender.close()
        self.started = self.last_beat = time.monotonic()
        self.is_ready = False

    def note_beats(self) -> None:
        try:
            while self.pulse.poll():
                self.pulse.recv()
                self.is_ready, self.last_beat = True, time.monotonic()
        except (EOFError, OSError):  # the worker has ended
            pass

    def has_failed(self) -> bool:
        return not self.is_ready or time.monotonic() - self.started < _YOUNG_SECONDS

    def is_stuck(self) -> bool:
        return time.monotonic() - self.last_beat > _STUCK_SECONDS

    def close(self) -> None:
        self.pulse.close()


class _Workers:
    """Supervise the workers: replace those that end or hang."""

    def __init__(self, make_config: Callable[[], uvicorn.Config], listener: socket.socket, count: int) -> None:
        self._arguments = (make_config, listener)
        self._count = count
        self._workers: list[_Worker] = []
        self._is_stopping = False
        self._failed_starts = 0

    def run(self, grace_seconds: float) -> None:
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        with receiver, sender:
            for number in STOPPING:
                signal.signal(number, self._stop)
            _stop_on_hangup()
            previous = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
            try:
                self._workers = [_Worker(*self._arguments) for _ in range(self._count)]
                self._watch(receiver)
            finally:
                self._end(grace_seconds)
                signal.set_wakeup_fd(previous)
        if self._failed_starts >= MAX_FAILED_STARTS:
            logger.critical("the server stops: %d workers in a row ended right after their start", self._failed_starts)
            sys.exit(1)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._is_stopping = True

    def _watch(self, receiver: socket.socket) -> None:
        freshened = time.monotonic()
        while not self._is_stopping and self._failed_starts < MAX_FAILED_STARTS:
            awaited: list[Any] = [receiver]
            for worker in self._workers:
                awaited += [worker.process.sentinel, worker.pulse]
            connection.wait(awaited, timeout=_BEAT_SECONDS)
            for place, worker in enumerate(self._workers):
                self._look_after(place, worker)
            if time.monotonic() - freshened > _FRESH_SECONDS:
                freshened = time.monotonic()
                metrics.keep_files_fresh()

    def _look_after(self, place: int, worker: _Worker) -> None:
        worker.note_beats()
        if worker.is_stuck():
            logger.error("worker %s does not respond: killing it", worker.process.pid)
            worker.process.kill()
            worker.process.join()
        if worker.process.is_alive() or self._is_stopping:
            return
        logger.error("worker %s ended with exit code %s", worker.process.pid, worker.process.exitcode)
        self._failed_starts = self._failed_starts + 1 if worker.has_failed() else 0
        worker.close()
        if self._failed_starts < MAX_FAILED_STARTS:
            self._workers[place] = _Worker(*self._arguments)

    def _end(self, grace_seconds: float) -> None:
        for worker in self._workers:
            if worker.process.is_alive():
                worker.process.terminate()
        deadline = time.monotonic() + grace_seconds + _KILL_SECONDS
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                logger.error("worker %s does not stop: killing it", worker.process.pid)
                worker.process.kill()
                worker.process.join()
            worker.close()

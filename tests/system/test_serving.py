"""Serving: workers that die or cannot start, signals, standard error that is not read, and open files."""

import contextlib
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from app import BASE_DIR, serving
from tests.support import commands, programs, raw_http
from tests.support.accounts import SECRET_KEY
from tests.support.raw_http import exchange, get

QUICK_SECONDS = 30
"""To end with nothing in progress takes a second, on a busy machine a few; a stuck server took 100."""

WORKERS = pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])


@contextlib.contextmanager
def started(
    workers: int, is_ready: Callable[[int], bool] | None = None, **options: Any
) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The small server, ready: its port and its process; what it says on standard error is kept."""
    port = commands.free_port()
    environment = os.environ | {"PYTHONPATH": str(BASE_DIR)} | options.pop("environment", {})
    arguments = [sys.executable, "-m", "tests.support.small_server", str(port), str(workers)]
    options = {"stderr": subprocess.PIPE} | options
    with subprocess.Popen(arguments, cwd=BASE_DIR, env=environment, text=True, **options) as process:
        try:
            raw_http.until(lambda: (is_ready or answers)(port), "the server is ready")
            yield port, process
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()


def answers(port: int) -> bool:
    try:
        return exchange(port, get("/")).status == 200
    except OSError:
        return False


def workers_of(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    found = {}
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            if "spawn_main" in " ".join(child.cmdline()):
                found[child.pid] = child
    return found


def everyone(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [psutil.Process(process.pid), *workers_of(process).values()]


def both_serve(port: int, process: subprocess.Popen[str]) -> Callable[[], bool]:
    served: set[int] = set()

    def ask() -> bool:
        served.add(int(exchange(port, get("/")).body or 0))
        return workers_of(process).keys() <= served and len(workers_of(process)) == 2

    return ask


def end(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> programs.Ended:
    begun = time.monotonic()
    process.send_signal(number)
    ended = programs.finish(process)
    assert time.monotonic() - begun < QUICK_SECONDS
    return ended


def check_ended_well(ended: programs.Ended) -> None:
    assert ended.code == 0, ended.err
    assert "closed in order" in (ended.err or "closed in order")
    assert "Traceback" not in (ended.err or ""), ended.err


@pytest.mark.long
def test_a_worker_starts_though_its_metrics_directory_is_gone(tmp_path: Path) -> None:
    with started(2, environment={"TMPDIR": str(tmp_path)}) as (port, process):
        [directory] = tmp_path.glob("foundation-be-metrics-*")
        shutil.rmtree(directory)
        pid, killed = workers_of(process).popitem()
        killed.kill()
        raw_http.until(lambda: pid not in workers_of(process), "it is replaced")
        raw_http.until(both_serve(port, process), "its successor serves")
        raw_http.until(lambda: list(directory.glob("*.db")), "it measures")
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        check_ended_well(end(process))


@WORKERS
@pytest.mark.long
def test_a_server_that_is_still_starting_ends_quietly(tmp_path: Path, workers: int) -> None:
    environment = {"STARTING": str(tmp_path), "PYTHONWARNINGS": "default::ResourceWarning"}
    with started(workers, lambda _port: len(list(tmp_path.iterdir())) == workers, environment=environment) as (
        _,
        process,
    ):
        ended = end(process)
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.long
def test_workers_that_cannot_start_end_the_server(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    with started(2, environment={"BREAK": str(broken)}) as (_, process):
        broken.touch()
        for worker in workers_of(process).values():
            worker.kill()
        ended = programs.finish(process)
    assert ended.code == 1
    assert "CRITICAL app.serving: a worker cannot start: something is broken" in ended.err
    assert "CRITICAL app.serving: the server stops: 5 workers in a row ended right after their start" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.long
def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    with started(2) as (port, process):
        for _ in range(serving.MAX_FAILED_STARTS - 1):
            raw_http.until(both_serve(port, process), "both serve")
            pid, killed = workers_of(process).popitem()
            killed.kill()
            raw_http.until(lambda gone=pid: gone not in workers_of(process), "it has ended")
        raw_http.until(both_serve(port, process), "both serve")
        ended = end(process)
    check_ended_well(ended)
    assert ended.err.count("ended with exit code -9") == serving.MAX_FAILED_STARTS - 1


@pytest.mark.long
def test_a_worker_that_hangs_does_not_hold_up_the_end() -> None:
    with started(2) as (port, process):
        raw_http.until(both_serve(port, process), "both serve")
        pid, stuck = workers_of(process).popitem()
        stuck.suspend()
        ended = end(process)
        assert not stuck.is_running()
    assert ended.code == 0
    assert f"worker {pid} does not stop: killing it" in ended.err


@WORKERS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.sampled(1)
def test_every_signal_ends_the_server_in_order(workers: int, number: signal.Signals) -> None:
    inherited = signal.signal(number, signal.SIG_DFL)  # a run under nohup ignores SIGHUP, and so would the server
    try:
        with started(workers) as (_, process):
            check_ended_well(end(process, number))
    finally:
        signal.signal(number, inherited)


@WORKERS
@pytest.mark.long
def test_a_second_ctrl_c_still_ends_it_in_order(workers: int) -> None:
    with started(workers) as (port, process), raw_http.connect(port) as wire:
        wire.send(get("/slow"))
        time.sleep(0.2)
        for _ in range(3):
            for one in everyone(process):  # as a terminal does
                one.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert wire.receive().status == 200, "the request is answered"
        check_ended_well(programs.finish(process))


EXITING = """
import atexit, signal
from app import serving
serving._exit_on_signals()
atexit.register(print, "whole")
atexit.register(signal.raise_signal, signal.SIGINT)
signal.raise_signal(signal.SIGTERM)
"""


def test_a_signal_does_not_interrupt_the_exit() -> None:
    ended = subprocess.run([sys.executable, "-c", EXITING], cwd=BASE_DIR, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "whole\n", "")


@WORKERS
@pytest.mark.long
def test_nohup_keeps_the_server_alive(workers: int) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with started(workers, preexec_fn=ignore) as (port, process):
        for one in everyone(process):
            one.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert answers(port)
        check_ended_well(end(process))


@WORKERS
@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.long
def test_standard_error_that_is_not_read_holds_nothing_up(workers: int, is_closed: bool) -> None:
    reader, writer = os.pipe()
    with started(workers, stderr=writer) as (port, process):
        os.close(writer)
        if is_closed:
            os.close(reader)
        with raw_http.connect(port) as wire:
            for _ in range(2000):  # each with a line of more than 200 characters
                wire.send(get("/"))
                assert wire.receive().status == 200
        check_ended_well(end(process))
    if not is_closed:
        text = os.read(reader, 1_000_000)
        os.close(reader)
        assert 10_000 < len(text) < 1_000_000


@pytest.mark.long
def test_without_standard_error_the_log_goes_nowhere(tmp_path: Path) -> None:
    with started(1, preexec_fn=lambda: os.close(2), stderr=None) as (_, process):
        check_ended_well(end(process))


def limited(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_few_open_files_do_not_stop_the_server() -> None:
    with started(1, preexec_fn=limited(128, 128)) as (port, process):
        idle = [raw_http.connect(port) for _ in range(300)]
        for _ in range(20):
            assert answers(port)
        for wire in idle:
            wire.close()
        ended = end(process)
    check_ended_well(ended)
    assert ended.err.count("closing idle ones for new ones") == 1


@pytest.mark.long
def test_no_open_files_left_do_not_stop_the_server() -> None:
    with started(1, preexec_fn=limited(64, 2048)) as (port, process):
        psutil.Process(process.pid).rlimit(psutil.RLIMIT_NOFILE, (30, 2048))
        idle = [raw_http.connect(port) for _ in range(200)]
        time.sleep(0.3)
        for wire in idle:
            wire.close()
        raw_http.until(lambda: answers(port), "it answers again")
        check_ended_well(end(process))


def test_a_soft_limit_of_open_files_is_raised() -> None:
    with started(1, preexec_fn=limited(128, 2048)) as (_, process):
        assert psutil.Process(process.pid).rlimit(psutil.RLIMIT_NOFILE) == (2048, 2048)


@pytest.mark.long
def test_workers_keep_the_settings_key_and_prices_of_the_start(tmp_path: Path) -> None:
    main = programs.install(tmp_path / "project") / "main.py"
    (main.parent / "prices.toml").write_text('[[price]]\nmodel = "m"\ninput = 1\noutput = 1\n')
    (main.parent / ".env").write_text(f"SECRET_KEY={SECRET_KEY}\nWORKERS=2\n")
    with programs.started(main, tmp_path, commands.free_port(), {}) as (address, process):
        (main.parent / "prices.toml").write_text("broken")
        (main.parent / ".env").write_text("WORKERS=no\n")
        first = workers_of(process)
        for worker in first.values():
            worker.kill()
        raw_http.until(lambda: len(workers_of(process).keys() - first.keys()) == 2, "new ones begin")
        raw_http.until(lambda: answers_ready(address), "new ones serve")
        ended = end(process)
    assert ended.code == 0, ended.err


def answers_ready(address: str) -> bool:
    return exchange(int(address.rpartition(":")[2]), get("/ready")).status == 200

"""`python -m benchmarks.attacked`: compare latency under attack with idle latency.

The requests are `/health` and `/auth/me`. The benchmark uses only SQLite, because the handling of an attack does not
depend on the database. It runs for two minutes.
"""

import argparse
import contextlib
import itertools
import statistics
import tempfile
import threading
from collections.abc import Iterator

from benchmarks import databases, load, sizes, stages
from benchmarks import figures as tables
from benchmarks.figures import Figure, Measure, by_turns
from benchmarks.sizes import Sizes
from benchmarks.stages import Stage

_MEGABYTE = 2**20
_SLOW_CONNECTIONS = 200
_CHUNKED = b"POST /auth/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacked", description=__doc__)
    parser.add_argument(
        "--size", choices=("usual", "smoke"), default="usual", help="size of the measurement (%(default)s)"
    )
    wanted = sizes.USUAL if parser.parse_args().size == "usual" else sizes.SMOKE
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="foundation-be-bench-"))
        stage = stack.enter_context(stages.opened("SQLite", f"sqlite:///{directory}/bench.db", sizes.SMOKE.many))
        print(tables.table(list(_figures(stage, wanted))))  # noqa: T201


def _figures(stage: Stage, wanted: Sizes) -> Iterator[Figure]:
    service = databases.token(stage.users.service)
    attacks: dict[str, list[bytes]] = {
        "a body of 4 MB with an invented key": [_post("fbk_1_invented", 4 * _MEGABYTE)],
        "16 MB of wrong records from a service": [_post(service, 16 * _MEGABYTE - 2)],
        "a head of 64 MB": [b"GET / HTTP/1.1\r\nX: ", *[b"x" * _MEGABYTE] * 64],
        "chunks of one byte": [_CHUNKED, *[b"1\r\nx\r\n" * 100_000] * 8],
        f"{_SLOW_CONNECTIONS} slow connections": [b"GET / HTTP/1.1\r\n"],
    }
    for what, pieces in attacks.items():
        held = _SLOW_CONNECTIONS if len(pieces) == 1 and len(pieces[0]) < 100 else 0
        for path in ("/health", "/auth/me"):
            request = load.request("GET", path, databases.token(stage.users.year))
            idle, busy = _idle(stage.ours, request, wanted), _busy(stage.ours, request, wanted, pieces, held)
            ours, floor = by_turns(wanted.repeats, busy, idle)
            yield Figure(
                what=f"GET {path} beside {what}, p95",
                database=stage.kind,
                unit="ms",
                ours=ours,
                floor_is="nothing beside",
                floor=floor,
            )


def _post(token: str, size: int) -> bytes:
    return load.request("POST", "/usage/records", token, b'{"records": [' + b"{}," * ((size - 20) // 3) + b"{}]}")


def _p95(took: list[float]) -> float:
    return 1000 * (statistics.quantiles(took, n=20)[-1] if len(took) > 1 else took[0])


def _idle(address: str, request: bytes, wanted: Sizes) -> Measure:
    return lambda: _p95(load.run(address, itertools.repeat(request), 1, wanted.seconds)[:-1])


def _busy(address: str, request: bytes, wanted: Sizes, pieces: list[bytes], held: int) -> Measure:
    def measure() -> float:
        stop = threading.Event()
        attacker = threading.Thread(target=_attack, args=(address, pieces, stop))
        with contextlib.ExitStack() as stack:
            for _ in range(held):
                slow = stack.enter_context(load.connect(address))
                slow.sendall(pieces[0])
            attacker.start()
            try:
                return _p95(load.run(address, itertools.repeat(request), 1, wanted.seconds)[:-1])
            finally:
                stop.set()
                attacker.join()

    return measure


def _attack(address: str, pieces: list[bytes], stop: threading.Event) -> None:
    """Send the pieces repeatedly, each time over a new connection.

    Read the response, unless the pieces are the start of a slow request.
    """
    while not stop.is_set():
        with contextlib.suppress(ConnectionError), load.connect(address) as connection:
            for piece in pieces:
                connection.sendall(piece)
            if len(pieces) > 1 or len(pieces[0]) > 100:
                connection.recv(65_536)
        stop.wait(0.01)


if __name__ == "__main__":
    main()

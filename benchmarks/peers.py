"""`python -m benchmarks.peers DIRECTORY`: compare this product with its peers.

The program measures chat turns, and reading a user's month of usage.
Each peer is installed from PyPI into a virtual environment of its own in the directory. A peer that cannot be
installed or started is named in the output, and the others are measured.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks import databases, load, products, servers, stages, turns
from benchmarks.figures import by_turns
from benchmarks.products import Product

LITELLM, OPEN_WEBUI = "1.108.7", "0.12.4"
CONNECTIONS = (1, 8, 32)


@dataclass(frozen=True)
class Sample:
    """Hold one sample of a load, in seconds.

    `took` are the response times, `whole` the duration of the load, and `used` the server's processor time.
    """

    took: Sequence[float]
    whole: float
    used: float

    @property
    def rate(self) -> float:
        """Return the responses per second."""
        return len(self.took) / self.whole

    @property
    def p50(self) -> float:
        """Return the median response time, in milliseconds."""
        return statistics.median(self.took) * 1000

    @property
    def processor(self) -> float:
        """Return the server's processor time of a response, in milliseconds."""
        return self.used / len(self.took) * 1000


class Row(NamedTuple):
    """Hold one row: the samples of each product, by name."""

    what: str
    unit: str
    samples: dict[str, list[float]]

    def cells(self, names: Sequence[str]) -> list[str]:
        """Return the medians of these products, ours first.

        After each peer's median comes our figure divided by theirs, as the median over all rounds.
        """
        ours, *peers = (self.samples.get(name, []) for name in names)
        cells = [self.what, f"{_number(statistics.median(ours))} {self.unit}"]
        for theirs in peers:
            ratios = [our / their for our, their in zip(ours, theirs, strict=True)] if theirs else []
            cells += [f"{_number(statistics.median(theirs))} {self.unit}" if theirs else "–"]
            cells += [f"{_number(statistics.median(ratios))} ×" if ratios else "–"]
        return cells


def main() -> None:
    """Print the table, and before it what could not be measured."""
    flags = _flags()
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        urls = stack.enter_context(databases.urls())
        stage = stack.enter_context(stages.opened("PostgreSQL", urls["PostgreSQL"], flags.messages * 2))
        model = stack.enter_context(servers.model(pause_seconds=0))
        compared = [products.ours(stage, model, stack)]
        for start, version in ((products.litellm, flags.litellm), (products.open_webui, flags.open_webui)):
            setup = products.Setup(flags.directory, version, stage.url, model, flags.messages, stack)
            try:
                compared.append(start(setup))
            except (OSError, RuntimeError) as error:
                _say(f"not measured: {start.__name__} {version}: {error}")
        for stream, connections in itertools.product((False, True), CONNECTIONS):
            rows += _turns(compared, stream, connections, flags)
        rows += _reading(compared, flags)
        rows.append(_memory(compared))
    _say(_table(rows, [product.name for product in compared]))
    flags.json.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n", encoding="utf-8")
    _say(f"\n{os.cpu_count()} cores; load average of 15 minutes: {os.getloadavg()[2]:.1f}; samples: {flags.json}")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("directory", type=Path, help="directory of the peers' virtual environments; made if absent")
    parser.add_argument("--litellm", default=LITELLM, help="version of LiteLLM (%(default)s)")
    parser.add_argument("--open-webui", default=OPEN_WEBUI, help="version of Open WebUI (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="samples of each row (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of each sample (%(default)s)")
    parser.add_argument("--messages", type=int, default=10_000, help="messages of the month that is read (%(default)s)")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="file to write the samples to")
    flags = parser.parse_args()
    flags.directory = flags.directory.resolve()
    flags.directory.mkdir(parents=True, exist_ok=True)
    return flags


def _say(words: str) -> None:
    print(words, flush=True)  # noqa: T201


def _turns(compared: Sequence[Product], stream: bool, connections: int, flags: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of one load of turns.

    Raises:
        RuntimeError: a product has stored another number of answers than it gave.
    """
    given = [0] * len(compared)

    def counted(number: int) -> Callable[[], Sample]:
        product = compared[number]
        sampler = _sampler(product, product.chat(stream), connections, flags.seconds)

        def sample() -> Sample:
            sampled = sampler()
            given[number] += len(sampled.took)
            return sampled

        return sample

    before = [product.stored() for product in compared]
    samples = by_turns(flags.repeats, *(counted(number) for number in range(len(compared))))
    for product, earlier, many in zip(compared, before, given, strict=True):
        stored = product.stored()
        if stored is not None and earlier is not None and stored - earlier != many:
            raise RuntimeError(f"{product.name} gave {many} answers, and stored {stored - earlier}")
    what = f"{'streamed' if stream else 'whole'} turns, {connections} connection{'s' if connections > 1 else ''}"
    print(what, file=sys.stderr)  # noqa: T201
    yield from _rows(what, compared, samples)


def _reading(compared: Sequence[Product], flags: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of each of our requests for usage."""
    ours, *peers = compared
    for peer in peers:
        if not peer.usage:
            _say(f"not measured: reading the usage of {peer.name}")
    readers = [peer for peer in peers if peer.usage]
    theirs = [next(iter(reader.usage.values())) for reader in readers]
    for what, request in ours.usage.items():
        samplers = [
            _sampler(product, itertools.repeat(asked), 1, flags.seconds)
            for product, asked in zip([ours, *readers], [request, *theirs], strict=True)
        ]
        yield from _rows(what, [ours, *readers], by_turns(flags.repeats, *samplers))


def _memory(compared: Sequence[Product]) -> Row:
    def mebibytes(product: Product) -> float:
        return sum(process.memory_info().rss for process in _processes(product)) / 2**20

    return Row("memory of the server afterwards", "MiB", {product.name: [mebibytes(product)] for product in compared})


def _rows(what: str, compared: Sequence[Product], samples: Sequence[Sequence[Sample]]) -> Iterator[Row]:
    names = [product.name for product in compared]

    def row(figure: str, unit: str, values: Callable[[Sequence[Sample]], list[float]]) -> Row:
        return Row(f"{what}: {figure}", unit, dict(zip(names, map(values, samples), strict=True)))

    yield row("rate", "/s", lambda of: [sample.rate for sample in of])
    yield row("p50", "ms", lambda of: [sample.p50 for sample in of])
    yield row("p99", "ms", lambda of: [_p99(of)])
    yield row("processor time", "ms", lambda of: [sample.processor for sample in of])


def _p99(samples: Sequence[Sample]) -> float:
    """Return the 99th percentile of all samples, in milliseconds.

    One sample of a slow peer has too few responses.
    """
    took = sorted(itertools.chain.from_iterable(sample.took for sample in samples))
    return took[len(took) * 99 // 100] * 1000


def _sampler(product: Product, requests: Iterator[bytes], connections: int, seconds: float) -> Callable[[], Sample]:
    def sample() -> Sample:
        before = _used(product)
        *took, whole = load.run(product.server.address, requests, connections, seconds)
        return Sample(took, whole, _used(product) - before)

    return sample


def _processes(product: Product) -> list[psutil.Process]:
    process = psutil.Process(product.server.process.pid)
    return [process, *process.children(recursive=True)]


def _used(product: Product) -> float:
    return sum(turns.processor_seconds(process.pid) for process in _processes(product))


def _table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Return a Markdown table."""
    headings = ["what", names[0], *itertools.chain.from_iterable((name, "ours / theirs") for name in names[1:])]
    lines = [headings, ["---"] * len(headings), *(row.cells(names) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.{3 if value >= 1 else 2}g}"


if __name__ == "__main__":
    main()

"""`python -m benchmarks`: print the performance table, and write it as JSON."""

import argparse
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks import (
    databases,
    figures,
    hostile,
    reading,
    records,
    resting,
    searching,
    sizes,
    stages,
    streaming,
    turns,
    writing,
)
from benchmarks.figures import Figure
from benchmarks.sizes import Sizes
from benchmarks.stages import Stage

GROUPS: dict[str, Callable[[Stage, Sizes], Iterator[Figure]]] = {
    "reading": reading.figures,
    "searching": searching.figures,
    "writing": writing.figures,
    "records": records.figures,
    "streaming": streaming.figures,
    "turns": turns.figures,
    "resting": resting.figures,
    "hostile": hostile.figures,
}
SIZES = {"usual": sizes.USUAL, "full": sizes.FULL, "smoke": sizes.SMOKE}


def main() -> None:
    """Run the groups of benchmarks that the flags select."""
    flags = _flags()
    started = time.perf_counter()
    wanted = SIZES[flags.size]
    measured: list[Figure] = []
    with databases.urls() as urls:
        for kind, url in urls.items():
            with stages.opened(kind, url, wanted.many) as stage:
                for figure in itertools.chain.from_iterable(GROUPS[name](stage, wanted) for name in flags.groups):
                    measured.append(figure)
                    print(f"{kind}: {figure.what}", file=sys.stderr)  # noqa: T201
    print(figures.table(measured))  # noqa: T201
    seconds = round(time.perf_counter() - started)
    report = {"machine": _machine(), "size": flags.size, "seconds": seconds}
    report["figures"] = [figure.as_json() for figure in measured]
    flags.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\n{_machine()['processor']}, {os.cpu_count()} cores; {seconds} s; samples: {flags.json}")  # noqa: T201


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="usual", help="size of the measurement (usual: three minutes)")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="file to write the samples to")
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], help="measure only these rows")
    flags = parser.parse_args()
    flags.groups = flags.groups or list(GROUPS)
    return flags


def _machine() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
    }


if __name__ == "__main__":
    main()

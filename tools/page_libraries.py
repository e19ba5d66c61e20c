"""Write the libraries of the pages, from npm, into the repository.

Run `python -m tools.page_libraries` after a change of `LIBRARIES`.
"""

import io
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

VENDOR = Path(__file__).parents[1] / "routers" / "web" / "vendor"


class Library(NamedTuple):
    """Name a package of npm, and its files that are wanted."""

    package: str
    name: str
    script: str
    licences: tuple[str, ...]
    removed: bytes = b""


LIBRARIES = (
    Library("chart.js@4.6.1", "chart", "dist/chart.umd.min.js", ("LICENSE.md",)),
    Library(
        "redoc@2.5.4",
        "redoc",
        "bundles/redoc.standalone.js",
        ("LICENSE", "bundles/redoc.standalone.js.LICENSE.txt"),
        b"https://cdn.redoc.ly/redoc/logo-mini.svg",
    ),
)
"""`removed` is the address of a picture that would be loaded from elsewhere."""


def main() -> None:
    """Download the packages, and replace the files."""
    for library in LIBRARIES:
        with tempfile.TemporaryDirectory() as directory:
            command = ["npm", "pack", "--silent", "--pack-destination", directory, library.package]
            subprocess.run(command, check=True, capture_output=True, text=True)
            [archive] = Path(directory).iterdir()
            package = archive.read_bytes()
        script = _without_map(_file(package, library.script))
        if library.removed:
            script = script.replace(library.removed, b"data:,")
        (VENDOR / f"{library.name}.js").write_bytes(script)
        licences = b"\n".join(_file(package, path) for path in library.licences)
        (VENDOR / f"{library.name}.LICENSE.txt").write_bytes(licences)


def _file(package: bytes, path: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        content = archive.extractfile(f"package/{path}")
        assert content is not None
        return content.read()


def _without_map(text: bytes) -> bytes:
    return b"\n".join(line for line in text.split(b"\n") if not line.startswith(b"//# sourceMappingURL"))


if __name__ == "__main__":
    main()

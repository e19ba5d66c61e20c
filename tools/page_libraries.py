"""Write the libraries of `/app`, from npm, into the repository.

Run `python -m tools.page_libraries` after a change of `LIBRARY`.
"""

import subprocess
import tarfile
import tempfile
from pathlib import Path

LIBRARY = "chart.js@4.6.1"
FILES = {"dist/chart.umd.min.js": "chart.js", "LICENSE.md": "chart.LICENSE.md"}
"""The files of the package, and their names here."""

VENDOR = Path(__file__).parents[1] / "routers" / "web" / "vendor"


def main() -> None:
    """Download the package, and replace the files."""
    with tempfile.TemporaryDirectory() as directory:
        command = ["npm", "pack", "--silent", "--pack-destination", directory, LIBRARY]
        name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
        with tarfile.open(Path(directory) / name) as package:
            for path, ours in FILES.items():
                content = package.extractfile(f"package/{path}")
                assert content is not None
                (VENDOR / ours).write_bytes(_without_map(content.read()))


def _without_map(text: bytes) -> bytes:
    return b"\n".join(line for line in text.split(b"\n") if not line.startswith(b"//# sourceMappingURL"))


if __name__ == "__main__":
    main()

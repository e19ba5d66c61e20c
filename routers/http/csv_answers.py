"""Answer in CSV, in cells that no spreadsheet interprets."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

from fastapi import Request, Response

from app import money

KIND = "text/csv"
DOCUMENTED: dict[int | str, dict[str, Any]] = {200: {"content": {KIND: {"schema": {"type": "string"}}}}}
"""What `responses` of an endpoint needs that also answers in CSV."""

Format = Literal["json", "csv"]

_FORMULA = re.compile(
    # Where a cell may begin, and the characters that make a formula, in the forms of East Asian keyboards, too.
    r"(^|[\s,;:|\"'])([=+\-@\u207a\u207b\u207c\u208a\u208b\u208c\u2212\ufb29\ufe62\ufe63\ufe66\ufe6b\uff0b\uff0d\uff1d\uff20])"
)
_JSON = ("application/json", "application/*", "*/*")
_SHIFTING = ("\t", "\r", "\n")
_QUALITY = re.compile(r"q\s*=\s*([01](\.\d{0,3})?)", re.IGNORECASE | re.ASCII)


class CsvText:
    """Collect rows; text becomes inert, and money keeps every digit."""

    def __init__(self, *header: str) -> None:
        self._text = io.StringIO()
        self._writer = csv.writer(self._text, quoting=csv.QUOTE_ALL)
        self._writer.writerow(header)

    def add(self, row: Sequence[Any]) -> None:
        """Add one row."""
        self._writer.writerow([_cell(value) for value in row])

    def answer(self, name: str) -> Response:
        """Return the rows as a file of this name."""
        headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
        return Response(self._text.getvalue(), media_type=KIND, headers=headers)


def is_wanted(request: Request, chosen: Format | None) -> bool:
    """Return whether to answer in CSV.

    Without a `format`, `Accept` decides: it names CSV, and does not prefer JSON. Source: RFC 9110, section 12.5.1.
    """
    if chosen is not None:
        return chosen == "csv"
    qualities: dict[str, float] = {}
    for item in ",".join(request.headers.getlist("accept")).split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        found = [match for match in map(_QUALITY.fullmatch, parameters) if match]
        qualities[kind] = float(found[0][1]) if found else 1.0
    return _quality(qualities, KIND) > _quality(qualities, *_JSON)


def _quality(qualities: Mapping[str, float], *kinds: str) -> float:
    """Return the quality of the first of these kinds that is named."""
    return next((qualities[kind] for kind in kinds if kind in qualities), 0.0)


def _cell(value: Any) -> Any:
    if isinstance(value, Decimal):
        return money.as_text(value)
    return _inert(value) if isinstance(value, str) else value


def _inert(text: str) -> str:
    """Return text that no spreadsheet interprets as a formula.

    Source: OWASP, "CSV Injection", for any separator of cells.
    """
    inert = _FORMULA.sub(r"\1'\2", text)
    return f"'{inert}" if inert.startswith(_SHIFTING) else inert

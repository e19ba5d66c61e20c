"""Support HTML pages under a strict Content-Security-Policy."""

import base64
import hashlib
import re

_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def script_sources(page: str) -> str:
    """List the hashes of a page's scripts: CSP Level 3, section 2.3.1."""
    digests = [hashlib.sha256(script.encode()).digest() for script in _SCRIPT.findall(page)]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

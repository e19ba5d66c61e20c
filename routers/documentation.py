"""`/docs`: Swagger UI, under a policy that lets it run and nothing else."""

import base64
import hashlib
import re

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_CDN = "https://cdn.jsdelivr.net/npm/"


def router(title: str, openapi_url: str) -> APIRouter:
    """The one page."""
    page = bytes(get_swagger_ui_html(openapi_url=openapi_url, title=title).body).decode()
    headers = {"Content-Security-Policy": _policy(page)}
    routes = APIRouter(include_in_schema=False)

    @routes.get("/docs")
    async def documentation() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    return routes


def _policy(page: str) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in _SCRIPT.findall(page)]
    scripts = " ".join([_CDN, *(f"'sha256-{digest}'" for digest in hashes)])
    return (
        f"default-src 'none'; script-src {scripts}; style-src {_CDN} 'unsafe-inline'; "
        "img-src https://fastapi.tiangolo.com data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
    )

"""Serve `/docs`, Swagger UI, and `/redoc`, from the server's own files alone."""

from importlib import metadata, resources

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

from app.errors import NotFound
from routers.http import pages

_PACKAGE = "fastapi-swagger"
"""The package that contains the files of npm's `swagger-ui-dist`, unchanged; its code is not used."""

_TYPES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon-32x32.png": "image/png"}
_REDOC = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<redoc spec-url="{openapi_url}"></redoc>
<script src="app/files/vendor/redoc.js"></script>
</html>
"""
_REDOC_POLICY = (
    "default-src 'none'; script-src 'self'; worker-src blob:; style-src 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Redoc writes its styles into the page."""

_READ = ["GET", "HEAD"]
_CACHED_FOR_GOOD = {"Cache-Control": "public, max-age=31536000, immutable", "Accept-Ranges": "none"}


def router(title: str, openapi_url: str) -> APIRouter:
    """Serve the pages and their files.

    All addresses in the pages are relative, so that they also work below a prefix of a proxy.
    """
    bundle, styles, icon = (f"docs/{name}?v={metadata.version(_PACKAGE)}" for name in _TYPES)
    answer = get_swagger_ui_html(
        openapi_url=openapi_url.removeprefix("/"),
        title=title,
        swagger_js_url=bundle,
        swagger_css_url=styles,
        swagger_favicon_url=icon,
        swagger_ui_parameters={"validatorUrl": None},
    )
    page = bytes(answer.body).decode()
    headers = {"Content-Security-Policy": _policy(page)}
    redoc = _REDOC.format(title=title, openapi_url=openapi_url.removeprefix("/"))
    files = resources.files(_PACKAGE.replace("-", "_")) / "resources"
    routes = APIRouter(include_in_schema=False)

    @routes.api_route("/docs", methods=_READ)
    async def documentation() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @routes.api_route("/docs/{name}", methods=_READ)
    async def documentation_file(name: str) -> FileResponse:
        if name not in _TYPES:
            raise NotFound("There is no such file.")
        return FileResponse(str(files / name), media_type=_TYPES[name], headers=_CACHED_FOR_GOOD)

    @routes.api_route("/redoc", methods=_READ)
    async def other_documentation() -> HTMLResponse:
        return HTMLResponse(redoc, headers={"Content-Security-Policy": _REDOC_POLICY})

    return routes


def _policy(page: str) -> str:
    return (
        f"default-src 'none'; script-src 'self' {pages.script_sources(page)}; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

"""Serve `/docs`: Swagger UI, from installed files alone."""

from importlib import metadata, resources

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

from app.errors import NotFound
from routers.http import pages

_PACKAGE = "fastapi-swagger"
"""The package that contains the files of npm's `swagger-ui-dist`, unchanged; its code is not used."""

_TYPES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon-32x32.png": "image/png"}
_CACHED_FOR_GOOD = {"Cache-Control": "public, max-age=31536000, immutable"}


def router(title: str, openapi_url: str) -> APIRouter:
    """Serve the page and its files.

    All addresses in the page are relative, so that it also works below a prefix of a proxy.
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
    files = resources.files(_PACKAGE.replace("-", "_")) / "resources"
    routes = APIRouter(include_in_schema=False)

    @routes.get("/docs")
    async def documentation() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @routes.get("/docs/{name}")
    async def documentation_file(name: str) -> FileResponse:
        if name not in _TYPES:
            raise NotFound("There is no such file.")
        return FileResponse(str(files / name), media_type=_TYPES[name], headers=_CACHED_FOR_GOOD)

    return routes


def _policy(page: str) -> str:
    return (
        f"default-src 'none'; script-src 'self' {pages.script_sources(page)}; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

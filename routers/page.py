"""Serve `/app`: a page that shows usage, chats, and administers.

Its files are in `web/`. They work as they are: nothing is built, and nothing is loaded from elsewhere.
"""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response, status
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from app.errors import Forbidden, NotFound
from routers import logins
from routers.http.dependencies import AddressDep, StateDep
from routers.http.requests import ExactRoute
from routers.logins import AccessToken, Login
from services.accounts import sessions

router = APIRouter(include_in_schema=False, route_class=ExactRoute)

COOKIE = "__Host-foundation"
"""The refresh token of the page's login, which no script can read.

The page keeps its access token in memory alone, and sends it as any other client of the API does.
"""

_FILES = Path(__file__).parent / "web"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ATTRIBUTES: dict[str, Any] = {"secure": True, "httponly": True, "samesite": "strict"}
_READ = ["GET", "HEAD"]
_files = StaticFiles(directory=_FILES)


@router.api_route("/", methods=_READ)
async def start() -> RedirectResponse:
    """Lead to the page, also below a prefix of a proxy."""
    return RedirectResponse("app")


@router.api_route("/app/", methods=_READ)
async def start_with_slash() -> RedirectResponse:
    """Lead to the page, whose addresses are relative."""
    return RedirectResponse("../app")


@router.api_route("/app", methods=_READ)
async def page(request: Request) -> Response:
    """Show the page."""
    answer = await page_file("index.html", request)
    answer.headers["Content-Security-Policy"] = _POLICY
    return answer


@router.api_route("/app/files/{name:path}", methods=_READ)
async def page_file(name: str, request: Request) -> Response:
    """Serve a file of the page; browsers ask each time for changes."""
    try:
        answer = await _files.get_response(name, request.scope)
    except HTTPException:
        raise NotFound("There is no such file.") from None
    answer.headers.update({"Cache-Control": "no-cache", "Accept-Ranges": "none"})
    return answer


@router.post("/app/session", response_model_exclude_none=True)
async def begin_session(
    body: Login, request: Request, response: Response, address: AddressDep, state: StateDep
) -> AccessToken:
    """Log in; the refresh token becomes the cookie."""
    _check_origin(request)
    view = await logins.log_in(state, body.model_copy(update={"scope": logins.REFRESHABLE}), address)
    return _with_cookie(response, view)


@router.post("/app/session/refresh", response_model=AccessToken, response_model_exclude_none=True)
async def refresh_session(request: Request, response: Response, state: StateDep) -> AccessToken | Response:
    """Exchange the cookie for an access token; 204 without a login."""
    _check_origin(request)
    token = request.cookies.get(COOKIE)
    view = await logins.resume(state, token) if token is not None else None
    if view is None:
        return _without_cookie(Response(status_code=status.HTTP_204_NO_CONTENT))
    return _with_cookie(response, view)


@router.delete("/app/session")
async def end_session(request: Request, state: StateDep) -> Response:
    """End the login of the cookie, and delete the cookie."""
    _check_origin(request)
    token = request.cookies.get(COOKIE, "")
    await state.database.transaction(lambda session: sessions.end_by_refresh_token(session, token), repeatable=True)
    return _without_cookie(Response(status_code=status.HTTP_204_NO_CONTENT))


def _with_cookie(response: Response, view: AccessToken) -> AccessToken:
    age, attributes = view.refresh_expires_in, _ATTRIBUTES
    response.set_cookie(COOKIE, view.refresh_token or "", max_age=age, **attributes)
    return AccessToken(access_token=view.access_token, expires_in=view.expires_in)


def _without_cookie(response: Response) -> Response:
    response.delete_cookie(COOKIE, **_ATTRIBUTES)
    return response


def _check_origin(request: Request) -> None:
    """Refuse what another site sends, with the cookie that browsers add.

    Source: OWASP, "Cross-Site Request Forgery Prevention", Fetch Metadata. Browsers without it send `Origin`.

    Raises:
        Forbidden: another origin sent the request.
    """
    headers = request.headers
    if site := headers.get("sec-fetch-site"):
        is_ours = site == "same-origin"
    else:
        origin = headers.get("origin")
        is_ours = origin is None or origin.partition("://")[2] == headers.get("host")
    if not is_ours:
        raise Forbidden("This is only for this server's own page. A proxy must pass on the Host header.")

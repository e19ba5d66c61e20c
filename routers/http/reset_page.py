"""Serve the page that resets a password.

The token is in the fragment of the link, which browsers do not send.
"""

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from app.security import passwords
from routers.http import pages

PATH = "/auth/reset-password"

_PAGE = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Set a new password</title>
<h1>Set a new password</h1>
<form>
<input type="password" name="password" autocomplete="new-password" aria-label="New password"
  minlength="{passwords.MIN_LENGTH}" maxlength="{passwords.MAX_LENGTH}" required autofocus>
<button>Set the password</button>
</form>
<p role="status"></p>
<script>
const form = document.querySelector("form");
const said = document.querySelector("p");

async function reset() {{
  const body = JSON.stringify({{ token: location.hash.slice(1), new_password: form.password.value }});
  const headers = {{ "Content-Type": "application/json" }};
  const answer = await fetch(location.pathname, {{ method: "POST", headers, body }});
  if (answer.ok) {{
    form.remove();
    return "The password is set. Log in with it.";
  }}
  const problem = await answer.json();
  return Object.values(problem.errors ?? {{}}).flat().join(" ") || problem.detail;
}}

form.addEventListener("submit", async (event) => {{
  event.preventDefault();
  said.textContent = await reset().catch(() => "The server is unreachable. Try again.");
}});
</script>
</html>
"""
_POLICY = (
    f"default-src 'none'; script-src {pages.script_sources(_PAGE)}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


def link(token: str) -> str:
    """Build the path that opens the page for this token."""
    return f"{PATH}#{token}"


@router.get(PATH)
async def reset_page() -> HTMLResponse:
    """Ask for the new password."""
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})

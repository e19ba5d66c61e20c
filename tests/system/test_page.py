"""`/app` in a real browser: each page for each role, in figures equal to the API's, for every reader."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.support import browser, commands, raw_sql
from tests.support.accounts import PASSWORD
from tests.support.page_tabs import LOOKS, Tab, submit

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

pytestmark = browser.needed
long = pytest.mark.long

XSS = "<img src=x onerror=alert(1)><script>alert(2)</script>"
DAY = "2024-12-24"
RANGE = {"from": "2024-12-01", "to": "2024-12-31"}
QUERY = "from=2024-12-01&to=2024-12-31"
WRONG_ADDRESSES = {
    "/usage?from=2026-12-31&to=2026-01-01": "must not be after",
    "/usage?from=garbage": "YYYY-MM-DD",
    "/users?month=x": "YYYY-MM",
    "/users/999": "no such user",
    "/users/1?from=garbage": "YYYY-MM-DD",
    "/nowhere": "no such page",
    "/usage?show=constructor": "Projected this month",
}


class Served(NamedTuple):
    """A server with two users and their usage."""

    address: str
    user_id: int
    user: dict[str, str]
    admin: dict[str, str]

    def read(self, path: str, headers: dict[str, str], **query: Any) -> Any:
        """What the API answers."""
        answer = httpx.get(f"{self.address}/{path}", headers=headers, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def served(database_url: str, tmp_path: Path) -> Iterator[Served]:
    """A server whose texts are attacks."""
    with commands.server(database_url, tmp_path) as address:
        for name in ("ayu", "boss"):
            body = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
            assert httpx.post(f"{address}/auth/register", json=body).status_code == 201
        raw_sql.run(database_url, "UPDATE users SET role = 'admin' WHERE username = 'boss'")

        def headers(name: str) -> dict[str, str]:
            answer = httpx.post(f"{address}/auth/login", json={"username": name, "password": PASSWORD})
            return {"Authorization": f"Bearer {answer.json()['access_token']}"}

        user, admin = headers("ayu"), headers("boss")
        user_id = httpx.get(f"{address}/auth/me", headers=user).json()["id"]
        records = [
            {"id": f"r{n}", "user_id": user_id, "model": model, "input_tokens": 1000 + n, "output_tokens": 10}
            | {"created_at": f"{day}T12:00:00Z"}
            for n, (model, day) in enumerate(
                [("gpt-4o", DAY), (XSS, DAY), ("gpt-4o", "2024-12-02"), (XSS, "2024-11-30")]
            )
        ]
        sent = httpx.post(f"{address}/usage/records", json={"records": records}, headers=admin)
        assert sent.status_code == 200, sent.text
        yield Served(address, user_id, user, admin)


@pytest.fixture
def chromium() -> Iterator[Any]:
    """A browser that reaches this machine alone."""
    flags = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=browser.CHROMIUM, args=flags)
        yield launched
        launched.close()


def figures(row: Any) -> list[str]:
    """A row's figures as a reader of en-US sees them."""
    names = ("input_tokens", "output_tokens", "total_tokens", "message_count")
    is_priced = row.get("unpriced_count") != row["message_count"]
    return [f"${row['total_cost']:,.4f}" if is_priced else "no price", *(f"{row[name]:,}" for name in names)]


@pytest.mark.long
@pytest.mark.any_database
def test_usage_is_shown_in_the_figures_of_the_api(served: Served, chromium: Any) -> None:
    tab = Tab(chromium, served.address)
    tab.log_in("ayu")
    tab.open(f"/usage?{QUERY}&day={DAY}")
    months = served.read("auth/me", served.user)["token_stats"]["monthly_stats"]
    days = served.read("auth/token-stats/daily", served.user, **RANGE)
    models = served.read("auth/token-stats/models", served.user, **RANGE)
    talks = served.read(f"auth/token-stats/daily/{DAY}/conversations", served.user)
    assert [row[1:] for row in tab.table("Months")] == [figures(month) for month in months]
    assert [row[:6] for row in tab.table("By day")] == [
        [name, *figures(day)] for name, day in zip(("Dec 24, 2024", "Dec 2, 2024"), days["daily_stats"], strict=True)
    ]
    shown = tab.table("By model")
    assert [row[:6] for row in shown] == [[row["model"], *figures(row)] for row in models["model_stats"]]
    assert {row[0]: row[6] for row in shown} == {"gpt-4o": "0", XSS: "1"}, "unpriced messages are marked"
    assert [row[1:6] for row in tab.table("Conversations on Dec 24, 2024")] == [
        figures(talk) for talk in talks["conversation_stats"]
    ]
    total = days["total"]
    assert tab.page.locator("dl dd").all_text_contents() == [
        f"${total['total_cost']:,.4f}",
        f"{total['total_tokens']:,}",
        f"{total['message_count']:,}",
    ]
    assert "UTC time zone" in tab.page.locator("main").inner_text()
    assert tab.complaints == []


@long
def test_a_chosen_range_and_measure_have_an_address(served: Served, chromium: Any) -> None:
    tab = Tab(chromium, served.address)
    tab.log_in("ayu")
    tab.open("/usage")
    tab.page.fill("[name=from]", "2024-11-30")
    tab.page.fill("[name=to]", DAY)
    tab.page.get_by_role("button", name="Show").click()
    tab.wait()
    assert len(tab.table("By day")) == 3
    tab.page.get_by_role("radio", name="Tokens").check()
    tab.wait()
    assert re.search(r"from=2024-11-30&to=2024-12-24&show=tokens", tab.page.url)
    tab.page.reload()
    tab.wait()
    assert len(tab.table("By day")) == 3, "the login and the view survive"
    assert tab.page.get_by_role("radio", name="Tokens").is_checked()
    with tab.page.expect_download() as started:
        tab.page.get_by_role("button", name="Download CSV").first.click()
    text = Path(started.value.path()).read_text(encoding="utf-8")
    assert len(text.splitlines()) == 4
    assert tab.complaints == []


@long
def test_a_chat_shows_tokens_and_cost_of_each_answer(served: Served, chromium: Any) -> None:
    tab = Tab(chromium, served.address)
    tab.log_in("ayu")
    tab.open("/chat")
    for text in (XSS, "again"):
        tab.page.fill("textarea", text)
        tab.page.press("textarea", "Enter")
        tab.page.wait_for_selector("article.assistant:last-child .quiet")
    tab.open("/usage")
    tab.open("/chat")
    [talk] = served.read("conversations", served.user)["data"]
    messages = served.read(f"conversations/{talk['id']}", served.user)["messages"]
    said = [message for message in messages if message["role"] == "assistant"]
    shown = [article.inner_text() for article in tab.page.locator("article.assistant").all()]
    assert len(shown) == len(said) == 2
    for text, message in zip(shown, said, strict=True):
        assert message["content"] in text
        assert f"{message['total_tokens']} tokens" in text
        assert "no price known" in text
    assert tab.complaints == []


@long
@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("search", ["", "&search=ay"])
def test_the_csv_of_users_is_what_is_shown(served: Served, chromium: Any, search: str) -> None:
    tab = Tab(chromium, served.address)
    tab.log_in("boss")
    tab.open(f"/users?month=2024-12{search}")
    with tab.page.expect_download() as started:
        tab.page.get_by_role("button", name="Download CSV").click()
    rows = csv.DictReader(Path(started.value.path()).read_text(encoding="utf-8").splitlines())
    assert [row["username"] for row in rows] == [row[0] for row in tab.table("Users")] == ["ayu"]


@long
def test_admins_find_users_and_models(served: Served, chromium: Any) -> None:
    tab = Tab(chromium, served.address)
    tab.log_in("boss")
    tab.open("/users?month=2024-12&search=AY")
    [row] = served.read("admin/usage", served.admin, month="2024-12")["users"]
    assert tab.table("Users") == [["ayu", *figures(row), str(row["unpriced_count"]), "0"]]
    tab.page.get_by_role("link", name="ayu").click()
    tab.page.wait_for_selector("h1:has-text('Usage of ayu')")
    assert len(tab.table("By day")) == 2
    tab.page.get_by_role("button", name="Dec 24, 2024").click()
    tab.wait()
    path = f"admin/users/{served.user_id}/token-stats/daily/{DAY}/conversations"
    talks = served.read(path, served.admin)["conversation_stats"]
    assert [row[1:6] for row in tab.table("Conversations on Dec 24, 2024")] == [figures(talk) for talk in talks]
    tab.page.once("dialog", lambda dialog: dialog.accept())
    tab.page.get_by_role("button", name="Deactivate").click()
    tab.page.wait_for_selector("h1:has-text('inactive')")
    assert httpx.get(f"{served.address}/auth/me", headers=served.user).status_code == 401
    tab.page.get_by_role("button", name="Activate").click()
    tab.page.wait_for_selector("button:has-text('Deactivate')")
    tab.open(f"/models?{QUERY}")
    assert {row[0]: row[6] for row in tab.table("By model")} == {
        "gpt-4o": "priced",
        XSS: "1 of 1 messages unpriced",
    }
    assert f'model = "{XSS}"' in tab.page.locator("pre").inner_text()
    tab.open(f"/everyone?{QUERY}")
    assert len(tab.table("By day")) == 2
    tab.open("/health")
    health = served.read("admin/health", served.admin)
    counted = [health["messages_pending"], *health["since_start"].values()]
    assert tab.page.locator("dl dd").all_text_contents() == [str(number) for number in counted]
    assert health["since_start"]["messages"] == 4
    assert [text for text in tab.complaints if "Deactivate" not in text] == []


@long
def test_a_login_ends_and_is_out_of_reach_of_scripts(served: Served, chromium: Any) -> None:
    tab = Tab(chromium, served.address)
    tab.page.goto(served.address)
    submit(tab.page, "ayu", "wrong")
    assert tab.page.locator("[role=alert]").inner_text() == "Wrong username or password."
    assert all("401" in text for text in tab.complaints)
    tab.log_in("ayu")
    assert tab.page.evaluate("document.cookie + Object.keys(localStorage) + Object.keys(sessionStorage)") == ""
    twice = [tab.context.new_page() for _ in range(4)]
    for page in twice:
        page.goto(f"{served.address}/app", wait_until="commit")
    for page in twice:
        page.wait_for_selector("nav")
    tab.context.set_offline(True)
    tab.page.get_by_role("button", name="Log out").click()
    assert tab.page.locator("[role=alert]").inner_text() == "The server is unreachable. Try again."
    tab.context.set_offline(False)
    tab.page.get_by_role("button", name="Log out").click()
    tab.page.wait_for_selector("form.narrow")
    twice[0].get_by_role("link", name="Chat").click()
    twice[0].get_by_role("link", name="Usage").click()
    twice[0].wait_for_selector("form.narrow")
    tab.page.reload()
    tab.page.wait_for_selector("form.narrow")


@long
@pytest.mark.parametrize("kind", ["sqlite"])
def test_another_login_in_the_browser_is_noticed(served: Served, chromium: Any) -> None:
    """What one tab shows is never of two users."""
    tab = Tab(chromium, served.address)
    tab.log_in("ayu")
    other = tab.context.new_page()
    other.goto(served.address)
    other.get_by_role("button", name="Log out").click()
    submit(other, "boss", PASSWORD)
    other.wait_for_selector("nav")
    tab.page.get_by_role("radio", name="Tokens").check()
    tab.page.wait_for_selector("nav :text('boss')")


@long
@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_broken_chat_says_so_and_goes_on(served: Served, chromium: Any) -> None:
    tab = Tab(chromium, served.address)
    tab.log_in("ayu")
    tab.open("/chat")
    start = 'event: delta\ndata: {"content": "cut off he", "conversation_id": "c", "done": false}\n\n'
    tab.page.route("**/chat", lambda route: route.fulfill(body=start, content_type="text/event-stream"))
    tab.page.fill("textarea", "hello")
    tab.page.press("textarea", "Enter")
    assert "The connection was lost" in tab.page.locator("article.assistant [role=alert]").inner_text()
    assert "cut off he" in tab.page.locator("article.assistant").inner_text()
    tab.page.unroute("**/chat")
    tab.page.emulate_media(color_scheme="dark")
    assert tab.page.locator("article").count() == 2, "the conversation stays when it gets dark"
    tab.page.get_by_role("button", name="New conversation").click()
    tab.page.fill("textarea", "again")
    tab.page.press("textarea", "Enter")
    tab.page.wait_for_selector("article.assistant .quiet")
    assert tab.page.locator("article").count() == 2
    assert tab.complaints == []


@long
@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_wrong_address_says_so(served: Served, chromium: Any) -> None:
    tab = Tab(chromium, served.address)
    tab.log_in("boss")
    for place, said in WRONG_ADDRESSES.items():
        tab.open(place)
        tab.page.wait_for_selector(f"main :text('{said}')")
        assert tab.page.locator("nav").count() == 1, place


@long
@pytest.mark.parametrize("kind", ["sqlite"])
def test_the_keyboard_keeps_its_place(served: Served, chromium: Any) -> None:
    tab = Tab(chromium, served.address)
    tab.log_in("ayu")
    tab.page.get_by_role("radio", name="Cost").focus()
    tab.page.keyboard.press("ArrowDown")
    tab.page.wait_for_selector("canvas[aria-label^=Tokens]")
    assert tab.page.evaluate("document.activeElement.value") == "tokens"
    tab.page.get_by_role("link", name="Chat").press("Enter")
    tab.wait()
    assert tab.page.evaluate("document.activeElement.id") == "content"


@long
@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("look", LOOKS)
def test_every_page_is_accessible(served: Served, chromium: Any, look: str) -> None:
    tab = Tab(chromium, served.address, look)
    tab.page.goto(served.address)
    tab.page.wait_for_selector("form.narrow")
    violations: list[Any] = [(look, "login", axe.Axe().run(tab.page).response["violations"])]
    tab.log_in("boss")
    places = ("/usage", "/chat", "/users?month=2024-12", f"/users/{served.user_id}?{QUERY}", f"/models?{QUERY}")
    for place in (*places, f"/everyone?{QUERY}", "/health"):
        tab.open(place)
        assert tab.page.evaluate("document.body.scrollWidth <= innerWidth"), place
        violations.append((look, place, axe.Axe().run(tab.page).response["violations"]))
    assert [found for found in violations if found[2]] == []
    assert tab.page.evaluate("document.documentElement.lang") == ("id" if look == "dark" else "en")
    assert tab.complaints == []

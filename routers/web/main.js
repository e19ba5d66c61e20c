// Which page is shown: `#/usage?from=…` and the like, so that each view has an address.
import { health, models, user, users } from "./admin.js";
import * as charts from "./charts.js";
import { chat } from "./chat.js";
import { failure, field, h } from "./dom.js";
import { logIn, logOut, read } from "./session.js";
import { usage } from "./usage.js";
import { LANGUAGES, language, speak, t } from "./words.js";

const header = document.querySelector("header");
const content = document.querySelector("main");
let account = null;
let latest = 0;
let navigated = null;
let talk = null;

function place() {
  const [path, query] = location.hash.slice(1).split("?");
  return { path: path || "/usage", query: Object.fromEntries(new URLSearchParams(query)) };
}

function go(changes) {
  const { path, query } = place();
  const kept = Object.entries({ ...query, ...changes }).filter(([, value]) => value !== undefined);
  const hash = `#${path}?${new URLSearchParams(kept)}`;
  if (location.hash === hash) show();
  else location.hash = hash;
}

function pages() {
  const everyone = [["/usage", t("usage")], ["/chat", t("chat")]];
  return account.role === "admin" ? [...everyone, ["/everyone", t("everyone")], ["/users", t("users")], ["/models", t("all models")], ["/health", t("health")]] : everyone;
}

async function viewOf({ path, query }) {
  const wanted = { query, go };
  if (path === "/chat") return (talk ??= chat()); // it goes on while other pages are looked at
  if (account.role === "admin") {
    if (path === "/users") return users(wanted);
    if (path === "/models") return models(wanted);
    if (path === "/health") return health();
    if (path === "/everyone") return usage({ ...wanted, title: t("everyone"), base: "admin/token-stats", own: false });
    const found = path.match(/^\/users\/(\d+)$/);
    if (found) return user(Number(found[1]), wanted);
  }
  if (path !== "/usage") throw new Error(t("no page"));
  return usage({ ...wanted, title: t("usage"), base: "auth/token-stats", own: true });
}

function languages() {
  const change = (event) => speak(event.currentTarget.value);
  const options = Object.entries(LANGUAGES).map(([value, name]) => h("option", { value, lang: value, selected: value === language }, name));
  return h("select", { "aria-label": t("language"), change }, options);
}

function navigation() {
  const { path } = place();
  const isCurrent = (page) => (path === page || path.startsWith(`${page}/`) ? "page" : undefined);
  const skip = (event) => {
    event.preventDefault();
    content.focus();
  };
  const leave = async () => {
    try {
      await logOut();
      account = null;
      show();
    } catch (error) {
      content.prepend(failure(error));
    }
  };
  header.replaceChildren(
    h("a", { class: "skip", href: "#content", click: skip }, t("skip")),
    h(
      "nav",
      { "aria-label": "foundation-be" },
      pages().map(([page, name]) => h("a", { href: `#${page}`, "aria-current": isCurrent(page) }, name)),
      h("div", { class: "end" }, h("span", { class: "quiet" }, account.username), languages(), h("button", { type: "button", click: leave }, t("log out"))),
    ),
  );
}

function askToLogIn(error) {
  header.replaceChildren();
  navigated = talk = null;
  const username = h("input", { name: "username", autocomplete: "username", required: true });
  const password = h("input", { name: "password", type: "password", autocomplete: "current-password", required: true });
  const said = h("div", {}, error ? failure(error) : "", isSecureContext ? "" : h("p", { class: "warning" }, t("insecure")));
  const button = h("button", { class: "main" }, t("log in"));
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await logIn(username.value, password.value);
      await show();
    } catch (problem) {
      said.replaceChildren(failure(problem));
      button.disabled = false;
    }
  };
  content.replaceChildren(h("form", { class: "card narrow", submit }, h("h1", {}, t("log in")), field(t("username"), username), field(t("password"), password), said, h("p", { class: "row" }, button, languages())));
  username.focus();
}

// The control that was used is a new element now.
function focusAgain({ name, value, textContent, tagName }) {
  const same = (element) => element.name === name && element.value === value && element.textContent === textContent;
  if (name || tagName === "BUTTON") [...content.querySelectorAll(tagName)].find(same)?.focus();
}

async function show() {
  const turn = ++latest;
  const used = document.activeElement;
  const wasInHeader = header.contains(used);
  charts.clear();
  content.setAttribute("aria-busy", "true");
  const slow = setTimeout(() => turn === latest && content.replaceChildren(h("p", { role: "status" }, t("loading"))), 200);
  let shown, failed;
  try {
    account ??= await read("auth/me", { include_token_stats: false });
    if (navigated !== place().path) navigation();
    shown = await viewOf(place());
  } catch (error) {
    if (error.status === 401) account = null;
    else failed = error;
    shown = [h("h1", {}, t("usage")), failure(error), h("p", {}, h("a", { href: "#/usage" }, t("back")))];
  }
  clearTimeout(slow);
  if (turn !== latest) return;
  content.removeAttribute("aria-busy");
  if (!account) {
    askToLogIn(failed);
  } else {
    const isSamePage = navigated === place().path;
    navigated = place().path;
    content.replaceChildren(...shown.filter(Boolean));
    if (isSamePage) focusAgain(used);
    else if (wasInHeader) content.focus();
  }
  document.title = `${content.querySelector("h1").textContent} · foundation-be`;
}

document.documentElement.lang = language;
addEventListener("hashchange", show);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", charts.recolour);
show();

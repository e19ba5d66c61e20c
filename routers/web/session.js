// The login and its requests. The refresh token is in a cookie that no script can read.
import { t } from "./words.js";

const ROOT = new URL("../..", import.meta.url);
const EARLY_MS = 10_000;

let access = null;

export class Problem extends Error {
  constructor(status, body) {
    const fields = Object.entries(body?.errors ?? {}).map(([name, reasons]) => `${name}: ${reasons.join(" ")}`);
    super(fields.join(" ") || body?.detail || t("failed", { status }));
    this.status = status;
  }
}

async function send(path, options = {}) {
  let answer;
  try {
    answer = await fetch(new URL(path, ROOT), options);
  } catch {
    throw new Problem(0, { detail: t("unreachable") });
  }
  if (!answer.ok) throw new Problem(answer.status, await answer.json().catch(() => null));
  return answer;
}

function asJson(body) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

async function keep(answer) {
  if (answer.status === 204) throw new Problem(401, { detail: t("log in") });
  const { access_token: token, expires_in: seconds } = await answer.json();
  access = { token, until: Date.now() + seconds * 1000 - EARLY_MS };
}

// A refresh token may be used once: tabs that share the cookie take turns.
function inTurn(work) {
  return navigator.locks ? navigator.locks.request("foundation-session", work) : work();
}

export async function logIn(username, password) {
  await inTurn(async () => keep(await send("app/session", asJson({ username, password }))));
}

export async function resume() {
  await inTurn(async () => keep(await send("app/session/refresh", { method: "POST" })));
}

export async function logOut() {
  await request("app/session", { method: "DELETE" }).catch(() => {});
  access = null;
}

export async function request(path, options = {}) {
  if (!access || Date.now() > access.until) await resume();
  const headers = { ...options.headers, Authorization: `Bearer ${access.token}` };
  return send(path, { ...options, headers });
}

export async function read(path, query = {}) {
  const filled = Object.entries(query).filter(([, value]) => value !== undefined && value !== "");
  return (await request(`${path}?${new URLSearchParams(filled)}`)).json();
}

export async function post(path) {
  return (await request(path, { method: "POST" })).json();
}

export async function download(path, query, name) {
  const answer = await request(`${path}?${new URLSearchParams({ ...query, format: "csv" })}`);
  const url = URL.createObjectURL(await answer.blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// Server-sent events: WHATWG HTML, section 9.2.6, as far as the server uses it.
export async function* events(path, body) {
  const answer = await request(path, asJson(body));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value.replaceAll("\r", "")).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n");
      const of = (name) => lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trimStart());
      const data = of("data").join("\n");
      if (data) yield { event: of("event")[0] ?? "message", data: JSON.parse(data) };
    }
  }
}

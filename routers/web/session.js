// The login and its requests. The refresh token is in a cookie that no script can read.
import { t } from "./words.js";

const ROOT = new URL("../..", import.meta.url);
const EARLY_MS = 10_000;

let access = null;
let resuming = null;

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

// Another tab may have logged in as somebody else: what this one shows would then be of two users.
async function keep(answer) {
  if (answer.status === 204) throw new Problem(401, { detail: t("log in again") });
  const { access_token: token, expires_in: seconds } = await answer.json();
  const { sub: owner } = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
  if (access && access.owner !== owner) {
    location.reload();
    await new Promise(() => {});
  }
  access = { token, owner, until: Date.now() + seconds * 1000 - EARLY_MS };
}

function resume() {
  resuming ??= send("app/session/refresh", { method: "POST" }).then(keep).finally(() => (resuming = null));
  return resuming;
}

export async function logIn(username, password) {
  access = null;
  await keep(await send("app/session", asJson({ username, password })));
}

export async function logOut() {
  await send("app/session", { method: "DELETE" });
  access = null;
}

export async function request(path, options = {}) {
  if (!access || Date.now() > access.until) await resume();
  const authorized = () => send(path, { ...options, headers: { ...options.headers, Authorization: `Bearer ${access.token}` } });
  try {
    return await authorized();
  } catch (error) {
    if (error.status !== 401) throw error;
    await resume();
    return authorized();
  }
}

export async function read(path, query = {}) {
  return (await request(withQuery(path, query))).json();
}

function withQuery(path, query) {
  const filled = Object.entries(query).filter(([, value]) => value !== undefined && value !== "");
  return `${path}?${new URLSearchParams(filled)}`;
}

export async function post(path) {
  return (await request(path, { method: "POST" })).json();
}

export async function download(path, query, name) {
  const answer = await request(withQuery(path, { ...query, format: "csv" }));
  const url = URL.createObjectURL(await answer.blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// Server-sent events: WHATWG HTML, section 9.2.6, as far as the server uses it.
export async function* events(path, body, signal) {
  const answer = await request(path, { ...asJson(body), signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(() => Promise.reject(new Problem(0, { detail: t("cut off") })));
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

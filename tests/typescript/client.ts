// A client of the API, with types that openapi-typescript made of /openapi.json. Prints one line for each step.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

type ChatEvent = components["schemas"]["ChatEvent"];
type Problem = components["schemas"]["Problem"];

// Without the media types, an answer of /chat would be of an unknown type: the stream's as well.
const client = createClient<paths, "application/json" | "application/problem+json">({ baseUrl: process.argv[2] });

function need<T>(answer: { data?: T; error?: Problem }): T {
  if (answer.error !== undefined) {
    throw new Error(`${answer.error.status} ${answer.error.title}: ${answer.error.detail}`);
  }
  if (answer.data === undefined) {
    throw new Error("an answer without a body");
  }
  return answer.data;
}

async function* eventsOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<ChatEvent> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of stream as unknown as AsyncIterable<Uint8Array>) {
    const parts = (rest + decoder.decode(bytes, { stream: true })).split("\n\n");
    rest = parts.pop() ?? "";
    for (const part of parts) {
      const fields = new Map(part.split("\n").map((line) => [line.split(": ", 1)[0], line.slice(line.indexOf(": ") + 2)]));
      if (fields.has("event")) {
        yield { event: fields.get("event"), data: JSON.parse(fields.get("data") ?? "") } as ChatEvent;
      }
    }
  }
}

function told(event: ChatEvent): string {
  switch (event.event) {
    case "start":
      return event.data.message_id > (event.data.user_message_id ?? 0) ? "" : "? ";
    case "delta":
      return event.data.content;
    case "done":
      return ` | ${event.data.message.status} ${(event.data.message.output_tokens ?? 0) > 0}`;
    case "error":
      return `${event.data.detail} ${event.data.answer?.total_tokens ?? 0}`;
    default: {
      const impossible: never = event;
      return impossible;
    }
  }
}

const account = { username: "ayu", password: "correct horse battery" };
const registered = need(await client.POST("/auth/register", { body: { ...account, email: "ayu@example.com" } }));
const role: "user" | "service" | "admin" = registered.role;
console.log("registered", registered.username, role);

const refused = await client.POST("/auth/login", { body: { ...account, password: "wrong" } });
const problem: Problem | undefined = refused.error;
console.log("refused", problem?.status, problem?.title, problem?.errors?.["password"]?.length ?? 0);

const invalid = await client.POST("/auth/register", { body: { ...account, email: "nonsense" } });
console.log("invalid", Object.keys(invalid.error?.errors ?? {}));

const token = need(await client.POST("/auth/login", { body: account }));
const headers = { Authorization: `Bearer ${token.access_token}` };
const me = need(await client.GET("/auth/me", { headers, params: { query: { limit: 1 } } }));
console.log("me", me.id === registered.id, me.token_stats?.total_months);

const whole = need(await client.POST("/chat", { headers, body: { message: "Hello", stream: false } }));
console.log("whole", whole.message.status, whole.message.content);

const body = { message: "And again", stream: true, conversation_id: whole.conversation_id };
const streamed = await client.POST("/chat", { headers, body, parseAs: "stream" });
let text = "";
for await (const event of eventsOf(need<ReadableStream<Uint8Array> | null>(streamed) ?? new ReadableStream())) {
  text += told(event);
}
console.log("streamed", text);

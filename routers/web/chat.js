// A conversation with the model: each answer shows its tokens and its cost as soon as it is counted.
import { failure, field, h } from "./dom.js";
import * as format from "./format.js";
import { events } from "./session.js";
import { t } from "./words.js";

function figures(message) {
  const cost = message.cost === null ? t("unknown price") : format.dollars(Number(message.cost));
  return t("each answer", {
    tokens: format.count(message.total_tokens),
    input: format.count(message.input_tokens),
    output: format.count(message.output_tokens),
    cost,
    model: message.model,
  });
}

function said(role, text) {
  const body = h("p", {}, text);
  const element = h("article", { class: `said ${role}` }, h("h2", { class: "hidden" }, role === "user" ? t("who") : t("after")), body);
  return { element, body };
}

export function chat() {
  let conversation;
  let asking = new AbortController();
  const hint = h("p", { class: "quiet" }, t("start"));
  const talk = h("div", { class: "talk", role: "log", "aria-label": t("conversation") }, hint);
  const input = h("textarea", { rows: 3, name: "message", required: true });
  const button = h("button", { class: "main" }, t("send"));

  async function ask(message) {
    const { signal } = asking;
    const answer = said("assistant", "");
    let ended = false;
    answer.element.setAttribute("aria-busy", "true");
    hint.remove();
    talk.append(said("user", message).element, answer.element);
    try {
      for await (const { event, data } of events("chat", { message, conversation_id: conversation }, signal)) {
        if (signal.aborted) return;
        ended ||= event === "done" || event === "error";
        if (event === "delta") answer.body.append(data.content);
        if (data.conversation_id) conversation = data.conversation_id;
        if (event === "done") answer.element.append(h("p", { class: "quiet" }, figures(data.message)));
        if (event === "error") {
          answer.element.append(h("p", { class: "failure" }, t("answer failed", { reason: data.detail })));
          if (data.answer) answer.element.append(h("p", { class: "quiet" }, figures(data.answer)));
        }
      }
      if (!ended) throw new Error(t("cut off"));
    } catch (error) {
      if (signal.aborted) return;
      answer.element.append(failure(error));
      if (!answer.body.textContent) input.value ||= message;
    }
    answer.element.removeAttribute("aria-busy");
  }

  async function submit(event) {
    event.preventDefault();
    const message = input.value.trim();
    if (!message) return;
    input.value = "";
    button.disabled = true;
    const { signal } = asking;
    await ask(message);
    if (signal.aborted) return;
    button.disabled = false;
    input.focus();
  }

  function begin() {
    asking.abort();
    asking = new AbortController();
    button.disabled = false;
    conversation = undefined;
    talk.replaceChildren(hint);
    input.focus();
  }

  function keydown(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!button.disabled) input.form.requestSubmit();
    }
  }

  input.addEventListener("keydown", keydown);
  return [
    h("h1", {}, t("chat")),
    talk,
    h("form", { class: "card", submit }, field(t("question"), input), h("p", { class: "row" }, button, h("button", { type: "button", click: begin }, t("new conversation")))),
  ];
}

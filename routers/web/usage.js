// Usage: of the caller, of one user, or of all.
import * as charts from "./charts.js";
import { choices, failure, field, h, table, tile } from "./dom.js";
import * as format from "./format.js";
import { download, read } from "./session.js";
import { t } from "./words.js";

const MEASURES = {
  cost: { of: (figures) => figures.total_cost, format: format.dollars },
  tokens: { of: (figures) => figures.total_tokens, format: format.count },
  messages: { of: (figures) => figures.message_count, format: format.count },
};

export const columns = (first) => [
  first,
  { title: t("cost"), kind: "number", value: costOf },
  { title: t("input"), kind: "number", value: (row) => format.count(row.input_tokens) },
  { title: t("output"), kind: "number", value: (row) => format.count(row.output_tokens) },
  { title: t("tokens"), kind: "number", value: (row) => format.count(row.total_tokens) },
  { title: t("messages"), kind: "number", value: (row) => format.count(row.message_count) },
  { title: t("unpriced"), kind: "number", value: (row) => format.count(row.unpriced_count) },
  { title: t("estimated"), kind: "number", value: (row) => format.count(row.estimated_count) },
];

export const fewColumns = (first) => columns(first).slice(0, 6);

// Months have no `unpriced_count`.
function hasNoPrice(figures) {
  return figures.message_count > 0 && figures.unpriced_count === figures.message_count;
}

function costOf(figures) {
  return hasNoPrice(figures) ? t("no price") : format.dollars(figures.total_cost);
}

export function lastDay(month) {
  const [year, number] = month.split("-").map(Number);
  return new Date(Date.UTC(year, number, 0)).toISOString().slice(0, 10);
}

// What the month will cost if the rest of it is like its days so far.
function pace(range, today) {
  const month = today.slice(0, 7);
  if (range.from !== `${month}-01` || range.to < today || range.to > lastDay(month) || hasNoPrice(range.total)) return null;
  const expected = (range.total.total_cost / Number(today.slice(8))) * Number(lastDay(month).slice(8));
  return tile(t("at this pace"), format.dollars(expected));
}

function totals(range, today) {
  const { total } = range;
  return h(
    "section",
    { "aria-label": t("total") },
    h("h2", {}, `${format.day(range.from)} – ${format.day(range.to)}`),
    h("dl", { class: "tiles" }, tile(t("cost"), costOf(total)), pace(range, today), tile(t("tokens"), format.count(total.total_tokens)), tile(t("messages"), format.count(total.message_count))),
    total.unpriced_count > 0 && h("p", { class: "warning" }, t("unpriced note", { count: format.count(total.unpriced_count) })),
    total.estimated_count > 0 && h("p", { class: "warning" }, t("estimated note", { count: format.count(total.estimated_count) })),
    h("p", { class: "quiet" }, t("time zone", { zone: range.time_zone })),
  );
}

export function rangeForm(range, go) {
  const first = h("input", { type: "date", name: "from", value: range.from, required: true });
  const last = h("input", { type: "date", name: "to", value: range.to, required: true });
  const submit = (event) => {
    event.preventDefault();
    go({ from: first.value, to: last.value, day: undefined });
  };
  last.min = first.value;
  first.addEventListener("change", () => (last.min = first.value));
  return h("form", { class: "card row", submit, "aria-label": t("chosen days") }, field(t("first day"), first), field(t("last day"), last), h("button", { class: "main" }, t("show")));
}

export function csvButton(path, query, ...name) {
  const said = h("div", {});
  const click = () => download(path, query, `${name.join("-")}.csv`).then(() => said.replaceChildren(), (error) => said.replaceChildren(failure(error)));
  return h("div", {}, h("button", { type: "button", click }, t("csv")), said);
}

async function months(show, go) {
  const { token_stats: stats } = await read("auth/me", { limit: 36 });
  if (!stats.monthly_stats.length) return h("section", {}, h("p", {}, t("nothing yet")));
  const shown = stats.monthly_stats.slice().reverse();
  const measure = MEASURES[show];
  const choose = (month) => go({ from: `${month}-01`, to: lastDay(month), day: undefined });
  const link = (row) => h("button", { type: "button", class: "link", click: () => choose(row.month) }, format.month(row.month));
  return h(
    "section",
    {},
    charts.bars(t("monthly chart", { what: t(show) }), shown.map((row) => format.month(row.month)), shown.map(measure.of), measure.format, (index) => choose(shown[index].month)),
    h("details", {}, h("summary", {}, t("months")), table(t("months"), fewColumns({ title: t("month"), value: link }), stats.monthly_stats)),
  );
}

// Titles are shown to their own user alone: others see the id.
function titleOf(row) {
  if (!row.conversation_id) return t("none");
  return row.conversation_title === null ? row.conversation_id : row.conversation_title || t("deleted");
}

async function conversations(base, day) {
  const { conversation_stats: rows } = await read(`${base}/daily/${day}/conversations`);
  const title = { title: t("conversation"), kind: "text", value: titleOf };
  const last = { title: t("last"), value: (row) => format.instant(row.last_message_at) };
  return h("section", { id: "conversations" }, table(t("conversations of", { day: format.day(day) }), [...fewColumns(title), last], rows));
}

// `base` is what the paths of the figures begin with; `own` adds months, and `perUser` conversations.
export async function usage({ title, base, own, perUser = own, query, go }) {
  const show = Object.hasOwn(MEASURES, query.show ?? "") ? query.show : "cost";
  const measure = MEASURES[show];
  const days = { from: query.from, to: query.to };
  const models = read(`${base}/models`, days);
  const now = query.from || query.to ? read(`${base}/models`) : models; // a range without ends is this month so far
  const filled = read(`${base}/daily`, { ...days, fill: true });
  const [today, byDay, byModel, monthly, talks] = await Promise.all([
    now.then((month) => month.to),
    filled.catch((error) => (error.status === 422 ? read(`${base}/daily`, days) : Promise.reject(error))),
    models,
    own ? months(show, go) : null,
    perUser && query.day ? conversations(base, query.day) : null,
  ]);
  const range = { from: byDay.from, to: byDay.to };
  const oldest = byDay.daily_stats.slice().reverse();
  const used = byDay.daily_stats.filter((row) => row.message_count);
  const dayCell = (row) => (perUser ? h("button", { type: "button", class: "link", click: () => go({ ...days, day: row.date }) }, format.day(row.date)) : format.day(row.date));
  const described = t("daily chart", { what: t(show), first: format.day(byDay.from), last: format.day(byDay.to) });
  return [
    h("h1", {}, title),
    choices(t("what"), "show", Object.keys(MEASURES).map((name) => [name, t(name)]), show, (value) => go({ show: value })),
    monthly,
    rangeForm(byDay, go),
    totals(byDay, today),
    h(
      "section",
      {},
      oldest.length > 0 && charts.bars(described, oldest.map((row) => format.day(row.date)), oldest.map(measure.of), measure.format, perUser ? (index) => go({ ...days, day: oldest[index].date }) : undefined),
      table(t("by day"), columns({ title: t("day"), value: dayCell }), used),
      csvButton(`${base}/daily`, range, "usage-by-day", range.from, range.to),
    ),
    talks,
    h("section", {}, table(t("by model"), columns({ title: t("model"), kind: "text", value: (row) => row.model ?? t("no model") }), byModel.model_stats), csvButton(`${base}/models`, range, "usage-by-model", range.from, range.to)),
  ];
}

// For admins: users with their usage, and what is used at which price.
import { failure, field, h, table, tile } from "./dom.js";
import * as format from "./format.js";
import { post, read } from "./session.js";
import { columns, csvButton, fewColumns, lastDay, rangeForm, usage } from "./usage.js";
import { t } from "./words.js";

const ROWS = 50;

export async function users({ query, go }) {
  const month = query.month ?? (await read("admin/token-stats/models")).to.slice(0, 7);
  const page = Number(query.page ?? 1);
  const sort = query.sort ?? "total_cost";
  const wanted = { month, sort, order: sort === "username" ? "asc" : "desc", search: query.search, with_usage: !query.search };
  const found = await read("admin/usage", { ...wanted, page, limit: ROWS });
  const inMonth = h("input", { type: "month", name: "month", value: month, required: true, pattern: "\\d{4}-\\d{2}", placeholder: "YYYY-MM" });
  const search = h("input", { type: "search", name: "search", value: query.search ?? "" });
  const options = [["total_cost", t("cost")], ["total_tokens", t("tokens")], ["message_count", t("messages")], ["username", t("username")]];
  const order = h("select", { name: "sort" }, options.map(([value, label]) => h("option", { value, selected: value === sort }, label)));
  const submit = (event) => {
    event.preventDefault();
    go({ month: inMonth.value, sort: order.value, search: search.value || undefined, page: undefined });
  };
  const name = { title: t("username"), kind: "text", value: (row) => h("a", { href: `#/users/${row.user_id}?from=${month}-01` }, row.username) };
  return [
    h("h1", {}, t("users")),
    h("form", { class: "card row", submit }, field(t("month"), inMonth), field(t("search"), search), field(t("order"), order), h("button", { class: "main" }, t("show"))),
    h(
      "section",
      {},
      table(`${t("users")}, ${format.month(month)}: ${format.count(found.total_users)}`, columns(name), found.users, t("no users")),
      h(
        "p",
        { class: "row" },
        page > 1 && h("button", { type: "button", click: () => go({ page: page - 1 }) }, t("previous")),
        found.has_more && h("button", { type: "button", click: () => go({ page: page + 1 }) }, t("next")),
      ),
      csvButton("admin/usage", wanted, "usage", month),
    ),
  ];
}

export async function user(id, { query, go }) {
  const [found] = (await read("admin/users", { after: id - 1, limit: 1 })).users;
  if (found?.id !== id) throw new Error(t("no user"));
  const title = t("of user", { name: found.username }) + (found.is_active ? "" : ` (${t("inactive")})`);
  const range = { ...query, to: query.to ?? (/^\d{4}-\d{2}-\d{2}$/.test(query.from ?? "") ? lastDay(query.from.slice(0, 7)) : undefined) };
  const shown = await usage({ title, base: `admin/users/${id}/token-stats`, own: false, perUser: true, query: range, go });
  const said = h("div", {});
  const change = async () => {
    if (found.is_active && !confirm(t("sure", { name: found.username }))) return;
    await post(`admin/users/${id}/${found.is_active ? "deactivate" : "activate"}`).then(() => go({}), (error) => said.replaceChildren(failure(error)));
  };
  const act = h("button", { type: "button", class: found.is_active ? "danger" : "", click: change }, t(found.is_active ? "deactivate" : "activate"));
  return [...shown, h("p", {}, act), said];
}

function price(row) {
  if (!row.unpriced_count) return t("priced");
  return h("span", { class: "warning" }, t("priced in part", { part: format.count(row.unpriced_count), all: format.count(row.message_count) }));
}

function lines(rows) {
  const unpriced = rows.filter((row) => row.unpriced_count && row.model);
  if (!unpriced.length) return null;
  const entries = unpriced.map((row) => `[[price]]\nmodel = ${JSON.stringify(row.model)}\ninput = # dollars per million tokens\noutput =\n`);
  return h("section", {}, h("h2", {}, t("for prices")), h("pre", { tabindex: "0", role: "region", "aria-label": t("for prices") }, entries.join("\n")));
}

export async function models({ query, go }) {
  const found = await read("admin/token-stats/models", { from: query.from, to: query.to });
  const range = { from: found.from, to: found.to };
  const model = { title: t("model"), kind: "text", value: (row) => row.model ?? t("no model") };
  const shown = [...fewColumns(model), { title: t("price"), value: price }];
  return [
    h("h1", {}, t("all models")),
    rangeForm(found, go),
    h("section", {}, table(t("by model"), shown, found.model_stats), csvButton("admin/token-stats/models", range, "usage-by-model", range.from, range.to)),
    lines(found.model_stats),
  ];
}

export async function health() {
  const found = await read("admin/health");
  const bad = ["failed", "settlement_failures"];
  const shown = ([name, value]) => tile(t(`health ${name}`), format.count(value), value && bad.includes(name) ? "failure" : undefined);
  return [
    h("h1", {}, t("health")),
    h("section", {}, h("h2", {}, t("now")), h("dl", { class: "tiles" }, shown(["messages_pending", found.messages_pending])), h("p", { class: found.backfill_is_due ? "warning" : "quiet" }, t(found.backfill_is_due ? "backfill due" : "sums complete"))),
    h("section", {}, h("h2", {}, t("since start")), h("dl", { class: "tiles" }, Object.entries(found.since_start).map(shown)), h("p", { class: "quiet" }, t("health note"))),
  ];
}

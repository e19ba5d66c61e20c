// Elements. Text is always text: nothing that a user or a model wrote is ever parsed as HTML.
import { t } from "./words.js";

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Columns: { title, value: row => text or element, kind: "number", "text" or nothing }.
export function table(caption, columns, rows, empty = t("nothing")) {
  if (!rows.length) return h("div", {}, h("h2", {}, caption), h("p", { class: "quiet" }, empty));
  const cell = (column, row, index) =>
    index === 0
      ? h("th", { scope: "row", class: column.kind }, column.value(row))
      : h("td", { class: column.kind }, column.value(row));
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h(
      "table",
      {},
      h("caption", {}, caption),
      h("thead", {}, h("tr", {}, columns.map((column) => h("th", { scope: "col", class: column.kind }, column.title)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, columns.map((column, index) => cell(column, row, index))))),
    ),
  );
}

export function field(label, input) {
  return h("label", {}, label, input);
}

export function choices(legend, name, options, chosen, change) {
  const choice = ([value, label]) =>
    h("label", { class: "choice" }, h("input", { type: "radio", name, value, checked: value === chosen, change: () => change(value) }), label);
  return h("fieldset", {}, h("legend", {}, legend), options.map(choice));
}

export function tile(name, value, kind) {
  return h("div", {}, h("dt", {}, name), h("dd", { class: kind }, value));
}

export function failure(error) {
  return h("p", { class: "failure", role: "alert" }, error.message);
}

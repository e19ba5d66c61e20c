// Numbers, money, days and instants in the reader's own locale.
import { language } from "./words.js";

const locale = navigator.languages.find((name) => name.split("-")[0] === language) ?? language;
const whole = new Intl.NumberFormat(locale);
const days = new Intl.DateTimeFormat(locale, { dateStyle: "medium", timeZone: "UTC" });
const months = new Intl.DateTimeFormat(locale, { month: "short", year: "numeric", timeZone: "UTC" });
const times = new Intl.DateTimeFormat(locale, { dateStyle: "medium", timeStyle: "long" });

export const count = (number) => whole.format(number);
export const day = (text) => days.format(new Date(`${text}T00:00:00Z`));
export const month = (text) => months.format(new Date(`${text}-01T00:00:00Z`));
export const instant = (text) => (text ? times.format(new Date(text)) : "");

function money(digits) {
  return new Intl.NumberFormat(locale, { style: "currency", currency: "USD", currencyDisplay: "narrowSymbol", ...digits });
}

const exact = money({ minimumFractionDigits: 4, maximumFractionDigits: 4 });
const tiny = money({ maximumSignificantDigits: 2 });

export function dollars(number) {
  return number > 0 && number < 0.0001 ? tiny.format(number) : exact.format(number);
}

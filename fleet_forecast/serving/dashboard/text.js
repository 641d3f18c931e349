// Numbers, names and times as people read them: times in the reader's zone, with UTC in the title.

let labels = {}; // of the fleet's metrics, by name
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const DATED = { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const dated = new Intl.DateTimeFormat(undefined, DATED), datedOfOtherYear = new Intl.DateTimeFormat(undefined, { ...DATED, year: "numeric" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });
const HOUR_MS = 3600e3, DAY_MS = 24 * HOUR_MS, LEAST_PLAIN = 0.001; // smaller numbers have an exponent

export const useLabels = (found) => { labels = found; };

// A metric's label with a capital, as in a title; one without a label has its name.
export function metricName(metric) {
  const label = labels[metric];
  return label ? label.charAt(0).toUpperCase() + label.slice(1) : metric;
}

export const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || "local time";

export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString();
  return size > 0 && size < LEAST_PLAIN ? value.toExponential(digits - 1) : String(Number(value.toPrecision(digits)));
}

// A score in a column: the same number of decimals in all rows.
export const score = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));

export function percent(share) {
  if (share === null || share === undefined) return "–";
  const value = 100 * share;
  if (value > 0 && value < 1) return "<1 %";
  return value > 99 && value < 100 ? ">99 %" : `${Math.round(value)} %`;
}

// "240m" as "4 h"
export function horizonName(label) {
  const minutes = Number(label.slice(0, -1)) * (label.endsWith("h") ? 60 : 1);
  return minutes < 60 || minutes % 60 ? `${minutes} min` : `${minutes / 60} h`;
}

export const share = (percentage) => (percentage === null || percentage === undefined ? "–" : `${percentage.toFixed(1)} %`);

export const noun = (amount, singular, plural = `${singular}s`) => (amount === 1 ? singular : plural);
export const count = (amount, singular, plural) => `${amount.toLocaleString()} ${noun(amount, singular, plural)}`;

export function duration(milliseconds) {
  const minutes = Math.max(0, Math.round(milliseconds / 60e3));
  if (minutes < 1) return "less than a minute";
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60), rest = minutes % 60;
  if (hours < 48) return rest ? `${hours} h ${rest} min` : `${hours} h`;
  return `${Math.round(hours / 24)} days`;
}

export const utc = (iso) => `${new Date(iso).toISOString().slice(0, 16).replace("T", " ")} UTC`;
export const clockTime = (iso) => clock.format(new Date(iso));
export const date = (iso) => day.format(new Date(iso));

// A time element: the clock time, with the day where it is not within half a day of now, and the year of another one.
export function time(iso) {
  const made = document.createElement("time"), moment = new Date(iso), now = new Date();
  const far = moment.getFullYear() === now.getFullYear() ? dated : datedOfOtherYear;
  made.dateTime = iso;
  made.title = utc(iso);
  made.textContent = (Math.abs(now - moment) < DAY_MS / 2 ? clock : far).format(moment);
  return made;
}

// Wall-clock text in the reader's zone: Plotly draws times as they are written.
export function wall(when) {
  const moment = new Date(when);
  return new Date(moment - moment.getTimezoneOffset() * 60e3).toISOString().slice(0, 19);
}

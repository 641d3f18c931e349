// Alerts view: firing, silenced and recent ones with lead time and outcome; each opens the server at that moment.

import { ask, askOptional } from "./api.js";
import { badge, empty, h, table } from "./dom.js";
import { hasStopped, unknownRisks } from "./feed.js";
import { count, duration, metricName, number, percent, time } from "./text.js";

const SHOWN = 200, SHOWN_RECENT = 50;

export function alertsView(page) {
  let paths = null; // of the daemon's API: an older daemon has no silences

  async function update(asked) {
    paths ||= (await ask("openapi.json")).paths;
    const askKnown = (path) => (`/${path}` in paths ? askOptional(path) : null);
    const [firing, summary, silences, status] = await Promise.all([
      ask(`api/v1/alerts?limit=${SHOWN}`), askKnown("api/v1/alerts/summary"), askKnown("api/v1/silences"), asked.status,
    ]);
    const recent = summary && (await ask(`api/v1/alerts?state=recent&limit=${SHOWN_RECENT}`));
    const all = firing.alerts;
    page.replaceChildren(
      ...shadowBanner(summary),
      section("Firing", all.filter((alert) => !alert.silenced), firingColumns, empty("No alert is firing", h("p", { text: noneFiring(status) }))),
      ...(all.some((alert) => alert.silenced) ? [section("Silenced", all.filter((alert) => alert.silenced), firingColumns)] : []),
      ...(recent ? [section(recent.next ? "Recent, the newest" : "Recent", recent.alerts, recentColumns, empty("No alert has ended yet"))] : []),
      ...silenceSection(silences),
    );
  }
  return { update };
}

function noneFiring(status) {
  if (hasStopped(status)) return "Alerts follow new samples, and most servers have stopped sending.";
  const unknown = unknownRisks(status);
  return status.servers.with_risks ? `No server is expected to exceed a limit, and none deviates from its forecast. ${unknown}` : unknown;
}

function shadowBanner(summary) {
  if (!summary?.shadow) return [];
  return [h("p", { class: "banner warn", text: "Shadow mode: alerts are recorded and not delivered." })];
}

function section(title, alerts, columns, none = null) {
  return h("section", { class: "panel" }, h("h2", {}, title, " ", h("small", { text: alerts.length ? alerts.length.toLocaleString() : "" })),
    alerts.length ? table(`${title} alerts`, columns, alerts, (alert) => ({ class: alert.severity === "watch" ? "watch" : "page" })) : none);
}

// What an alert says without the server's name, with its times in the reader's zone.
export const sentenceOf = (alert) => withTimes(wordsOf(alert));

// A sentence that begins with the name of a metric is not capitalised: queue_depth is not a word.
function wordsOf({ sentence: text, server_name: name, profile, metric: named }) {
  const start = `${name} (${profile}): `, rest = text.startsWith(start) ? text.slice(start.length) : text;
  return rest.startsWith(`${named} `) ? rest : rest.charAt(0).toUpperCase() + rest.slice(1);
}

function withTimes(text) {
  return text.split(/(\d{4}-\d\d-\d\dT[\d:.]+Z)/).map((part, index) => (index % 2 ? time(part) : part));
}

// The first sentence, which opens the rest.
function shortened(alert) {
  const words = wordsOf(alert), end = words.search(/\.\s/) + 1;
  if (!end) return h("span", {}, withTimes(words));
  return h("details", { class: "more" }, h("summary", {}, withTimes(words.slice(0, end))), h("span", {}, withTimes(words.slice(end + 1))));
}

// The address of the server at the moment of an alert.
export const momentOf = (alert) => `#/server/${encodeURIComponent(alert.server_name)}?at=${encodeURIComponent(alert.started_at || new Date().toISOString())}`;

const openServer = { title: "Server", cell: (alert) => h("a", { class: "name", href: momentOf(alert), text: alert.server_name }) };
const severity = { title: "Severity", cell: (alert) => badge(alert.severity || "alert", (alert.severity || "page") === "watch" ? "warn" : "bad") };
const highest = { title: "Severity", cell: (alert) => badge(alert.highest_severity || alert.severity || "alert", (alert.highest_severity || "page") === "watch" ? "warn" : "bad") };
const metric = { title: "Metric", cell: (alert) => h("span", { class: "nowrap", text: metricName(alert.metric) }) };
const sentence = { title: "What", cell: shortened };
const since = { title: "Since", cell: (alert) => (alert.started_at ? h("span", { class: "nowrap" }, time(alert.started_at), h("small", { text: ` ${duration(Date.now() - Date.parse(alert.started_at))}` })) : "–") };
const due = { title: "Expected", cell: (alert) => (alert.crossed_at ? h("span", { class: "bad" }, "crossed ", time(alert.crossed_at)) : alert.expected_at ? time(alert.expected_at) : "–") };
const likely = { title: "Probability", number: true, cell: (alert) => percent(alert.probability) };
const value = { title: "Value / limit", number: true, cell: (alert) => `${number(alert.current)} / ${number(alert.threshold)} ${alert.unit}` };
const ended = { title: "Ended", cell: (alert) => (alert.ended_at ? time(alert.ended_at) : "–") };
const lasted = { title: "Lasted", cell: (alert) => (alert.ended_at && alert.started_at ? duration(Date.parse(alert.ended_at) - Date.parse(alert.started_at)) : "–") };
const outcome = {
  title: "Outcome",
  cell: (alert) => (alert.crossed_at ? badge("limit crossed", "bad") : badge("limit not crossed", "good")),
};
const lead = { title: "Lead", cell: (alert) => (alert.lead_minutes === null || alert.lead_minutes === undefined ? "–" : alert.lead_minutes <= 0 ? "none" : duration(alert.lead_minutes * 60e3)) };

const firingColumns = [severity, openServer, metric, value, likely, since, due, sentence];
const recentColumns = [highest, openServer, metric, { title: "Began", cell: (alert) => (alert.started_at ? time(alert.started_at) : "–") }, ended, lasted, outcome, lead, sentence];

function silenceSection(response) {
  if (!response?.silences.length) return [];
  const columns = [
    { title: "State", cell: (silence) => badge(silence.active ? "active" : "not now", silence.active ? "warn" : "") },
    { title: "Servers", cell: serversOf },
    { title: "When", cell: whenOf },
    { title: "Kind", cell: (silence) => (silence.kind === "exclude" ? "measurements are excluded too" : "not delivered") },
    { title: "Comment", cell: (silence) => silence.comment || "–" },
    { title: "Given in", cell: (silence) => (silence.source === "file" ? "fleet file" : "API") },
  ];
  return [h("section", { class: "panel" }, h("h2", { text: count(response.silences.length, "silence") }), table("Silences", columns, response.silences))];
}

function serversOf(silence) {
  const key = ["server", "profile", "pattern"].find((name) => silence[name]);
  return h("span", {}, `${key} `, h("b", { class: "name", text: silence[key] }), silence.note && h("small", { class: "warn", text: ` ${silence.note}` }));
}

function whenOf({ from, until, weekly }) {
  const limits = [...(from ? [" from ", time(from)] : []), ...(until ? [" until ", time(until)] : [])];
  return h("span", {}, weekly ? `${weekly.days.join(", ")} ${weekly.start} – ${weekly.end} ${weekly.timezone}` : "", limits);
}

// Server view of a server without a forecast: what it measured last, or which servers have a similar name.

import { ask, askAll, server as serverPath } from "./api.js";
import { badge, empty, h } from "./dom.js";
import { drawFan } from "./fan.js";
import { drawInTurn, figure } from "./figures.js";
import { nameList } from "./names.js";
import { count, duration, metricName, number, time } from "./text.js";

const HOUR_MS = 3600e3, LONGEST_HOURS = 336;

// The elements to show, and `draw()` for their charts. reason: why there is no forecast; hours: of the history to show
// before the last measurement; marked: a time to mark, or null.
export async function withoutForecast(name, { reason, hours, marked }) {
  const { servers: [known] } = await ask(`api/v1/servers?server=${encodeURIComponent(name)}`);
  if (!known) return { parts: [await unknownServer(name, reason)], draw: async () => {} };
  if (known.state !== "silent" || !known.last_measured_step) return { parts: [message(name, reason)], draw: async () => {} };
  return silentServer(known, hours, marked);
}

const message = (name, reason, ...more) => empty(name, h("p", { text: `${reason}.` }), ...more, h("p", {}, h("a", { href: "#/fleet", text: "Fleet" })));

async function unknownServer(name, reason) {
  const { servers } = await askAll("api/v1/servers?limit=10000", "servers"), wanted = name.toLowerCase();
  const similar = servers.map((one) => one.server_name).filter((one) => one.toLowerCase().includes(wanted));
  return message(name, reason, ...(similar.length ? [h("p", { text: `${count(similar.length, "server")} with this in the name:` }), nameList(similar)] : []));
}

async function silentServer({ server_name: name, profile, last_measured_step: last }, hours, marked) {
  const age = Date.now() - Date.parse(last), before = Math.min(LONGEST_HOURS, Math.ceil(age / HOUR_MS) + hours);
  const [history, { metric_units: units }] = await Promise.all([ask(`${serverPath(name)}/history?hours=${before}`), ask("status")]);
  const metrics = Object.keys(history.metrics).filter((metric) => history.metrics[metric].some((value) => value !== null));
  const charts = h("div", { class: "charts" }, metrics.map((metric) => figure(metric, name)));
  metrics.forEach((metric, index) => charts.children[index].firstChild.append(h("b", { text: metricName(metric) }), lastValue(history, metric, units[metric])));
  const head = h("div", { class: "server-head" },
    h("h2", {}, h("span", { class: "name", text: name }), " ", badge(profile), badge("silent", "bad", "It has no forecast until its next sample")),
    h("p", { class: "outlook" }, "The last measured step is that of ", time(last), `, ${duration(age)} ago. This server is forecast again with its next sample.`));
  const none = h("p", { class: "hint", text: "Its measurements are no longer kept." });
  return {
    parts: [head, h("section", { class: "panel" }, metrics.length ? charts : none)],
    draw: () => drawInTurn([...charts.children], (each, index) => drawMeasured(each.lastChild, metrics[index], { history, unit: units[metrics[index]], marked })),
  };
}

function lastValue({ timestamps, metrics }, metric, unit) {
  const place = metrics[metric].findLastIndex((value) => value !== null);
  return h("span", {}, ` ${number(metrics[metric][place])} ${unit} at `, time(timestamps[place]));
}

// What was measured, without a forecast: an axis that ends a step after the last one.
function drawMeasured(plot, metric, { history, unit, marked }) {
  const origin = history.timestamps[history.timestamps.length - 1], step = history.step_seconds;
  const end = new Date(Date.parse(origin) + 1000 * step).toISOString();
  const age = (Date.now() - Date.parse(origin)) / 1000;
  return drawFan(plot, metric, { history, marked, limits: [], forecast: { origin, timestamps: [end], step_seconds: step, age_seconds: age, metrics: { [metric]: { unit, current: null } } } });
}

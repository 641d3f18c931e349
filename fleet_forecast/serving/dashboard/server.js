// Server view: history and forecast of all metrics, what was forecast before, and the outlook in words.

import { sentenceOf } from "./alerts.js";
import { ApiError, ask, askOptional, server as serverPath } from "./api.js";
import { badge, choice, empty, h } from "./dom.js";
import { explanation } from "./explanation.js";
import { drawFan, intervalsOf, isOld } from "./fan.js";
import { drawInTurn, figure } from "./figures.js";
import { withoutForecast } from "./no_forecast.js";
import { outlook } from "./outlook.js";
import { release } from "./plots.js";
import { count, duration, horizonName, metricName, number, percent, time } from "./text.js";
import { coverageOf, nearestPast } from "./trust.js";

const HOUR_MS = 3600e3, LONGEST_HOURS = 336, STATE_HOURS = 24;
const QUIET_STATES = new Set([null, "healthy", "idle", "heavy_load", "morning_spike"]);
const chosen = { hours: "12", past: "8", peers: true };

export function serverView(page, name, query) {
  if (!name) return chooser(page);
  const at = query.has("at") && !Number.isNaN(Date.parse(query.get("at"))) ? query.get("at") : null;
  const head = h("div", { class: "server-head" }), controls = h("div", { class: "controls" }), note = h("p", { class: "hint" });
  const charts = h("div", { class: "charts" }), legend = h("p", { class: "legend" }), why = explanation(name);
  const whole = [head, h("section", { class: "panel" }, controls, note, charts, legend), why.element];
  let data = null, without = null; // what is shown of a server without a forecast

  async function update(asked) {
    const path = serverPath(name), hours = historyHours(at);
    const [forecast, received, risks, past, alerts, peers, raw] = await Promise.all([
      ask(`${path}/forecast`).catch(asProblem), ask(`${path}/history?hours=${hours}`).catch(asProblem), askOptional(`${path}/risks`),
      askOptional(`${path}/past-forecasts`), ask(`api/v1/alerts?server=${encodeURIComponent(name)}`),
      chosen.peers ? askOptional(`${path}/peers?hours=${Math.min(hours, 48)}`) : null, askOptional(`${path}/history?raw=true&hours=${Math.min(hours, STATE_HOURS)}`), asked?.status,
    ]);
    const problem = forecast.problem || received.problem, history = problem ? received : measuredSteps(received, forecast);
    data = { forecast, history, risks, past: past ? past.forecasts : [], alerts: alerts.alerts, peers, states: statesOf(raw) };
    without = problem ? await withoutForecast(name, { reason: problem, hours, marked: at }) : null;
    if (without) return show(without.parts);
    if (!head.parentNode) show(whole);
    head.replaceChildren(...headOf(name, data));
    controls.replaceChildren(...controlsOf(changed));
    return undefined;
  }

  function show(parts) {
    release(page);
    page.replaceChildren(...parts);
  }

  function changed(key, value) {
    const asksAgain = key === "hours" || (key === "peers" && value && !data.peers);
    chosen[key] = value;
    return (asksAgain ? update() : Promise.resolve()).then(drawn);
  }

  async function drawn() {
    if (without) return without.draw();
    if (!data) return undefined;
    const past = chosen.past || at ? nearestPast(data.past, at ? Date.parse(at) : Date.parse(data.forecast.origin) - Number(chosen.past) * HOUR_MS) : null;
    note.replaceChildren(...noteOf(past, at));
    const metrics = Object.keys(data.forecast.metrics);
    if (charts.dataset.metrics !== String(metrics)) {
      charts.dataset.metrics = String(metrics);
      charts.replaceChildren(...metrics.map((metric) => figure(metric, name)));
    }
    legend.replaceChildren(...legendOf(data, past));
    metrics.forEach((metric, index) => charts.children[index].firstChild.replaceChildren(...captionOf(metric, data, past)));
    await drawInTurn([...charts.children], (figure, index) => drawChart(figure.lastChild, metrics[index], { ...data, past, at }));
    return why.update(data.forecast);
  }
  return { update, drawn, stepSeconds: () => data?.forecast.step_seconds || 300 };
}

// Without the running step, whose mean is that of a part: up to the origin, or what followed an old one.
function measuredSteps(history, forecast) {
  const whole = forecast.age_seconds - forecast.step_seconds;
  const last = Date.parse(forecast.origin) + (isOld(forecast) ? 1000 * whole : 0);
  const steps = history.timestamps.filter((stamp) => Date.parse(stamp) <= last).length;
  const metrics = Object.entries(history.metrics).map(([metric, values]) => [metric, values.slice(0, steps)]);
  return { ...history, timestamps: history.timestamps.slice(0, steps), metrics: Object.fromEntries(metrics) };
}

const asProblem = (problem) => {
  if (problem instanceof ApiError && [404, 503].includes(problem.status)) return { problem: problem.message };
  throw problem;
};

function historyHours(at) {
  const since = at ? (Date.now() - Date.parse(at)) / HOUR_MS + 4 : 0;
  return Math.min(LONGEST_HOURS, Math.max(Number(chosen.hours), Math.ceil(since)));
}

function chooser(page) {
  page.append(empty("Choose a server", h("p", { text: "Enter its name in the field above, or choose a row of the fleet." }), h("p", {}, h("a", { href: "#/fleet", text: "Fleet" }))));
  return { update: async () => {} };
}

function headOf(name, { forecast, risks, alerts }) {
  const peers = forecast.peers.count;
  const facts = [
    ["Profile", [forecast.profile, h("small", { text: ` ${forecast.profile_rule || "no rule matched its name"}` })]],
    ["Last step", [time(forecast.origin), h("small", { text: ` ${duration(1000 * forecast.age_seconds)} ago` })]],
    ["History", [duration(forecast.history_steps * forecast.step_seconds * 1000), h("small", { text: ` ${count(forecast.history_steps, "measured step")}` })]],
    ["Peers", [String(peers), h("small", { text: peers ? ` weight ${percent(forecast.peers.weight)} against its own level` : " none of its profile" })]],
    ["Model", [h("span", { class: "name", text: forecast.model })]],
    ...(forecast.incident_risk ? [["Incident risk", [Object.entries(forecast.incident_risk.within).map(([label, risk]) => `${percent(risk)} within ${horizonName(label)}`).join(", "), h("small", { text: ` trained on ${forecast.incident_risk.trained_on}` })]]] : []),
  ];
  return [
    h("h2", {}, h("span", { class: "name", text: name }), " ", badge(forecast.profile),
      forecast.cold_start && badge("cold start", "warn", "Nothing was measured yet: forecast from profile and peers"),
      forecast.provisional && badge("provisional", "warn", "The running step is not complete"),
      forecast.stale && badge("stale", "bad", "The server has stopped sending: this is an old forecast")),
    forecast.stale && h("p", { class: "banner warn" }, "This server has sent nothing since the step of ", time(forecast.origin), `, ${duration(1000 * forecast.age_seconds)} ago. This is the forecast of that time.`),
    h("p", { class: "outlook" }, outlook(forecast, risks)),
    ...alerts.map((alert) => h("p", { class: `banner ${alert.severity === "watch" ? "warn" : "bad"}` }, h("b", { text: alert.silenced ? "Silenced alert " : "Alert " }), sentenceOf(alert))),
    ...forecast.warnings.map((warning) => h("p", { class: "hint", text: warning })),
    ...(forecast.not_measured.length ? [h("p", { class: "hint", text: `Not forecast, because neither the server nor its profile measures it: ${forecast.not_measured.map(metricName).join(", ")}` })] : []),
    h("dl", { class: "facts" }, facts.map(([title, value]) => h("div", {}, h("dt", { text: title }), h("dd", {}, value)))),
  ].filter(Boolean);
}

function controlsOf(changed) {
  return [
    choice("History", [["6", "6 h"], ["12", "12 h"], ["24", "24 h"], ["72", "3 days"]], chosen.hours, (value) => changed("hours", value)),
    choice("Compare with the forecast of", [["", "none"], ["1", "1 h ago"], ["4", "4 h ago"], ["8", "8 h ago"]], chosen.past, (value) => changed("past", value)),
    h("label", { class: "field check" }, h("input", { type: "checkbox", checked: chosen.peers, onchange: (event) => changed("peers", event.target.checked) }), h("span", { text: "Peers" })),
  ];
}

function noteOf(past, at) {
  const moment = at ? ["The dotted red line is ", time(at), ", the requested time. "] : [];
  if (past) return [...moment, "Compared with the forecast made after ", time(past.origin), "."];
  if (chosen.past || at) return [...moment, "There is no forecast of that time: the daemon keeps one an hour in memory, for 8 hours and since its start."];
  return moment;
}

function captionOf(metric, { forecast, history, risks }, past) {
  const risk = risks?.metrics[metric], threshold = risk?.threshold ?? null;
  const reached = forecast.metrics[metric].current === null ? null : Object.entries(risk?.by_horizon || {}).pop();
  const covered = past ? coverageOf(past, history, metric) : null;
  return [
    h("b", { text: metricName(metric) }), h("span", {}, currentOf(forecast, metric)),
    reached && threshold !== null ? h("span", { class: reached[1] >= 0.5 ? "bad" : reached[1] >= 0.25 ? "warn" : "", text: ` · limit ${number(threshold)}: ${percent(reached[1])} within ${horizonName(reached[0])}` }) : null,
    covered ? h("small", { class: covered.inside / covered.steps < 0.5 ? "warn" : "", title: "Of the values measured since that forecast", text: `${percent(covered.inside / covered.steps)} of ${covered.steps} values since were inside its ${covered.share} % band` }) : null,
  ].filter(Boolean);
}

// The value at the origin of the forecast, with its time if that is not now.
function currentOf(forecast, metric) {
  const { unit, current } = forecast.metrics[metric], old = isOld(forecast);
  if (current === null) return old ? [` in ${unit}, not measured at `, time(forecast.origin)] : ` in ${unit}, not measured now`;
  return old ? [` ${number(current)} ${unit} at `, time(forecast.origin)] : ` now ${number(current)} ${unit}`;
}

function drawChart(plot, metric, { forecast, history, risks, past, states, peers, at }) {
  return drawFan(plot, metric, { forecast, history, past, limits: risks?.metrics[metric]?.limits || [], states, peers: chosen.peers ? peers : null, marked: at });
}

function legendOf({ forecast, peers, states }, past) {
  const key = (kind, text) => [h("span", { class: "item" }, h("span", { class: `key ${kind}` }), text)];
  const intervals = intervalsOf(Object.values(forecast.metrics)[0] || {});
  return [
    ...key("measured", "measured"), ...key("forecast", "median forecast"),
    ...intervals.flatMap(({ share }, index) => key(index ? "inner" : "outer", `${share} % band`)),
    ...(past ? [...key("past", "forecast then"), ...key("past-band", "its 80 % band")] : []),
    ...(chosen.peers && peers?.servers ? key("peers", `middle half of ${count(peers.servers, "peer")}`) : []), ...key("limit", "limit"),
    ...(states.some((state) => state.bad) ? key("incident", "incident") : []), ...(states.some((state) => !state.bad) ? key("maintenance", "maintenance, recovery or offline") : []),
  ];
}

// Times in which the server reported an unusual state: {start, end, bad}.
function statesOf(raw) {
  const spans = [];
  if (!raw) return spans;
  raw.states.forEach((state, index) => {
    const end = raw.timestamps[index + 1] || raw.timestamps[index], last = spans[spans.length - 1], bad = state === "critical_issue";
    if (QUIET_STATES.has(state)) return;
    if (last && last.end === raw.timestamps[index] && last.bad === bad) last.end = end;
    else spans.push({ start: raw.timestamps[index], end, bad });
  });
  return spans;
}

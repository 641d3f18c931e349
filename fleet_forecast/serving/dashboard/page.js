"use strict";
// The dashboard: asks the daemon every few seconds and draws. Text from outside only ever goes through textContent.

const REFRESH_MS = 15000;
const NAMES = {
  cpu_pct: "CPU", mem_pct: "Memory", disk_io_mb_s: "Disk", net_in_mb_s: "Network in", net_out_mb_s: "Network out",
  latency_ms: "Latency",
};
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 460, HEIGHT = 190, LEFT = 46, RIGHT = 8, TOP = 10, BOTTOM = 22;
const el = (id) => document.getElementById(id);
let chosen = decodeURIComponent(location.hash.slice(1));
let thresholds = {};

async function ask(path) {
  const token = sessionStorage.getItem("token");
  const answer = await fetch(path, { headers: token ? { Authorization: `Bearer ${token}` } : {} });
  el("login").hidden = answer.status !== 401;
  if ([404, 409, 503].includes(answer.status)) return { problem: (await answer.json()).detail };
  if (!answer.ok) throw new Error(answer.status === 401 ? "a token is needed" : `${path}: status ${answer.status}`);
  return answer.json();
}

function node(kind, text, className) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function shape(kind, attributes, text) {
  const made = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const short = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(3)).toString());

async function refresh() {
  try {
    const [status, risks, alerts] = await Promise.all([ask("/status"), ask("/api/v1/risks?limit=25"), ask("/api/v1/alerts")]);
    showStatus(status);
    showRisks(risks.risks);
    el("alerts").replaceChildren(...(alerts.alerts.length ? alerts.alerts.map((a) => node("li", a.sentence)) : [node("li", "none firing", "quiet")]));
    await showServers(risks.risks);
    if (chosen) await showServer();
  } catch (problem) {
    el("state").textContent = String(problem.message || problem);
    el("state").className = "bad";
  }
}

function showStatus(status) {
  const cycle = status.cycle.origin ? `last complete step ${status.cycle.origin.slice(11, 16)} UTC` : "no forecast yet";
  const model = status.model || status.last_load_problem || "no model yet";
  el("state").textContent = `${status.servers.forecast} servers · ${cycle} · ${model}`;
  el("state").className = status.ready && status.history.writable ? "" : "bad";
}

function showRisks(risks) {
  el("risks").replaceChildren(...risks.map((risk) => {
    const row = node("tr"), cell = node("td"), button = node("button", risk.server_name);
    button.addEventListener("click", () => choose(risk.server_name));
    cell.append(button);
    row.append(cell, node("td", NAMES[risk.metric] || risk.metric), node("td", short(risk.current), "number"),
      node("td", short(risk.threshold), "number"), node("td", `${Math.round(100 * risk.probability)} %`, "number"));
    return row;
  }));
  thresholds = {};
  for (const risk of risks) thresholds[`${risk.server_name} ${risk.metric}`] = risk.threshold;
}

async function showServers(risks) {
  const found = await ask("/api/v1/servers?limit=1000");
  el("servers").replaceChildren(...found.servers.map((server) => { const o = node("option"); o.value = server.server_name; return o; }));
  if (!chosen && found.servers.length) choose((risks[0] || found.servers[0]).server_name);
}

function choose(name) {
  chosen = name;
  location.hash = encodeURIComponent(name);
  el("server").value = name;
  showServer().catch((problem) => { el("about").textContent = problem.message; });
}

async function showServer() {
  const name = chosen, path = `/api/v1/servers/${encodeURIComponent(name)}`;
  if (document.activeElement !== el("server")) el("server").value = name;
  const [forecast, history] = await Promise.all([ask(`${path}/forecast`), ask(`${path}/history?hours=24`)]);
  if (name !== chosen) return; // another one was chosen meanwhile
  if (forecast.problem || history.problem) {
    el("about").textContent = forecast.problem || history.problem;
    el("charts").replaceChildren();
    el("warnings").replaceChildren();
    hideExplanation();
    return;
  }
  const rule = forecast.profile_rule || "no rule matched";
  el("about").textContent = `${forecast.profile} (${rule}) · ${forecast.history_steps} steps of history` +
    `${forecast.cold_start ? " · cold start" : ""}${forecast.stale ? " · stale" : ""} · from ${forecast.origin}`;
  el("warnings").replaceChildren(...forecast.warnings.map((warning) => node("li", warning)));
  el("charts").replaceChildren(...Object.keys(forecast.metrics).map((metric) => chart(metric, forecast, history)));
  await showExplanation(forecast);
}

// 1, 2 or 5 times a power of ten, at least as large as `wanted`.
function niceStep(wanted) {
  const power = 10 ** Math.floor(Math.log10(wanted));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= wanted);
}

function chart(metric, forecast, history) {
  const quantiles = forecast.metrics[metric];
  const past = history.timestamps.map((t, i) => [Date.parse(t), history.metrics[metric][i]]);
  const times = forecast.timestamps.map(Date.parse);
  const now = Date.parse(forecast.origin);
  const start = now - 24 * 3600e3, end = times[times.length - 1];
  const limit = thresholds[`${forecast.server_name} ${metric}`];
  const values = [...past.filter((p) => p[0] >= start && p[1] !== null).map((p) => p[1]), ...quantiles["q0.1"], ...quantiles["q0.9"]];
  if (limit !== undefined) values.push(limit);
  const percent = metric.endsWith("_pct");
  let low = Math.min(...values), high = Math.max(...values);
  const margin = Math.max((high - low) * 0.08, percent ? 1 : 0.01 * Math.abs(high) + 1e-3);
  const tick = niceStep((high - low + 2 * margin) / 4);
  low = Math.max(0, Math.floor((low - margin) / tick) * tick);
  high = Math.ceil((high + margin) / tick) * tick;
  if (percent) high = Math.min(100, high);
  const x = (t) => LEFT + ((t - start) / (end - start)) * (WIDTH - LEFT - RIGHT);
  const y = (v) => TOP + ((high - v) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${NAMES[metric]} of ${forecast.server_name}` });
  for (let value = low; value <= high + tick / 1e6; value += tick) {
    svg.append(shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "grid" }),
      shape("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  for (let t = Math.ceil(start / 6 / 3600e3) * 6 * 3600e3; t <= end; t += 6 * 3600e3) {
    svg.append(shape("text", { x: x(t), y: HEIGHT - 6, "text-anchor": "middle" }, new Date(t).toISOString().slice(11, 16)));
  }
  const band = (below, above, name) => {
    const points = [...times.map((t, i) => `${x(t)},${y(quantiles[above][i])}`),
      ...times.map((t, i) => `${x(t)},${y(quantiles[below][i])}`).reverse()];
    svg.append(shape("polygon", { points: points.join(" "), class: name }));
  };
  band("q0.1", "q0.9", "most");
  band("q0.25", "q0.75", "half");
  let path = "", pen = false; // gaps stay gaps
  const gap = 1.5 * forecast.step_seconds * 1000;
  past.forEach(([t, v], i) => {
    pen = pen && i > 0 && t - past[i - 1][0] <= gap;
    if (v === null || t < start) { pen = false; return; }
    path += `${pen ? "L" : "M"}${x(t)},${y(v)}${pen ? "" : "h0.01"}`;
    pen = true;
  });
  svg.append(shape("path", { d: path, class: "measured" }));
  svg.append(shape("path", { d: times.map((t, i) => `${i ? "L" : "M"}${x(t)},${y(quantiles["q0.5"][i])}`).join(""), class: "median" }));
  svg.append(shape("line", { x1: x(now), x2: x(now), y1: TOP, y2: HEIGHT - BOTTOM, class: "now" }),
    shape("text", { x: x(now) - 4, y: TOP + 9, "text-anchor": "end" }, "now"));
  if (limit !== undefined) svg.append(shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(limit), y2: y(limit), class: "limit" }));
  const figure = node("figure"), caption = node("figcaption", `${NAMES[metric] || metric} `);
  caption.append(node("span", `${quantiles.unit} · now ${short(quantiles.current)}`));
  figure.append(caption, svg);
  return figure;
}

el("server").addEventListener("change", (event) => choose(event.target.value.trim()));
el("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", el("token").value);
  refresh();
});
refresh();
setInterval(refresh, REFRESH_MS);

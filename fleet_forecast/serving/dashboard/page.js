"use strict";
// The dashboard: asks the daemon's API every few seconds and shows the answers.

const REFRESH_MS = 15000;
const el = (id) => document.getElementById(id);
let selected = nameInAddress(); // name of the server that is shown
let thresholds = {};

async function ask(path) {
  const token = sessionStorage.getItem("token");
  const answer = await fetch(path, { headers: token ? { Authorization: `Bearer ${token}` } : {} });
  el("login").hidden = answer.status !== 401;
  if ([404, 409, 503].includes(answer.status)) return { problem: (await answer.json()).detail };
  if (!answer.ok) throw new Error(answer.status === 401 ? "a token is needed" : `${path}: status ${answer.status}`);
  return answer.json();
}

async function refresh() {
  try {
    const [status, risks, alerts] = await Promise.all([ask("status"), ask("api/v1/risks?limit=25"), ask("api/v1/alerts")]);
    showStatus(status);
    showRisks(risks.risks);
    el("alerts").replaceChildren(...(alerts.alerts.length ? alerts.alerts.map((a) => node("li", a.sentence)) : [node("li", "none firing", "quiet")]));
    await showServers(risks.risks);
    if (selected) await showServer();
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
    button.addEventListener("click", () => select(risk.server_name));
    cell.append(button);
    row.append(cell, node("td", nameOf(risk.metric)), node("td", short(risk.current), "number"),
      node("td", short(risk.threshold), "number"), node("td", `${Math.round(100 * risk.probability)} %`, "number"));
    return row;
  }));
  thresholds = {};
  for (const risk of risks) thresholds[`${risk.server_name} ${risk.metric}`] = risk.threshold;
}

async function showServers(risks) {
  const found = await ask("api/v1/servers?limit=1000");
  el("servers").replaceChildren(...found.servers.map((server) => { const o = node("option"); o.value = server.server_name; return o; }));
  if (!selected && found.servers.length) select((risks[0] || found.servers[0]).server_name);
}

function nameInAddress() {
  const text = location.hash.slice(1);
  try {
    return decodeURIComponent(text);
  } catch { // a % that begins no escape
    return text;
  }
}

function select(name) {
  selected = name;
  location.hash = encodeURIComponent(name);
  el("server").value = name;
  showServer().catch((problem) => { el("about").textContent = problem.message; });
}

async function showServer() {
  const name = selected, path = `api/v1/servers/${encodeURIComponent(name)}`;
  if (document.activeElement !== el("server")) el("server").value = name;
  const [forecast, history] = await Promise.all([ask(`${path}/forecast`), ask(`${path}/history?hours=24`)]);
  if (name !== selected) return; // another server was selected meanwhile
  if (forecast.problem || history.problem) {
    el("about").textContent = forecast.problem || history.problem;
    el("charts").replaceChildren();
    el("warnings").replaceChildren();
    hideExplanation();
    return;
  }
  const rule = forecast.profile_rule || "no rule matched";
  el("about").textContent = `${forecast.profile} (${rule}) · ${forecast.history_steps} steps of history` +
    ` · ${forecast.peers.count} peers${forecast.peers.count ? ` (weight ${forecast.peers.weight})` : ""}` +
    `${forecast.provisional ? " · provisional" : ""}` +
    `${forecast.cold_start ? " · cold start" : ""}${forecast.stale ? " · stale" : ""} · from ${forecast.origin}`;
  el("warnings").replaceChildren(...forecast.warnings.map((warning) => node("li", warning)));
  const metrics = Object.keys(forecast.metrics);
  el("charts").replaceChildren(...metrics.map((metric) => chart(metric, forecast, history, thresholds[`${name} ${metric}`])));
  if (metrics.length) showLegend(forecast.metrics[metrics[0]]);
  await showExplanation(forecast);
}

function showLegend(quantiles) {
  const intervals = intervalsOf(quantiles);
  ["outer", "inner"].forEach((id, i) => {
    el(id).hidden = i >= intervals.length;
    if (intervals[i]) el(id).lastElementChild.textContent = `${intervals[i].share} % interval`;
  });
}

el("server").addEventListener("change", (event) => select(event.target.value.trim()));
el("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", el("token").value);
  refresh();
});
refresh();
setInterval(refresh, REFRESH_MS);

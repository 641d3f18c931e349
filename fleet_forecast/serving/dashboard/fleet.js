// Fleet view: a heat map of all servers over the horizon, by profile, beside counters and the highest risks.

import { ask, askAll, hasToken } from "./api.js";
import { choice, empty, h } from "./dom.js";
import { counterCards, riskTable } from "./fleet_risks.js";
import { drawHeatMap, edgesOf, highestOf, highestText, leftOf, rangeOf, scaleLegend } from "./heat.js";
import { serverAddress } from "./names.js";
import { count, metricName, zone } from "./text.js";

const MOST_OPEN = 200; // servers; with more, profiles are rows that open into their servers
const MOST_ROWS = 100; // of an opened profile, until all are asked for
const SHOWN_RISKS = 10;
const chosen = { value: "breach", metric: "", profile: "", search: "" }; // kept while the page is open
const opened = new Map(); // profile -> whether it is open, as people chose

export function fleetView(page, _argument, query) {
  for (const name of Object.keys(chosen)) if (query.has(name)) chosen[name] = query.get(name);
  const counters = h("div", { class: "cards" }), controls = h("div", { class: "controls" });
  const risks = h("section", { class: "panel risks" }), map = h("section", { class: "panel heat" });
  page.append(counters, h("div", { class: "columns" }, map, risks));
  let data = null;

  function changed(name, value) {
    chosen[name] = value;
    const set = Object.entries(chosen).filter(([key, text]) => text && !(key === "value" && text === "breach"));
    history.replaceState(null, "", `#/fleet${set.length ? `?${new URLSearchParams(set)}` : ""}`);
    if (name === "value") controls.querySelector("[data-key=metric] select").disabled = value === "risk";
    if (name === "value" || name === "metric") return reload().then(drawn);
    return drawn();
  }

  async function reload() {
    data.heat = await askHeat(data.metrics);
  }

  async function update(asked) {
    const early = chosen.value === "breach" && !chosen.metric ? askHeat([]) : null; // needs no model
    const [status, model, alerts, top] = await Promise.all([asked.status, ask("api/v1/model"), asked.alerts, ask(`api/v1/risks?limit=${SHOWN_RISKS}`)]);
    data = { status, alerts: alerts.alerts, risks: top.risks, metrics: model.metrics, hasRisk: Boolean(model.risk_model), heat: await early };
    if (!data.heat) await reload();
    counters.replaceChildren(...counterCards(data, chosen.value));
    risks.replaceChildren(...riskTable(data));
    if (!controls.children.length) controls.append(...controlsOf(data, changed));
  }

  async function drawn() {
    const rows = filtered(data.heat.servers);
    if (!data.status.servers.known) return map.replaceChildren(noServers());
    if (!map.contains(controls)) map.replaceChildren(h("h2", { text: "Next hours" }), controls, h("div", { class: "maps" }));
    await drawMaps(map.lastElementChild, data.heat, rows);
  }
  return { update, drawn };
}

// The heat map of all servers. The values of a stale forecast begin earlier: its half hours that are over are left out.
async function askHeat(metrics) {
  const heat = await askAll(heatPath(metrics), "servers");
  for (const row of heat.servers) {
    const over = Math.round((Date.parse(heat.origin) - Date.parse(row.origin)) / (1000 * heat.bin_seconds));
    if (over > 0) row.values = row.values.map((_, bin) => row.values[bin + over] ?? null);
  }
  return heat;
}

function heatPath(metrics) {
  const metric = metrics.includes(chosen.metric) ? `&metric=${encodeURIComponent(chosen.metric)}` : "";
  if (chosen.value === "breach") return `api/v1/heat-map?value=breach${metric}`;
  if (chosen.value === "risk") return "api/v1/heat-map?value=risk";
  return `api/v1/heat-map?value=quantile&level=${chosen.value}${metric || `&metric=${encodeURIComponent(metrics[0])}`}`;
}

// --- heat map -----------------------------------------------------------------------------------------------------

function controlsOf({ metrics, hasRisk, heat }, changed) {
  const values = [["breach", "Breach probability"], ...(hasRisk ? [["risk", "Incident risk"]] : []), ["0.5", "Median forecast"], ["0.9", "High forecast (90 %)"]];
  const profiles = [...new Set(heat.servers.map((row) => row.profile))].sort();
  const metric = choice("Metric", [["", "Highest of all"], ...metrics.map((name) => [name, metricName(name)])], chosen.metric, (value) => changed("metric", value));
  metric.dataset.key = "metric";
  metric.lastElementChild.disabled = chosen.value === "risk";
  const later = (name) => {
    let timer = 0;
    return (event) => { clearTimeout(timer); timer = setTimeout(() => changed(name, event.target.value.trim()), 80); };
  };
  return [
    choice("Colour", values, chosen.value, (value) => changed("value", value)),
    metric,
    choice("Profile", [["", "All"], ...profiles.map((name) => [name, name])], chosen.profile, (value) => changed("profile", value)),
    h("label", { class: "field" }, h("span", { text: "Name contains" }), h("input", { type: "search", value: chosen.search, oninput: later("search"), spellcheck: "false" })),
  ];
}

// Servers to show. A server without values does not have the chosen metric; a probability that is not known yet is shown.
function filtered(servers) {
  const search = chosen.search.toLowerCase(), ofServer = chosen.value === "risk" || (chosen.value === "breach" && !chosen.metric);
  return servers.filter((row) => (!chosen.profile || row.profile === chosen.profile) && row.server_name.toLowerCase().includes(search) && (ofServer || highestOf(row.values) !== null));
}

const worst = (row) => highestOf(row.values) ?? 0;

// Profiles with their rows, the most troubled first.
function grouped(rows) {
  const groups = new Map();
  for (const row of rows) {
    if (!groups.has(row.profile)) groups.set(row.profile, []);
    groups.get(row.profile).push(row);
  }
  return [...groups].map(([profile, own]) => {
    own.sort((a, b) => worst(b) - worst(a) || a.server_name.localeCompare(b.server_name));
    return { profile, rows: own, worst: worst(own[0]) };
  }).sort((a, b) => b.worst - a.worst || a.profile.localeCompare(b.profile));
}

async function drawMaps(root, heat, rows) {
  if (!rows.length) {
    const text = heat.servers.length ? "No server has this name and profile" : "The first forecast is being made";
    return root.replaceChildren(empty(text));
  }
  const groups = grouped(rows), asRows = rows.length > MOST_OPEN && groups.length > 1;
  const range = rangeOf(rows, heat.unit);
  const scale = { edges: edgesOf(heat), range, unit: heat.unit, left: leftOf(asRows ? groups.map(overviewRow) : rows.map(heatRow), root.clientWidth) };
  const wanted = ["scale", ...(asRows ? ["all profiles"] : []), ...groups.map((group) => group.profile)];
  const parts = new Map([...root.children].map((part) => [part.dataset.part, part]));
  const focused = document.activeElement;
  root.replaceChildren(...wanted.map((part) => (parts.get(part)?.dataset.part ? parts.get(part) : newPart(part))));
  if (root.contains(focused)) focused.focus({ preventScroll: true }); // an element that is taken out and put back loses it
  const [legend, ...rest] = root.children;
  describe(legend, heat, range);
  if (asRows) await drawOverview(rest.shift(), groups, scale, root);
  await Promise.all(groups.map((group, index) => drawGroup(rest[index], group, scale, asRows)));
}

function newPart(part) {
  if (part === "scale") return h("p", { class: "hint", "data-part": part });
  if (part === "all profiles") return h("div", { class: "heat-map", "data-part": part });
  return h("details", { "data-part": part }, h("summary"), h("div", { class: "heat-map" }), h("button", { text: "Show all", hidden: true }));
}

function describe(legend, heat, range) {
  const what = heat.unit ? `Forecast of ${metricName(chosen.metric || heat.servers[0].metric)} in ${heat.unit} by half hour`
    : chosen.value === "risk" ? "Probability that an incident begins within 1, 4 or 8 hours, or is under way" : "Probability of crossing a limit by half hour";
  legend.replaceChildren(`${what}. Times in ${zone}. A click on a row opens it.`, scaleLegend(range, heat.unit));
}

const overviewRow = ({ profile, rows }) => ({ key: profile, name: profile, mark: ` (${rows.length.toLocaleString()})` });

function drawOverview(element, groups, scale, root) {
  const rows = groups.map(({ profile, rows }) => ({
    ...overviewRow({ profile, rows }),
    values: scale.edges.slice(1).map((_, bin) => highestOf(rows.map((row) => row.values[bin] ?? null))),
  }));
  const open = (profile) => {
    const part = [...root.children].find((child) => child.dataset.part === profile);
    opened.set(profile, true);
    part.open = true;
    part.scrollIntoView({ block: "start", behavior: "smooth" });
  };
  return drawHeatMap(element, rows, scale, { choose: open });
}

async function drawGroup(part, { profile, rows }, scale, asRows) {
  const [summary, map, all] = part.children;
  summary.replaceChildren(h("b", { text: profile }), ` ${count(rows.length, "server")} · highest ${highestText(rows[0].values, scale.unit)}`);
  let drawnOnce = false; // opening the part by program raises an event as well
  all.onclick = () => { all.dataset.all = "yes"; drawnOnce = false; render(); };
  summary.onclick = () => opened.set(profile, !part.open); // what people choose; the event comes before the change
  async function render() {
    if (drawnOnce) return;
    drawnOnce = true;
    const shown = all.dataset.all ? rows : rows.slice(0, MOST_ROWS);
    all.hidden = shown.length === rows.length;
    all.textContent = `Show all ${rows.length.toLocaleString()} servers`;
    await drawHeatMap(map, shown.map(heatRow), scale, { href: serverAddress });
  }
  part.open = opened.get(profile) ?? !asRows;
  part.ontoggle = () => part.open && render();
  if (part.open) await render();
}

function heatRow(row) {
  const marks = [row.cold_start && "cold", row.provisional && "provisional", row.stale && "stale"].filter(Boolean);
  return { key: row.server_name, name: row.server_name, mark: marks.length ? ` · ${marks.join(", ")}` : "", metric: row.metric, values: row.values };
}

function noServers() {
  const token = hasToken() ? ' -H "Authorization: Bearer $FLEET_FORECAST_TOKEN"' : "";
  const example = `curl ${new URL("api/v1/metrics", location.href.split("#")[0])}${token} -H 'Content-Type: application/json' -d '{"records": [{"timestamp": "${new Date().toISOString().slice(0, 19)}Z", "server_name": "ppweb005", "cpu_pct": 31.5}]}'`;
  return empty("No server has sent a sample yet", h("p", { text: "A server needs no registration: its first sample is enough for a forecast." }), h("pre", { text: example }));
}

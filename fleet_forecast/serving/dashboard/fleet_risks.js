// Fleet view: counters of servers, alerts and likely breaches, and the highest risks.

import { empty, h, table } from "./dom.js";
import { unknownRisks } from "./feed.js";
import { serverLink } from "./names.js";
import { duration, horizonName, metricName, noun, number, percent, time } from "./text.js";

const LIKELY = 0.5;

// shown: what the heat map shows.
export function counterCards({ status, alerts, heat }, shown) {
  const cold = heat.servers.filter((row) => row.cold_start).length;
  const likely = heat.unit ? null : heat.servers.filter((row) => Math.max(...row.values) >= LIKELY);
  const waiting = status.servers.known - status.servers.forecast;
  const severe = (name) => alerts.filter((alert) => (alert.severity || "page") === name && !alert.silenced).length;
  const silenced = alerts.filter((alert) => alert.silenced).length;
  const newest = status.servers.newest_step;
  return [
    card(status.servers.known.toLocaleString(), noun(status.servers.known, "server"), [
      [cold, "cold start"], [status.servers.stale, "stale"], [waiting, "without forecast"],
    ], "#/fleet"),
    card(alerts.length - silenced, `${noun(alerts.length - silenced, "alert")} firing`, alerts.some((alert) => alert.severity)
      ? [[severe("page"), "page"], [severe("watch"), "watch"], [silenced, "silenced"]] : [], "#/alerts", alerts.length - silenced ? "bad" : "good"),
    likely && card(likely.length, shown === "risk" ? noun(likely.length, "likely incident") : noun(likely.length, "likely breach", "likely breaches"),
      [[likely.filter((row) => row.provisional).length, "provisional"], [likely.filter((row) => row.stale).length, "stale"]], null, likely.length ? "warn" : "good", `Servers with a probability of ${percent(LIKELY)} or more within the horizon`),
    newest ? card(duration(Date.now() - Date.parse(newest)), "since the newest step", [["", "at "], [time(newest), ""]], null, "", "The newest step in which a server measured something") : card("–", "no step was measured yet", []),
  ].filter(Boolean);
}

function card(value, label, parts, link = null, kind = "", title = null) {
  const shown = parts.filter(([amount]) => amount !== 0).map(([amount, what]) => (typeof amount === "number" ? `${amount.toLocaleString()} ${what}` : amount || what));
  const detail = shown.flatMap((part, index) => (index && typeof shown[index - 1] === "string" && typeof part === "string" ? [" · ", part] : [part]));
  const content = [h("strong", { class: kind, text: String(value) }), h("span", { text: label }), h("small", {}, ...detail)];
  return link ? h("a", { class: "card", href: link, title }, content) : h("div", { class: "card", title }, content);
}

export function riskTable({ risks, status, heat }) {
  const horizons = risks.length ? Object.keys(risks[0].by_horizon) : [];
  const stale = new Set(heat.servers.filter((row) => row.stale).map((row) => row.server_name));
  const columns = [
    { title: "Server", cell: ({ server_name: name }) => h("span", {}, serverLink(name), stale.has(name) && h("small", { text: " · stale" })) },
    { title: "Metric", cell: (risk) => metricName(risk.metric) },
    { title: "Value", number: true, cell: (risk) => number(risk.current) },
    { title: "Limit", number: true, cell: (risk) => `${[risk.threshold, risk.below].filter((limit) => limit !== null).map((limit) => number(limit)).join(" and ")} ${risk.unit}` },
    ...horizons.map((label) => ({ title: horizonName(label), number: true, cell: (risk) => h("span", { class: riskClass(risk.by_horizon[label]), text: percent(risk.by_horizon[label]) }) })),
  ];
  return [
    h("h2", { text: "Highest risks" }),
    h("p", { class: "hint", text: "Probability that a metric crosses its limit within the time" }),
    risks.length ? table("Highest risks", columns, risks) : noRisk(status),
  ];
}

function noRisk(status) {
  const unknown = unknownRisks(status);
  if (!status.servers.with_risks) return empty("Not known yet", h("p", { text: unknown }));
  return empty("No breach is probable", h("p", { text: `All probabilities are below 0.5 %. ${unknown}` }));
}

const riskClass = (probability) => (probability >= LIKELY ? "bad" : probability >= LIKELY / 2 ? "warn" : "");

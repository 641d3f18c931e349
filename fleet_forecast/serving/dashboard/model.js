// Model view: when and on what it was trained, how good it was then, and how good it is now.

import { ask } from "./api.js";
import { empty, h, table } from "./dom.js";
import { lifeSections } from "./model_life.js";
import { drawCalibration, drawColdStart, drawHorizon, drawLoss, drawProfiles } from "./model_charts.js";
import { date, duration, metricName, number, score, share, time } from "./text.js";

const METHODS = {
  model: "model", naive: "last value", seasonal_naive: "value a day before", window_quantiles_6h: "quantiles of 6 h",
  window_quantiles_24h: "quantiles of 24 h", profile_quantiles: "quantiles of the profile",
};
const GROUPS = { unseen: "Servers that it was not trained on", training: "Servers that it was trained on" };
const LIVE_HORIZON = "1h", LEAST_SCORED = 100;

export function modelView(page) {
  let charts = [];

  async function update(asked) {
    const [model, found] = await Promise.all([ask("api/v1/model"), ask("api/v1/model/evaluation"), asked.status]);
    if (!model.model) {
      const reason = model.last_load?.problem || "It is still loading.";
      return page.replaceChildren(empty("No model is loaded", h("p", { text: reason })));
    }
    charts = found.evaluation ? chartsOf(found) : [];
    if (found.training?.loss_history?.length > 1) charts.push(["Loss while training", "Mean pinball loss by epoch", (plot) => drawLoss(plot, found.training.loss_history)]);
    return page.replaceChildren(
      h("section", { class: "panel" }, h("h2", {}, "Model ", h("span", { class: "name", text: model.model })), facts(model, found.training)),
      ...(model.starter ? [h("p", { class: "hint", text: `No scores: ${model.notice}.` })] : lifeSections(model, found.recent)),
      h("div", { class: "pair" }, ...scoreSections(found.training)), ...liveSection(found),
      ...(found.evaluation || model.starter ? [] : [h("p", { class: "hint", text: "This model was published without evaluation.json: calibration, cold start and errors by profile are not shown." })]),
      h("div", { class: "charts wide" }, charts.map(([title, hint]) => h("figure", { class: "panel" },
        h("figcaption", {}, h("b", { text: title }), h("small", { text: hint })), h("div", { class: "plot", role: "img", "aria-label": `${title}: ${hint}` })))),
    );
  }

  async function drawn() {
    const plots = page.querySelectorAll(".charts .plot");
    await Promise.all(charts.map(([, , drawOne], index) => drawOne(plots[index])));
  }
  return { update, drawn };
}

function facts(model, training) {
  const rows = [["In use since", model.last_load ? [time(model.last_load.at)] : "–"]];
  if (training) {
    rows.push(
      ["Data", `${date(training.first_timestamp)} to ${date(training.last_timestamp)}`],
      ["Servers", `${training.servers}, of which ${training.unseen_servers.length} unseen and ${training.validation_servers.length} for validation`],
      ["Test period", `${date(training.test_start)} to ${date(training.last_timestamp)}`],
      ["Training", `${duration(training.minutes * 60e3)}, ${number(training.epochs)} epochs, ${number(training.windows_per_second)} windows/s`],
      ["Parameters", training.parameters.toLocaleString()],
    );
  }
  rows.push(["Forecast", `${duration(model.horizon_steps * model.step_seconds * 1000)} in steps of ${duration(model.step_seconds * 1000)}, ${model.metrics.length} metrics, ${model.quantiles.length} quantiles`], ["Profiles", model.profiles.join(", ") || "none"]);
  return h("dl", { class: "facts" }, rows.map(([title, value]) => h("div", {}, h("dt", { text: title }), h("dd", {}, value))));
}

// --- live ---------------------------------------------------------------------------------------------------------

function liveSection({ live, evaluation }) {
  const rows = live.filter((row) => row.horizon === LIVE_HORIZON && row.scored >= LEAST_SCORED);
  const trained = (row) => evaluation?.groups.training?.by_metric_horizon[row.metric]?.[row.horizon];
  const columns = [
    { title: "Metric", cell: (row) => metricName(row.metric) },
    { title: "Values", number: true, cell: (row) => row.scored.toLocaleString() },
    { title: "In the 80 % band", number: true, cell: (row) => h("span", { class: Math.abs(row.coverage_80 - 80) > 15 ? "warn" : "", text: share(row.coverage_80) }) },
    { title: "In the test", number: true, cell: (row) => (trained(row) ? share(trained(row).coverage_80) : "–") },
    { title: "WQL", number: true, cell: (row) => score(row.wql) },
    { title: "In the test", number: true, cell: (row) => (trained(row) ? score(trained(row).wql) : "–") },
  ];
  const none = empty("Not yet known", h("p", { text: "Forecasts of an hour ahead are compared with the measured values, from an hour after the start of the daemon on." }));
  return [h("section", { class: "panel" }, h("h2", { text: "How it does now" }),
    h("p", { class: "hint", text: "Forecasts of one hour ahead since the daemon started, beside those of the test period. WQL: weighted quantile loss, smaller is better." }),
    rows.length ? table("Live scores", columns, rows) : none)];
}

// --- scores -------------------------------------------------------------------------------------------------------

function scoreSections(training) {
  if (!training?.scores) return [];
  const columns = [
    { title: "Method", cell: (row) => h(row.method === "model" ? "b" : "span", { text: METHODS[row.method] || row.method }) },
    ...["wql", "mase", "wape"].map((name) => ({ title: name.toUpperCase(), number: true, cell: (row) => score(row[name]) })),
    ...["coverage_80", "coverage_96"].map((name) => ({ title: `In ${name.slice(-2)} % band`, number: true, cell: (row) => share(row[name]) })),
  ];
  return Object.entries(GROUPS).filter(([group]) => training.scores[group]).map(([group, title]) => h("section", { class: "panel" },
    h("h2", { text: title }),
    h("p", { class: "hint", text: "Whole horizon in the test period, mean over the metrics. WQL, MASE, WAPE: smaller is better." }),
    table(title, columns, Object.entries(training.scores[group]).map(([method, scores]) => ({ method, ...scores.mean })))));
}

function chartsOf({ evaluation }) {
  const group = evaluation.groups.unseen ? "unseen" : "training", own = evaluation.groups[group];
  const who = GROUPS[group].toLowerCase();
  return [
    ["Calibration by profile", `Share of values below each quantile, ${who}`, (plot) => drawCalibration(plot, own.calibration)],
    ...(evaluation.cold_start.length ? [["New servers", "WQL by length of their own history", (plot) => drawColdStart(plot, evaluation.cold_start)]] : []),
    ["Error by profile", `WQL, ${who}`, (plot) => drawProfiles(plot, own.by_profile, METHODS[own.baseline] || own.baseline)],
    ["Error by horizon", `WQL, ${who}`, (plot) => drawHorizon(plot, own.by_horizon, METHODS[own.baseline] || own.baseline)],
  ];
}

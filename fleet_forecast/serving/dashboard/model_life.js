// Model view: whether to train again, the model before, and recent forecasts beside those of the test period.

import { h, table } from "./dom.js";
import { count, metricName, number, score, share, time } from "./text.js";

const HORIZON = "4h";

export function lifeSections(model, recent) {
  const { advice, champion } = model;
  return [
    advice && h("section", { class: "panel" }, h("h2", { text: "Train again?" }), ...advised(advice), ...(champion ? [replaced(champion)] : [])),
    recent.length > 0 && recentSection(recent),
  ].filter(Boolean);
}

function advised(advice) {
  const known = `${count(advice.days, "day")} of forecasts, compared with ${count(advice.reference_days, "day")} of the test period. A change of the errors is reported when the evidence reaches ${advice.threshold.toLocaleString()}; it is ${number(advice.evidence)}.`;
  const verdict = advice.retrain_recommended
    ? [h("p", {}, h("b", { class: "warn", text: "Training is recommended" }), ", since ", time(advice.since), ":"), h("ul", {}, advice.reasons.map((reason) => h("li", { text: reason })))]
    : [h("p", { text: "There is no reason to train again." })];
  return [...verdict, ...advice.remarks.map((remark) => h("p", { text: remark })), h("p", { class: "hint", text: known })];
}

function replaced(champion) {
  const groups = champion.groups.map((group) => `${number(100 * group.ratio)} % on ${group.group} servers`).join(", ");
  const worse = champion.worse.length ? ` It was put in use although ${champion.worse.join("; ")}.` : "";
  return h("p", { class: "hint", text: `It replaced ${champion.model}. Its error (WQL) was ${groups || "not compared"} of that model's. ${worse}${champion.remark}` });
}

function recentSection(recent) {
  const rows = recent.filter((row) => row.horizon === HORIZON);
  const columns = [
    { title: "Profile", cell: (row) => row.profile },
    { title: "Metric", cell: (row) => metricName(row.metric) },
    { title: "Values", number: true, cell: (row) => row.scored.toLocaleString() },
    { title: "In the 80 % band", number: true, cell: (row) => share(row.coverage_80) },
    { title: "In the test", number: true, cell: (row) => share(row.test_coverage_80) },
    { title: "WQL", number: true, cell: (row) => score(row.wql) },
    { title: "In the test", number: true, cell: (row) => (row.test_wql === null ? "–" : score(row.test_wql)) },
    { title: "Quantiles of 24 h", number: true, cell: (row) => score(row.baseline_wql) },
  ];
  return h("section", { class: "panel" }, h("h2", { text: "The last seven days by profile" }),
    h("p", { class: "hint", text: "Forecasts of four hours ahead, one an hour, beside those of the test period and the quantiles of the last 24 hours." }),
    table("Recent scores by profile", columns, rows));
}

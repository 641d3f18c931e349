// Charts of a model's evaluation: calibration, cold start, errors by profile and by horizon, loss.

import { axis, colour, darkQuery, draw, onPaper, plain } from "./plots.js";

const HEIGHT_PX = 240;
const LEGEND_ROW_PX = 20, LEGEND_KEY_PX = 50, LETTER_PX = 6.6, MOST_LEFT_PX = 180;
// Lines that colour-blind people can tell apart: colours of viridis and dashes, of which there is one less than colours, so
// that a colour returns with another dash.
const SERIES = ["#440154", "#3b528b", "#21918c", "#5ec962", "#b8860b", "#d95f02", "#7f7f7f"];
const DARK_SERIES = ["#c9a0ff", "#8fb3ff", "#4cc9c0", "#8fe08a", "#fde725", "#ff9f50", "#b5b5b5"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];

// A chart with a legend below it, which has more rows on a narrow screen.
function drawWithLegend(plot, traces, layout, left = 48) {
  const item = LEGEND_KEY_PX + LETTER_PX * Math.max(...traces.map((trace) => trace.name.length));
  const rows = Math.ceil(traces.length / Math.max(1, Math.floor(plot.clientWidth / item)));
  const below = 44 + LEGEND_ROW_PX * rows;
  const legend = { orientation: "h", yref: "container", y: 0, yanchor: "bottom", font: { size: 11 } };
  return draw(plot, traces, { height: HEIGHT_PX + below, showlegend: true, legend, margin: { l: left, r: 10, t: 8, b: below }, ...layout });
}

export const seriesColour = (index) => (darkQuery.matches && !onPaper() ? DARK_SERIES : SERIES)[index % SERIES.length];

const lines = (x, y, name, index, more = {}) => ({
  type: "scatter", mode: "lines+markers", x, y, name: plain(name), line: { color: seriesColour(index), width: 2, dash: DASHES[index % DASHES.length] },
  marker: { size: 5 }, hovertemplate: `${plain(name)}<br>%{x}: %{y:.3~g}<extra></extra>`, ...more,
});

export function drawCalibration(plot, calibration) {
  const ideal = { type: "scatter", mode: "lines", x: [0, 100], y: [0, 100], name: "ideal", line: { color: colour("dim"), width: 1, dash: "dot" }, hoverinfo: "skip" };
  const traces = calibration.map((own, index) => lines(own.levels.map((level) => 100 * level), own.below, own.profile, index));
  return drawWithLegend(plot, [ideal, ...traces], {
    xaxis: axis({ range: [0, 100], ticksuffix: " %" }), yaxis: axis({ range: [0, 100], ticksuffix: " %" }),
  });
}

// rows: {history, method, wql}, in the order of the lengths.
export function drawColdStart(plot, rows) {
  const lengths = [...new Set(rows.map((row) => row.history))], methods = [...new Set(rows.map((row) => row.method))];
  const value = (method, history) => rows.find((row) => row.method === method && row.history === history)?.wql ?? null;
  return drawWithLegend(plot, methods.map((method, index) => lines(lengths, lengths.map((history) => value(method, history)), method.replace(/_/g, " "), index)), {
    xaxis: axis({ type: "category" }), yaxis: axis({ rangemode: "tozero" }),
  });
}

export function drawProfiles(plot, rows, baseline) {
  const bars = (key, name, index) => ({ type: "bar", orientation: "h", y: rows.map((row) => plain(row.profile)), x: rows.map((row) => row[key]), name, marker: { color: seriesColour(index) }, hovertemplate: `${name}: %{x:.3~g}<extra></extra>` });
  return drawWithLegend(plot, [bars("model", "model", 2), bars("baseline_wql", baseline, 6)], {
    barmode: "group", xaxis: axis({ rangemode: "tozero" }), yaxis: axis({ type: "category", autorange: "reversed", ticks: "", showgrid: false, automargin: false }),
  }, Math.min(MOST_LEFT_PX, 14 + LETTER_PX * Math.max(...rows.map((row) => row.profile.length))));
}

export function drawHorizon(plot, own, baseline) {
  return drawWithLegend(plot, [lines(own.hours, own.model, "model", 2), lines(own.hours, own.baseline, baseline, 6)], {
    xaxis: axis({ ticksuffix: " h" }), yaxis: axis({ rangemode: "tozero" }),
  });
}

export function drawLoss(plot, points) {
  const epochs = points.map((point) => point.epoch);
  return drawWithLegend(plot, [lines(epochs, points.map((point) => point.loss), "training", 6), lines(epochs, points.map((point) => point.validation_loss), "validation", 2)], {
    xaxis: axis({}), yaxis: axis({}),
  });
}

// One metric of one server: what was measured, the forecast with its bands, what was forecast before, and the limit.

import { axis, colour, draw } from "./plots.js";
import { clockTime, metricName, number, wall } from "./text.js";

const HEIGHT_PX = 220, OLD_STEPS = 3, POINT_PX = 4;

// Whether steps have passed that a forecast does not use, so that its origin is not now.
export const isOld = (forecast) => forecast.age_seconds >= OLD_STEPS * forecast.step_seconds;

// Quantile levels of a metric's forecast, ascending.
export function levelsOf(quantiles) {
  return Object.keys(quantiles).filter((key) => /^q[\d.]+$/.test(key)).map((key) => Number(key.slice(1))).sort((a, b) => a - b);
}

// At most two symmetric intervals, outer first: {low, high, share}; those nearest to 96 and 80 %.
export function intervalsOf(quantiles) {
  const levels = levelsOf(quantiles);
  const mirror = (level) => levels.find((other) => Math.abs(level + other - 1) < 1e-9);
  const lower = levels.filter((level) => level < 0.5 && mirror(level) !== undefined);
  if (!lower.length) return [];
  const nearest = (wanted) => lower.reduce((best, level) => (Math.abs(level - wanted) < Math.abs(best - wanted) ? level : best));
  return [...new Set([nearest(0.02), nearest(0.1)])]
    .map((level) => ({ low: `q${level}`, high: `q${mirror(level)}`, share: Math.round(100 * (mirror(level) - level)) }));
}

// The quantile that is nearest to the median; null without quantiles.
export function medianKey(quantiles) {
  const levels = levelsOf(quantiles);
  return levels.length ? `q${levels.reduce((best, level) => (Math.abs(level - 0.5) < Math.abs(best - 0.5) ? level : best))}` : null;
}

// A filled band between two lines, as two traces.
function band(x, low, high, fill, name) {
  const edge = { type: "scatter", mode: "lines", x, line: { width: 0 }, hoverinfo: "skip" };
  return [{ ...edge, y: low }, { ...edge, y: high, fill: "tonexty", fillcolor: fill, name }];
}

function line(x, y, properties, unit, label) {
  return { type: "scatter", mode: "lines", x, y, connectgaps: false, hovertemplate: `${label} %{y:.4~g} ${unit}<br>%{x|%a %H:%M}<extra></extra>`, ...properties };
}

// shown: {forecast, history, peers, past, limits, states, marked}, of which only forecast and history are always
// there; marked: a time to mark, such as that of an alert.
export function drawFan(element, metric, shown) {
  const { forecast, history, peers, past, limits, states, marked } = shown;
  const quantiles = forecast.metrics[metric], unit = quantiles.unit, median = quantiles[medianKey(quantiles)];
  const ahead = [forecast.origin, ...forecast.timestamps].map(wall);
  const from = (values) => [quantiles.current ?? values[0], ...values];
  const traces = [];
  if (peers?.metrics[metric]) traces.push(...band(peers.timestamps.map(wall), peers.metrics[metric].low, peers.metrics[metric].high, colour("peers"), "peers"));
  intervalsOf(quantiles).forEach(({ low, high }, index) => traces.push(...band(ahead, from(quantiles[low]), from(quantiles[high]), colour(index ? "inner" : "outer"), "band")));
  if (past?.metrics[metric]) traces.push(...pastTraces(past, metric, unit));
  const gaps = withGaps(history, metric, forecast.step_seconds * 1000);
  traces.push(line(gaps.x, gaps.y, { line: { color: colour("measured"), width: 1.4 } }, unit, "measured"));
  if (gaps.lone.length) traces.push(line(gaps.lone.map((index) => gaps.x[index]), gaps.lone.map((index) => gaps.y[index]), { mode: "markers", marker: { color: colour("measured"), size: POINT_PX } }, unit, "measured"));
  if (median) traces.push(line(ahead, from(median), { line: { color: colour("forecast"), width: 2 } }, unit, "median"));
  const now = wall(forecast.origin);
  const shapes = [
    ...(states || []).map(({ start, end, bad }) => ({ type: "rect", xref: "x", yref: "paper", x0: wall(start), x1: wall(end), y0: 0, y1: 1, line: { width: 0 }, fillcolor: colour(bad ? "incident" : "maintenance"), layer: "below" })),
    { type: "line", xref: "x", yref: "paper", x0: now, x1: now, y0: 0, y1: 1, line: { color: colour("ink"), width: 1.2 } },
    ...(marked ? [{ type: "line", xref: "x", yref: "paper", x0: wall(marked), x1: wall(marked), y0: 0, y1: 1, line: { color: colour("bad"), width: 1.5, dash: "dot" } }] : []),
    ...limits.map((limit) => ({ type: "line", xref: "paper", yref: "y", x0: 0, x1: 1, y0: limit, y1: limit, line: { color: colour("bad"), width: 1.2, dash: "dash" } })),
  ];
  const range = valueRange(traces, limits, unit);
  const named = limits.filter((limit) => limit >= range[0] && limit <= range[1]).map((limit) => ({ xref: "paper", yref: "y", x: 0, y: limit, xanchor: "left", yanchor: "bottom", text: `limit ${number(limit)}`, showarrow: false, font: { color: colour("bad"), size: 11 } }));
  return draw(element, traces, {
    height: HEIGHT_PX, hovermode: "closest", shapes, margin: { l: 46, r: 8, t: 16, b: 24 },
    annotations: [{ xref: "x", yref: "paper", x: now, y: 1, yanchor: "bottom", text: isOld(forecast) ? clockTime(forecast.origin) : "now", showarrow: false, font: { color: colour("ink"), size: 11 } }, ...named],
    xaxis: axis({ type: "date", tickformat: "%H:%M\n%a %e", nticks: 7, automargin: false, range: [wall(Math.min(...history.timestamps.map(Date.parse), Date.parse(forecast.origin))), ahead[ahead.length - 1]] }),
    yaxis: axis({ range, nticks: 5, automargin: false }),
  });
}

function pastTraces(past, metric, unit) {
  const x = past.timestamps.map(wall), quantiles = past.metrics[metric], [interval] = intervalsOf(quantiles).slice(-1);
  return [
    ...(interval ? band(x, quantiles[interval.low], quantiles[interval.high], colour("past-band"), "past") : []),
    line(x, quantiles[medianKey(quantiles)], { line: { color: colour("past"), width: 1.8, dash: "dot" } }, unit, "forecast then"),
  ];
}

// Times and values with a gap where a step is missing; lone: places of values without a neighbour, which no line shows.
function withGaps(history, metric, stepMs) {
  const x = [], y = [];
  history.timestamps.forEach((stamp, index) => {
    const at = Date.parse(stamp), before = index ? Date.parse(history.timestamps[index - 1]) : at;
    if (at - before > 1.5 * stepMs) { x.push(wall(before + stepMs)); y.push(null); }
    x.push(wall(at));
    y.push(history.metrics[metric][index]);
  });
  const missing = (index) => (y[index] ?? null) === null;
  const lone = [...y.keys()].filter((index) => !missing(index) && missing(index - 1) && missing(index + 1));
  return { x, y, lone };
}

// Range of the vertical axis: the drawn values, and the limits that are near them.
function valueRange(traces, limits, unit) {
  const values = traces.flatMap((trace) => trace.y).filter((value) => value !== null && Number.isFinite(value));
  let low = Math.min(...values), high = Math.max(...values);
  if (!values.length) return [0, 1];
  const size = Math.max(high - low, unit === "%" ? 4 : 0.05 * Math.abs(high), 1e-3);
  const near = limits.filter((limit) => limit > low - size && limit < high + size);
  low = Math.min(low, ...near);
  high = Math.max(high, ...near);
  const range = [low - 0.08 * size, high + 0.12 * size];
  return [Math.max(range[0], low >= 0 ? -0.02 * size : range[0]), unit === "%" ? Math.min(range[1], 103) : range[1]];
}

export const fanLabel = (metric, server) => `${metricName(metric)} of ${server}: measured values and forecast`;

"use strict";
// Draws one metric of one server: measured values, forecast median, two intervals, threshold.
// Text from other machines is only written through textContent.

const NAMES = {
  cpu_pct: "CPU", mem_pct: "Memory", disk_io_mb_s: "Disk", net_in_mb_s: "Network in", net_out_mb_s: "Network out",
  latency_ms: "Latency",
};
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 460, HEIGHT = 190, LEFT = 46, RIGHT = 8, TOP = 10, BOTTOM = 22;
const HOUR_MS = 3600e3, HISTORY_HOURS = 24, LABEL_HOURS = 6;
const INNER_LEVEL = 0.25, OUTER_LEVEL = 0.1; // preferred lower levels of the two intervals

const nameOf = (metric) => NAMES[metric] || metric;
const short = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(3)).toString());

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

function captioned(title, note, svg) {
  const figure = node("figure"), caption = node("figcaption", `${title} `);
  caption.append(node("span", note));
  figure.append(caption, svg);
  return figure;
}

// 1, 2 or 5 times a power of ten, at least as large as `wanted`.
function niceStep(wanted) {
  const power = 10 ** Math.floor(Math.log10(wanted));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= wanted);
}

// Quantile levels of a metric's forecast, ascending.
function levelsOf(quantiles) {
  return Object.keys(quantiles).filter((key) => /^q[\d.]+$/.test(key)).map((key) => Number(key.slice(1))).sort((a, b) => a - b);
}

// At most two symmetric intervals, outer first: {low, high, share}. Other levels than the preferred: the nearest ones.
function intervalsOf(quantiles) {
  const levels = levelsOf(quantiles);
  const upper = (level) => levels.find((other) => Math.abs(level + other - 1) < 1e-9);
  const lower = levels.filter((level) => level < 0.5 && upper(level) !== undefined);
  const nearest = (wanted) => lower.reduce((best, level) => (Math.abs(level - wanted) < Math.abs(best - wanted) ? level : best), lower[0]);
  return [...new Set([OUTER_LEVEL, INNER_LEVEL].filter(() => lower.length).map(nearest))]
    .map((level) => ({ low: `q${level}`, high: `q${upper(level)}`, share: Math.round(100 * (upper(level) - level)) }));
}

function medianOf(quantiles) {
  const levels = levelsOf(quantiles);
  return quantiles[`q${levels.reduce((best, level) => (Math.abs(level - 0.5) < Math.abs(best - 0.5) ? level : best))}`];
}

// Range of the vertical axis and the distance of its labels.
function axisOf(values, percent) {
  let low = Math.min(...values), high = Math.max(...values);
  const margin = Math.max((high - low) * 0.08, percent ? 1 : 0.01 * Math.abs(high) + 1e-3);
  const tick = niceStep((high - low + 2 * margin) / 4);
  low = Math.max(0, Math.floor((low - margin) / tick) * tick);
  high = Math.ceil((high + margin) / tick) * tick;
  return { low, high: percent ? Math.min(100, high) : high, tick };
}

function gridLines(axis, start, end, x, y) {
  const lines = [];
  for (let value = axis.low; value <= axis.high + axis.tick / 1e6; value += axis.tick) {
    lines.push(shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "grid" }),
      shape("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  const step = LABEL_HOURS * HOUR_MS;
  for (let t = Math.ceil(start / step) * step; t <= end; t += step) {
    lines.push(shape("text", { x: x(t), y: HEIGHT - 6, "text-anchor": "middle" }, new Date(t).toISOString().slice(11, 16)));
  }
  return lines;
}

function interval(times, low, high, x, y, className) {
  const points = [...times.map((t, i) => `${x(t)},${y(high[i])}`), ...times.map((t, i) => `${x(t)},${y(low[i])}`).reverse()];
  return shape("polygon", { points: points.join(" "), class: className });
}

// Line through measured values; steps without a value leave a gap.
function measuredPath(past, start, stepMs, x, y) {
  let path = "", connected = false;
  past.forEach(([t, value], i) => {
    connected = connected && i > 0 && t - past[i - 1][0] <= 1.5 * stepMs;
    if (value === null || t < start) { connected = false; return; }
    path += `${connected ? "L" : "M"}${x(t)},${y(value)}${connected ? "" : "h0.01"}`;
    connected = true;
  });
  return shape("path", { d: path, class: "measured" });
}

function chart(metric, forecast, history, limit) {
  const quantiles = forecast.metrics[metric], intervals = intervalsOf(quantiles), median = medianOf(quantiles);
  const past = history.timestamps.map((t, i) => [Date.parse(t), history.metrics[metric][i]]);
  const times = forecast.timestamps.map(Date.parse);
  const now = Date.parse(forecast.origin), start = now - HISTORY_HOURS * HOUR_MS, end = times[times.length - 1];
  const values = past.filter((p) => p[0] >= start && p[1] !== null).map((p) => p[1]).concat(median);
  for (const { low, high } of intervals) values.push(...quantiles[low], ...quantiles[high]);
  if (limit !== undefined) values.push(limit);
  const axis = axisOf(values, quantiles.unit === "%");
  const x = (t) => LEFT + ((t - start) / (end - start)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => TOP + ((axis.high - value) / (axis.high - axis.low)) * (HEIGHT - TOP - BOTTOM);
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${nameOf(metric)} of ${forecast.server_name}` });
  svg.append(...gridLines(axis, start, end, x, y));
  intervals.forEach(({ low, high }, i) => svg.append(interval(times, quantiles[low], quantiles[high], x, y, i ? "half" : "most")));
  svg.append(measuredPath(past, start, forecast.step_seconds * 1000, x, y),
    shape("path", { d: times.map((t, i) => `${i ? "L" : "M"}${x(t)},${y(median[i])}`).join(""), class: "median" }),
    shape("line", { x1: x(now), x2: x(now), y1: TOP, y2: HEIGHT - BOTTOM, class: "now" }),
    shape("text", { x: x(now) - 4, y: TOP + 9, "text-anchor": "end" }, "now"));
  if (limit !== undefined) svg.append(shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(limit), y2: y(limit), class: "limit" }));
  return captioned(nameOf(metric), `${quantiles.unit} · now ${short(quantiles.current)}`, svg);
}

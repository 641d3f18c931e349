// One heat map: rows of values by half hour. Colours are those of cividis, which colour-blind people can read, from the
// background's to the other end. Small probabilities have a larger part of them.

import { h } from "./dom.js";
import { axis, colour, draw, plain } from "./plots.js";
import { clockTime, metricName, number, percent, wall } from "./text.js";

const PROBABILITY_STOPS = [0, 0.05, 0.25, 0.5, 1], EVEN_STOPS = [0, 0.25, 0.5, 0.75, 1]; // places of the colours heat-0 … heat-4
const ROW_PX = 19, TOP_PX = 24, BOTTOM_PX = 4, LETTER_PX = 7.2, LEAST_LEFT_PX = 60, MOST_LEFT_PX = 190;

// Times at which the half hours of a heat map begin, and the end of the last one, in milliseconds.
export function edgesOf(heat) {
  const bins = heat.servers.reduce((most, row) => Math.max(most, row.values.length), 0);
  const start = Date.parse(heat.origin), width = heat.bin_seconds * 1000;
  return Array.from({ length: bins + 1 }, (_, bin) => start + bin * width);
}

// Room for the longest label.
export function leftOf(labels) {
  const letters = labels.reduce((most, label) => Math.max(most, label.length), 0);
  return Math.min(MOST_LEFT_PX, Math.max(LEAST_LEFT_PX, 14 + LETTER_PX * letters));
}

const stopsOf = (unit) => (unit ? EVEN_STOPS : PROBABILITY_STOPS);

export function scaleLegend(top, unit) {
  const shown = (stop) => (unit ? `${number(stop * top)} ${unit}` : percent(stop));
  return h("span", { class: "scale" }, stopsOf(unit).map((stop, index) => h("span", {}, h("span", { class: `swatch heat-${index}` }), shown(stop))));
}

// rows: {key, label, metric, values}, the first on top. chosen: called with the key of a row that is clicked.
export function drawHeatMap(element, rows, { edges, top, unit, left }, chosen) {
  const shown = (value) => (unit ? `${number(value)} ${unit}` : percent(value));
  const until = edges.slice(1).map((end, bin) => `${clockTime(edges[bin])} – ${clockTime(end)}`);
  const hover = rows.map((row) => row.values.map((value, bin) => `${plain(row.label)}<br>${until[bin]}<br>${shown(value)}${row.metric ? ` · ${plain(metricName(row.metric))}` : ""}`));
  const hours = (element.clientWidth - left) / LETTER_PX / 6 > edges.length / 2 ? 1 : 2; // between two labels
  const height = TOP_PX + BOTTOM_PX + ROW_PX * rows.length;
  return draw(element, [{
    type: "heatmap", x: edges.map(wall), y: rows.map((_, index) => index), z: rows.map((row) => row.values),
    zmin: 0, zmax: top, colorscale: stopsOf(unit).map((stop, index) => [stop, colour(`heat-${index}`)]), showscale: false, xgap: 1, ygap: 2, hoverinfo: "text", hovertext: hover,
  }], {
    height, margin: { l: left, r: 8, t: TOP_PX, b: BOTTOM_PX },
    xaxis: axis({ type: "date", side: "top", tickformat: "%H:%M", dtick: hours * 3600e3, tickangle: 0, showgrid: false, ticks: "" }),
    yaxis: axis({ range: [rows.length - 0.5, -0.5], tickvals: rows.map((_, index) => index), ticktext: rows.map((row) => shortened(row.label)),
      showgrid: false, ticks: "", tickfont: { color: colour("ink"), size: 12 } }),
  }, (point) => chosen(rows[point.pointNumber[0]].key));
}

function shortened(label) {
  const most = Math.floor((MOST_LEFT_PX - 14) / LETTER_PX);
  return plain(label.length > most ? `${label.slice(0, most - 1)}…` : label);
}

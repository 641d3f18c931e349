// One heat map: rows of values by half hour. Colours are those of cividis, which colour-blind people can read, from the
// background's to the other end. Small probabilities have a larger part of them.

import { h } from "./dom.js";
import { axis, colour, draw, plain } from "./plots.js";
import { shortTexts, widthOf } from "./short_names.js";
import { clockTime, metricName, number, percent, wall } from "./text.js";

const PROBABILITY_STOPS = [0, 0.05, 0.25, 0.5, 1], EVEN_STOPS = [0, 0.25, 0.5, 0.75, 1]; // places of the colours heat-0 … heat-4
const ROW_PX = 19, TOP_PX = 24, BOTTOM_PX = 4, RIGHT_PX = 8; // the first two: style.css
const LETTER_PX = 7.2, GAP_PX = 12, LEAST_LEFT_PX = 60, MOST_LEFT_PX = 160, MOST_LEFT_SHARE = 0.4, PAGE_ROWS = 10;

// Times at which the half hours of a heat map begin, and the end of the last one, in milliseconds.
export function edgesOf(heat) {
  const bins = heat.servers.reduce((most, row) => Math.max(most, row.values.length), 0);
  const start = Date.parse(heat.origin), width = heat.bin_seconds * 1000;
  return Array.from({ length: bins + 1 }, (_, bin) => start + bin * width);
}

// Room for the longest name with its mark, up to a share of the chart's width.
export function leftOf(rows, width) {
  const longest = rows.reduce((most, { name, mark }) => Math.max(most, widthOf(name + mark)), 0);
  return Math.min(Math.max(MOST_LEFT_PX, MOST_LEFT_SHARE * width), Math.max(LEAST_LEFT_PX, Math.ceil(longest) + GAP_PX));
}

const stopsOf = (unit) => (unit ? EVEN_STOPS : PROBABILITY_STOPS);

// The highest of the values that are known; null without any.
export function highestOf(values) {
  const known = values.filter((value) => value !== null);
  return known.length ? Math.max(...known) : null;
}

// What the colours span: the percentages, probabilities, or from 0 or the lowest value below it to the highest value.
export function rangeOf(rows, unit) {
  if (!unit) return [0, 1];
  const known = rows.flatMap((row) => row.values).filter((value) => value !== null), low = Math.min(0, ...known);
  if (unit === "%" && low === 0) return [0, 100];
  const high = low < 0 ? Math.max(...known) : Math.max(0, ...known);
  return [low, high > low ? high : low + 1];
}

export function scaleLegend([low, high], unit) {
  const shown = (stop) => (unit ? `${number(low + stop * (high - low))} ${unit}` : percent(stop));
  return h("span", { class: "scale" }, stopsOf(unit).map((stop, index) => h("span", {}, h("span", { class: `swatch heat-${index}` }), shown(stop))));
}

// rows: {key, name, mark, metric, values}, the first on top. open: {href(key)} for rows that are links, or {choose(key)} for
// rows that do something on this page. Their names are a list beside the chart: one Tab, then the arrow keys.
export function drawHeatMap(element, rows, { edges, range, unit, left }, open) {
  if (!element.children.length) element.append(h("ul", { class: "row-names", onkeydown: moveAlongNames }), h("div", { class: "plot cells" }));
  const [names, plot] = element.children;
  element.style.setProperty("--names-width", `${left}px`);
  showNames(names, rows, { open, unit, texts: shortTexts(rows, left - GAP_PX) });
  const until = edges.slice(1).map((end, bin) => `${clockTime(edges[bin])} – ${clockTime(end)}`);
  const hover = rows.map((row) => row.values.map((value, bin) => `${plain(row.name + row.mark)}<br>${until[bin]}<br>${valueText(value, unit)}${row.metric ? ` · ${plain(metricName(row.metric))}` : ""}`));
  const hours = plot.clientWidth / LETTER_PX / 6 > edges.length / 2 ? 1 : 2; // between two labels
  return draw(plot, [{
    type: "heatmap", x: edges.map(wall), y: rows.map((_, index) => index), z: rows.map((row) => row.values),
    zmin: range[0], zmax: range[1], colorscale: stopsOf(unit).map((stop, index) => [stop, colour(`heat-${index}`)]), showscale: false, xgap: 1, ygap: 2, hoverinfo: "text", hovertext: hover,
  }], {
    height: TOP_PX + BOTTOM_PX + ROW_PX * rows.length, margin: { l: 0, r: RIGHT_PX, t: TOP_PX, b: BOTTOM_PX },
    xaxis: axis({ type: "date", side: "top", range: [wall(edges[0]), wall(edges[edges.length - 1])], tickformat: "%H:%M", dtick: hours * 3600e3, tickangle: 0, showgrid: false, ticks: "", automargin: false }),
    yaxis: axis({ range: [rows.length - 0.5, -0.5], visible: false, automargin: false }),
  }, (point) => names.children[point.pointNumber[0]].firstElementChild.click());
}

const valueText = (value, unit) => (value === null ? "not known" : unit ? `${number(value)} ${unit}` : percent(value));
export const highestText = (values, unit) => valueText(highestOf(values), unit);

// The names of the rows; the one that has the focus keeps it. texts: what is shown of them.
function showNames(names, rows, { open, unit, texts }) {
  const current = names.querySelector("[tabindex='0']")?.dataset.key, hadFocus = names.contains(document.activeElement);
  const entries = rows.map((row, index) => {
    const label = row.name + row.mark;
    const properties = { "data-key": row.key, tabindex: "-1", title: label, text: texts[index], "aria-label": `${label}, highest ${highestText(row.values, unit)}` };
    return open.href ? h("a", { ...properties, href: open.href(row.key) })
      : h("button", { ...properties, onclick: () => open.choose(row.key) });
  });
  names.replaceChildren(...entries.map((entry) => h("li", {}, entry)));
  const entry = entries.find((each) => each.dataset.key === current) || entries[0];
  entry.tabIndex = 0;
  if (hadFocus) entry.focus({ preventScroll: true });
}

function moveAlongNames(event) {
  const entries = [...event.currentTarget.querySelectorAll("[data-key]")], at = entries.indexOf(document.activeElement);
  const wanted = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + PAGE_ROWS, PageUp: at - PAGE_ROWS, Home: 0, End: entries.length - 1 }[event.key];
  if (at < 0 || wanted === undefined) return;
  event.preventDefault();
  const entry = entries[Math.min(entries.length - 1, Math.max(0, wanted))];
  entries[at].tabIndex = -1;
  entry.tabIndex = 0;
  entry.focus();
}

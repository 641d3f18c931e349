// The charts of a server, one for each metric: their elements, and the order in which they are drawn.

import { h } from "./dom.js";
import { fanLabel } from "./fan.js";
import { onPaper } from "./plots.js";

const FRAME_MS = 16;

export function figure(metric, name) {
  return h("figure", {}, h("figcaption"), h("div", { class: "plot fan", role: "img", "aria-label": fanLabel(metric, name) }));
}

// Draw the charts in the window at once, each of the others a frame later; on paper there is no later.
export async function drawInTurn(figures, drawOne) {
  const inWindow = ({ top, bottom }) => bottom > 0 && (top + bottom) / 2 < innerHeight;
  const first = new Set(onPaper() ? figures : figures.filter((figure) => inWindow(figure.getBoundingClientRect())));
  await Promise.all(figures.map((figure, index) => first.has(figure) && drawOne(figure, index)));
  for (const [index, figure] of figures.entries()) {
    if (first.has(figure)) continue;
    await new Promise((resolve) => setTimeout(resolve, FRAME_MS)); // a hidden page has no frames
    await drawOne(figure, index);
  }
}

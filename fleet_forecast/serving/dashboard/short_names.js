// Names that are longer than their room, without their domain or without their middle.

const NAMES_REM = 0.8, END_SHARE = 0.6; // size of the letters: style.css; of a cut name, the part that is its end
const ruler = document.createElement("canvas").getContext("2d");

// Width of a text in the list of names, in pixels.
export function widthOf(text) {
  const root = parseFloat(getComputedStyle(document.documentElement).fontSize);
  ruler.font = `${NAMES_REM * root}px ${getComputedStyle(document.body).fontFamily}`;
  return ruler.measureText(text).width;
}

// rows: {name, mark}, of which the marks are kept whole. Returns the texts that fit, if there is room for a few letters.
export function shortTexts(rows, roomPx) {
  if (rows.every(({ name, mark }) => widthOf(name + mark) <= roomPx)) return rows.map(({ name, mark }) => name + mark);
  const names = withoutDomains(rows.map(({ name }) => name));
  return rows.map(({ mark }, index) => cut(names[index], mark, roomPx));
}

// Names up to their first dot, if these differ from each other.
function withoutDomains(names) {
  const hosts = names.map((name) => name.split(".", 1)[0]);
  if (new Set(hosts).size < names.length) return names;
  return hosts.map((host, index) => (host === names[index] ? host : `${host}…`));
}

function cut(name, mark, roomPx) {
  const width = widthOf(name), room = roomPx - widthOf(mark);
  if (width <= room) return name + mark;
  let letters = Math.min(name.length - 1, Math.ceil((name.length * room) / width) + 2);
  const text = () => {
    const last = Math.ceil(END_SHARE * letters);
    return `${name.slice(0, letters - last)}…${name.slice(-last)}`;
  };
  while (letters > 2 && widthOf(text()) > room) letters -= 1;
  return text() + mark;
}

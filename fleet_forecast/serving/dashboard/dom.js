// Elements of the page. Text is only ever written as text: no markup is made from data.

export const byId = (id) => document.getElementById(id);

// An element. properties: attributes, "on…" listeners, and `text`; children: elements or strings.
export function h(kind, properties = {}, ...children) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

// A table. columns: [{title, number, cell(row)}]; cells are elements or strings.
export function table(caption, columns, rows, rowProperties = () => ({})) {
  const place = (column) => (column.number ? "number" : null);
  return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": caption },
    h("table", {},
      h("caption", { class: "hidden", text: caption }),
      h("thead", {}, h("tr", {}, columns.map((column) => h("th", { scope: "col", class: place(column), text: column.title })))),
      h("tbody", {}, rows.map((row) => h("tr", rowProperties(row),
        columns.map((column) => h("td", { class: place(column), "data-title": column.title }, column.cell(row))))))));
}

// A choice among a few named values; `chosen` is called with the new one.
export function choice(label, options, value, chosen) {
  const select = h("select", { onchange: (event) => chosen(event.target.value) },
    options.map(([key, text]) => h("option", { value: key, selected: key === value, text })));
  return h("label", { class: "field" }, h("span", { text: label }), select);
}

export const badge = (text, kind = "", title = null) => h("span", { class: `badge ${kind}`, title, text });
export const empty = (title, ...more) => h("div", { class: "empty" }, h("p", { class: "empty-title", text: title }), ...more);

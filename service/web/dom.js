// Elements by name, in place of markup in strings: what comes from outside is only ever text.

const SVG = "http://www.w3.org/2000/svg";

const shown = (children) => children.flat(3).filter((child) => child !== null && child !== undefined && child !== false);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...shown(children));
  return element;
}

/** Make an HTML element: h("p", {class: "soft"}, "text", other). */
export function h(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** Make an SVG element. */
export function s(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

/** Put children in the place of what an element holds. */
export function put(element, ...children) {
  element.replaceChildren(...shown(children));
  return element;
}

/** Say something in the corner that goes away; it is read out too. */
export function note(text, { bad = false, seconds = bad ? 12 : 6 } = {}) {
  const box = h("div", { class: bad ? "toast bad" : "toast" }, h("span", {}, text));
  const close = () => box.remove();
  box.append(h("button", { class: "quiet", "aria-label": "Close this message", onclick: close }, "✕"));
  const notes = document.getElementById("notes");
  notes.append(box);
  while (notes.children.length > 3) notes.firstChild.remove();
  setTimeout(close, seconds * 1000);
}

/** A choice among [value, text]; `set` gets the value that was chosen. */
export function choice(label, values, chosen, set) {
  const id = `choose-${label.toLowerCase()}`;
  return h("span", { class: "row" }, h("label", { for: id }, label),
    h("select", { id, onchange: (event) => set(event.target.value) },
      values.map(([value, text]) => h("option", { value, selected: String(value) === String(chosen) }, text))));
}

/** The choice among models, where there are several; `set` gets the model. */
export function modelChoice(models, chosen, set) {
  return models.length > 1 && choice("Model", models.map(({ name }) => [name, name]), chosen.name, (name) => set(models.find((one) => one.name === name)));
}

/** A table: heads are [text, class?]; rows are lists of cells. */
export function table(caption, heads, rows) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {},
      h("caption", { class: "visually-hidden" }, caption),
      h("thead", {}, h("tr", {}, heads.map(([text, kind]) => h("th", { scope: "col", class: kind }, text)))),
      h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell, i) => h("td", { class: heads[i][1] }, cell)))))));
}

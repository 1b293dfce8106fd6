// Building blocks: elements from plain text only, so nothing that a peer says can become markup.

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children (nodes or text; null is left out). */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "onclick") node.addEventListener("click", value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const shown = new Map();

/** Replace the children of `#id`, but only if `data` differs from last time: selections and focus survive. */
export function fill(id, data, build) {
  const key = JSON.stringify(data ?? null);
  if (shown.get(id) === key) return;
  shown.set(id, key);
  byId(id).replaceChildren(...[build(data)].flat().filter(Boolean));
}

/** Set text only where it changed. */
export function say(id, text) {
  const node = byId(id);
  if (node.textContent !== text) node.textContent = text;
}

export async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  const area = el("textarea", { readonly: true, class: "hidden" });  // plain http beyond loopback
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  return undefined;
}

/** Text in the code font with a copy button. */
export function copyable(text, what, display = text) {
  const button = el("button", { class: "copy", type: "button", "aria-label": `Copy ${what}` }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await copyText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Failed";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  });
  return el("div", { class: "copyable" }, el("span", { class: "code", title: text }, display), button);
}

/** Name and value rows; a null value says that there is no data. */
export function facts(rows, kind = "") {
  const list = el("dl", { class: `facts ${kind}` });
  for (const [name, value] of rows) {
    const known = value !== null && value !== undefined && value !== "";
    list.append(el("dt", {}, name), el("dd", known ? {} : { class: "none" }, known ? value : "no data"));
  }
  return list;
}

export const chips = (names, kind = "") => el("div", { class: "chips" }, names.map((name) => el("span", { class: `chip ${kind}` }, name)));

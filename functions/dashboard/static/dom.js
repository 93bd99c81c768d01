// Elements without markup in strings: text is always text, whatever a user has named a key.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "rect", "circle", "line", "g"]);

/** An element. `on…` are listeners, `style` is an object, null and false leave an attribute out. */
export function h(tag, attributes = {}, ...children) {
  const element = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Replaces what `parent` holds, and leaves the keyboard where it was: elements with the same id are the same. */
export function replaceContent(parent, ...children) {
  const focused = document.activeElement?.id;
  const was = parent.contains(document.activeElement);
  parent.replaceChildren(...children.flat(3).filter(Boolean));
  if (was && focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

// SPDX-License-Identifier: MIT
// Elements and words. Texts come into the page by textContent alone, so that no name or error can be markup.

const SVG = "http://www.w3.org/2000/svg";
const numbers = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const byId = (id) => document.getElementById(id);

// An element with attributes (one that is null is left out) and children (elements and texts; null is left out).
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

// These change the page only where something differs: what is selected or read aloud stays.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function mark(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

export function show(node, shown) {
  if (node.hidden === shown) node.hidden = !shown;
}

// Make a list have one child for each item, in order; no two items have the same key. Children are kept, by their keys.
export function list(parent, items, key, create, update) {
  const there = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const children = items.map((item) => {
    const name = String(key(item));
    const child = there.get(name) ?? create(item);
    there.delete(name);
    child.dataset.key = name;
    return child;
  });
  children.forEach((child, place) => {
    if (parent.children[place] !== child) parent.insertBefore(child, parent.children[place] ?? null);
    update(child, items[place]);
  });
  while (parent.children.length > children.length) parent.lastElementChild.remove();
}

// Whether a pointer is down. What moves away under it then takes the click away from where it began.
let pressed = false;
export const isPressed = () => pressed;

// Call this when the pointer is up again, and its click has come, which after a touch takes a moment.
export function onRelease(then) {
  let soon = 0;
  const release = () => {
    clearTimeout(soon);
    soon = setTimeout(() => {
      pressed = false;
      then();
    }, 50);
  };
  addEventListener("pointerdown", (event) => {
    clearTimeout(soon);
    pressed = event.isPrimary && event.button === 0;
  });
  for (const kind of ["pointerup", "pointercancel", "blur"]) addEventListener(kind, release);
}

export function seconds(value) {
  if (value < 0.995) return `${value.toFixed(2)} s`;
  if (value < 9.95 && !Number.isInteger(value)) return `${value.toFixed(1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  if (value < 172800) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86400)} days`;
}

// For what goes on: whole seconds.
export const lasting = (value) => seconds(Math.max(1, Math.round(value)));

// For what is expected: no more exact than it is known.
export function about(value) {
  if (value < 1) return "under 1 s";
  return `about ${value < 120 ? `${Math.round(value)} s` : seconds(value)}`;
}

export const gigabytes = (value) => `${value < 10 ? value.toFixed(2) : value.toFixed(1)} GB`;
export const count = (value) => numbers.format(value);
export const compact = (value) => short.format(value);
export const many = (value, one, more = `${one}s`) => `${count(value)} ${value === 1 ? one : more}`;
export const clock = (moment) =>
  new Date(moment * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });

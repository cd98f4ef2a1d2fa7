// SPDX-License-Identifier: MIT
// The plot of requests by hour: a bar an hour, in it a part for each model; and the same as a table.

import { byId, clock, compact, count, draw, make, many } from "./dom.js";

const HOUR = 3600;
const HOURS = 24;
const HEIGHT = 168;
const SPACE = { left: 34, right: 6, top: 10, bottom: 22 };
// The others share one colour.
const COLOURS = 5;

let shown = "";

// A round number at the top of the scale.
function ceiling(most) {
  const size = 10 ** Math.floor(Math.log10(Math.max(1, most)));
  return [1, 2, 5, 10].map((step) => step * size).find((step) => step >= most) ?? most;
}

// The hours to show, each with the requests of every group, and the groups: the models that had most, and the others.
function grouped(rows, now, nameOf) {
  const last = Math.floor(now / HOUR) * HOUR;
  const totals = new Map();
  for (const row of rows) {
    const { requests, tokens } = totals.get(row.model) ?? { requests: 0, tokens: 0 };
    totals.set(row.model, {
      requests: requests + row.requests,
      tokens: tokens + row.prompt_tokens + row.generation_tokens,
    });
  }
  const order = [...totals].filter(([, one]) => one.requests).sort(([, one], [, other]) => other.requests - one.requests);
  const place = new Map(order.map(([model], number) => [model, Math.min(number, COLOURS)]));
  const groups = order.slice(0, COLOURS).map(([model, one]) => ({ name: nameOf(model), ...one }));
  const rest = order.slice(COLOURS);
  if (rest.length) {
    const sum = (key) => rest.reduce((all, [, one]) => all + one[key], 0);
    groups.push({ name: many(rest.length, "other"), requests: sum("requests"), tokens: sum("tokens") });
  }
  const hours = Array.from({ length: HOURS }, (_each, number) => ({
    at: last - (HOURS - 1 - number) * HOUR,
    requests: groups.map(() => 0),
  }));
  for (const row of rows) {
    const hour = hours.find((one) => one.at === row.hour);
    if (hour && place.has(row.model)) hour.requests[place.get(row.model)] += row.requests;
  }
  return { groups, hours };
}

const total = (hour) => hour.requests.reduce((sum, one) => sum + one, 0);

function plot(groups, hours, width) {
  const top = ceiling(Math.max(...hours.map(total)));
  const inner = { width: width - SPACE.left - SPACE.right, height: HEIGHT - SPACE.top - SPACE.bottom };
  const step = inner.width / hours.length;
  const y = (value) => SPACE.top + inner.height * (1 - value / top);
  const lines = [0, top / 2, top].filter(Number.isInteger).map((value) => [
    draw("line", { x1: SPACE.left, x2: width - SPACE.right, y1: y(value), y2: y(value), class: "grid" }),
    draw("text", { x: SPACE.left - 6, y: y(value) + 4, "text-anchor": "end" }, compact(value)),
  ]);
  const bars = hours.map((hour, number) => {
    const x = SPACE.left + number * step;
    let below = 0;
    const parts = hour.requests.map((requests, group) => {
      below += requests;
      const height = (inner.height * requests) / top;
      return draw("rect", { x: x + step * 0.12, y: y(below), width: step * 0.76, height, class: `group-${group}` });
    });
    const said = `${clock(hour.at)}: ${many(total(hour), "request")}`;
    const area = draw("rect", { x, y: SPACE.top, width: step, height: inner.height, class: "area" });
    return draw("g", { class: "hour" }, draw("title", {}, said), area, ...parts);
  });
  const labels = hours.flatMap((hour, number) => {
    if (number % 6 !== 5) return [];
    const anchor = number === hours.length - 1 ? "end" : "middle";
    const x = anchor === "end" ? width - SPACE.right : SPACE.left + (number + 0.5) * step;
    return [draw("text", { x, y: HEIGHT - 6, "text-anchor": anchor }, clock(hour.at))];
  });
  const all = hours.reduce((sum, hour) => sum + total(hour), 0);
  const label = `${many(all, "request")} in the last ${HOURS} hours, at most ${count(Math.max(...hours.map(total)))} in an hour`;
  return draw("svg", { role: "img", "aria-label": label, width, height: HEIGHT, class: "plot" }, ...lines.flat(), ...bars, ...labels);
}

function legend(groups) {
  const items = groups.map(({ name, requests, tokens }, number) =>
    make(
      "li",
      { class: `group-${number}` },
      make("span", { class: "name" }, name),
      make("span", { class: "dim" }, `${compact(requests)} · ${compact(tokens)} tokens`),
    ),
  );
  return make("ul", { class: "legend" }, ...items);
}

function table(groups, hours) {
  const head = make("tr", {}, make("th", { scope: "col" }, "Hour"), ...groups.map(({ name }) => make("th", { scope: "col" }, name)));
  const rows = hours
    .filter((hour) => total(hour))
    .map((hour) => make("tr", {}, make("th", { scope: "row" }, clock(hour.at)), ...hour.requests.map((one) => make("td", {}, count(one)))));
  const whole = make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
  const scrolls = make("div", { class: "scrolls", tabindex: "0", role: "region", "aria-label": "Requests by hour, as a table" }, whole);
  return make("details", {}, make("summary", {}, "As a table"), scrolls);
}

// Show the rows of the usage by hour.
export function showUsage(rows, now, nameOf) {
  const place = byId("usage");
  const { groups, hours } = grouped(rows, now, nameOf);
  const width = Math.max(240, Math.floor(place.clientWidth - 2 * parseFloat(getComputedStyle(place).paddingLeft)));
  const looks = JSON.stringify([groups, hours, width]);
  if (looks === shown) return;
  shown = looks;
  if (!groups.length) {
    place.replaceChildren(make("p", { class: "dim" }, "No requests in the last 24 hours."));
    return;
  }
  const open = place.querySelector("details")?.open ?? false;
  const focused = place.contains(document.activeElement) ? document.activeElement.tagName : "";
  const more = table(groups, hours);
  more.open = open;
  place.replaceChildren(plot(groups, hours, width), legend(groups), more);
  if (focused) place.querySelector(focused)?.focus();
}

// SPDX-License-Identifier: MIT
// What goes on now, what waits, and the last switches, each as a bar of its parts.

import { about, byId, clock, count, draw, lasting, list, make, many, mark, say, seconds, show } from "./dom.js";
import { heldByAll } from "./models.js";

const WIDTH = 1000;
const HEIGHT = 14;
// A part that is shorter than this much of the width would not be seen.
const LEAST = 4;
// A bar that is so many times longer than most of the others is cut short, so that theirs can be seen.
const OUTLIER = 4;
const WORDS = { active: "switch to", sleeping: "sleep of", stopped: "unload of" };
const KNOWN = ["drain", "sleep", "stop", "wake", "start", "ready", "canary", "between"];
// Seconds between the steps that are worth a word.
const LEAST_REST = 0.1;
// Seconds in the queue that are.
const LEAST_QUEUED = 0.5;

// The parts of a switch in order: name, beginning and duration in seconds since the switch was asked of the engine.
// A verify is the wait until the server is ready, and then the proof by an answer: the canary.
function phasesOf(steps, elapsed) {
  const found = [];
  for (const step of steps) {
    const begun = step.started_seconds ?? 0;
    const long = step.seconds ?? Math.max(0, elapsed - begun);
    const failed = "failed" in step;
    if (step.action !== "verify") found.push({ name: step.action, begun, long, failed });
    else {
      const answer = step.answer_seconds ?? 0;
      found.push({ name: "ready", begun, long: Math.max(0, long - answer), failed });
      if (answer) found.push({ name: "canary", begun: begun + long - answer, long: answer, failed });
    }
  }
  return found;
}

// The seconds of each name, in the order in which they began; last what belongs to no step, such as looks at the GPUs.
function sums(phases, total) {
  const found = new Map();
  for (const { name, long, failed } of phases) {
    const before = found.get(name) ?? { long: 0, failed: false };
    found.set(name, { long: before.long + long, failed: before.failed || failed });
  }
  const rest = total - phases.reduce((sum, one) => sum + one.long, 0);
  if (rest >= LEAST_REST) found.set("between", { long: rest, failed: false });
  return [...found];
}

const shade = (name) => `phase-${KNOWN.includes(name) ? name : "other"}`;

function bar(phases, total, scale) {
  const width = Math.min(1, total / scale);
  const unit = (WIDTH * width) / Math.max(total, 0.001);
  const parts = phases.map(({ name, begun, long, failed }) =>
    draw("rect", {
      x: Math.min(begun * unit, WIDTH - LEAST),
      width: Math.max(long * unit, LEAST),
      height: HEIGHT,
      class: failed ? `${shade(name)} failed` : shade(name),
    }),
  );
  return draw(
    "svg",
    { class: "bar", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    draw("rect", { width: Math.max(WIDTH * width, LEAST), height: HEIGHT, class: "whole" }),
    ...parts,
  );
}

// Of a switch that goes on, or has ended: what it is for the list.
export function rowOf(record) {
  const from = record.previous.filter((id) => id !== record.model && record.desired === "active");
  return { ...record, from, key: `${record.model} ${record.begun_at}` };
}

// A switch that has just ended, by its event, before the history has it.
export function recordOf(ticket) {
  const result = ticket.result ?? {};
  return {
    model: ticket.model,
    desired: ticket.desired,
    requested_by: ticket.by,
    asked_at: ticket.asked_at,
    begun_at: ticket.begun_at,
    ended_at: ticket.ended_at,
    seconds: ticket.ended_at - ticket.begun_at,
    result: ticket.status,
    error: ticket.error?.message ?? "",
    previous: result.previous_models ?? [],
    rung: result.rung ?? "",
    steps: result.steps ?? [],
  };
}

function title(row, nameOf) {
  const to = make("strong", {}, nameOf(row.model));
  if (row.desired === "sleeping") return [to, " put to sleep"];
  if (row.desired === "stopped") return [to, " unloaded"];
  if (!row.from.length) return [to, row.running ? " is made active" : " made active"];
  const arrow = make("span", { class: "arrow", "aria-hidden": "true" }, " → ");
  return [row.from.map(nameOf).join(", "), arrow, make("span", { class: "unseen" }, " to "), to];
}

function entry() {
  const node = make("li");
  node.append(
    make(
      "p",
      { class: "head" },
      make("span", { class: "what" }),
      make("span", { class: "result" }),
      make("span", { class: "dim meta" }),
      make("span", { class: "took" }),
    ),
    make("div", { class: "track" }),
    make("ul", { class: "phases", "aria-label": "Its parts" }),
    make("p", { class: "wrong" }),
  );
  return node;
}

function fillEntry(node, row, scale, nameOf, now) {
  const [head, track, parts, wrong] = node.children;
  const [what, result, meta, took] = head.children;
  const elapsed = row.running ? Math.max(0, now - row.begun_at) : row.seconds;
  const phases = phasesOf(row.steps, elapsed);
  const total = Math.max(elapsed, ...phases.map(({ begun, long }) => begun + long));
  // What has ended looks always the same, but for how long ago it was.
  const looks = row.running ? null : `${row.key} ${scale} ${row.steps.length} ${nameOf(row.model)}`;
  if (looks === null || node.dataset.looks !== looks) {
    if (looks !== null) node.dataset.looks = looks;
    const heading = title(row, nameOf);
    if (what.textContent !== heading.map((one) => one.textContent ?? one).join("")) what.replaceChildren(...heading);
    track.replaceChildren(bar(phases, total, row.running ? Math.max(scale, total) : scale));
    mark(track, "data-long", total > scale * 1.001 && !row.running ? "" : null);
    list(parts, sums(phases, total), ([name]) => name, ([name]) => make("li", { class: shade(name) }), (one, [name, { long, failed }]) => {
      say(one, `${name} ${seconds(long)}${failed ? " (failed)" : ""}`);
    });
  }
  mark(node, "data-result", row.running ? "running" : row.result);
  say(result, row.running ? "Running" : row.result === "failed" ? "Failed" : "");
  say(took, seconds(elapsed));
  const queued = row.begun_at - row.asked_at;
  const more = [
    row.running ? "" : ago(now, row.ended_at),
    queued >= LEAST_QUEUED ? `queued ${seconds(queued)}` : "",
    row.rung ? `escalated: ${row.rung.replaceAll("_", " ")}` : "",
    by(row),
  ];
  say(meta, more.filter((part) => part).join(" · "));
  say(wrong, row.error);
  show(wrong, row.error !== "");
}

function ago(now, moment) {
  const past = now - moment;
  if (past < 5) return "just now";
  return past < 3600 ? `${seconds(Math.round(past))} ago` : clock(moment);
}

// Who has asked for it: a client's address, or a part of the service or of the host.
const by = (row) => (row.requested_by ? `by ${row.requested_by.replace(/^HTTP /, "")}` : "");

// Up to the length of the bars: that of the longest, if it is no outlier.
function scaleOf(rows) {
  const long = rows.filter((row) => !row.running).map((row) => row.seconds).sort((one, other) => one - other);
  if (!long.length) return 1;
  const middle = long[Math.floor(long.length / 2)];
  return Math.max(0.05, Math.min(long[long.length - 1], OUTLIER * middle));
}

export function showSwitches(rows, nameOf, now) {
  const scale = scaleOf(rows);
  show(byId("no-switches"), rows.length === 0);
  list(byId("switches"), rows, (row) => row.key, entry, (node, row) => fillEntry(node, row, scale, nameOf, now));
}

export function showQueue(queue, nameOf, age) {
  const waiting = queue.filter((ticket) => ticket.status === "queued");
  show(byId("queue"), waiting.length > 0);
  list(byId("waiting"), waiting, (ticket) => ticket.id, () => make("li", {}, make("p"), make("p", { class: "dim" })), (node, ticket) => {
    const [what, more] = node.children;
    say(what, `${WORDS[ticket.desired]} ${nameOf(ticket.model)}`);
    const eta = ticket.eta_seconds === null ? "" : `done in ${about(Math.max(0, ticket.eta_seconds - age))}`;
    const others = ticket.waiters > 1 ? many(ticket.waiters, "caller") : "";
    say(more, [eta, others, by({ requested_by: ticket.by })].filter((part) => part).join(" · "));
  });
}

const stat = (name) => make("div", {}, make("dt", {}, name), make("dd"));

// What goes on now: the switch that runs, or who is active.
export function showNow(host, running, nameOf, age, now) {
  const place = byId("now");
  if (place.children.length < 2) {
    place.append(
      make("div", { class: "who" }, make("p", { class: "eyebrow" }), make("p", { class: "big" }), make("p", { class: "dim" })),
      make("dl", { class: "stats" }, ...["In flight", "Waiting", "GPU memory", "Asleep"].map(stat)),
      make("progress", { "aria-label": "Progress of the switch", max: "1", hidden: "" }),
    );
  }
  const [, who, stats, progress] = place.children;
  const [eyebrow, big, more] = who.children;
  const active = host.models.filter((model) => model.state === "ready");
  const told = active.filter((model) => model.in_flight !== null);
  const values = [
    active.length && !told.length ? "" : count(told.reduce((sum, model) => sum + model.in_flight, 0)),
    count(host.queue.filter((ticket) => ticket.status === "queued").length),
    heldByAll(host.models),
    count(host.models.filter((model) => model.state === "asleep").length),
  ];
  values.forEach((value, number) => {
    say(stats.children[number].lastChild, value);
    show(stats.children[number], value !== "");
  });
  show(progress, Boolean(running));
  mark(place, "data-busy", running ? "" : null);
  if (!running) {
    say(eyebrow, active.length > 1 ? "Active models" : "Active model");
    say(big, active.length ? active.map((model) => model.name).join(", ") : "None");
    const since = active.length === 1 ? active[0].active_seconds : null;
    say(more, since === null ? "" : `for ${lasting(since + age)}`);
    return;
  }
  const elapsed = Math.max(0, now - running.begun_at);
  const left = running.eta_seconds === null ? null : Math.max(0, running.eta_seconds - age);
  say(eyebrow, { active: "Switching to", sleeping: "Putting to sleep", stopped: "Unloading" }[running.desired]);
  say(big, nameOf(running.model));
  const step = running.steps.at(-1);
  const doing = step && step.seconds === null ? `${step.action} of ${nameOf(step.model)}` : "";
  say(more, [doing, left === null ? "" : left ? `${about(left)} left` : "any moment now"].filter((part) => part).join(" · "));
  if (left === null) progress.removeAttribute("value");
  else progress.value = Math.min(0.98, elapsed / Math.max(0.1, elapsed + left));
}

// SPDX-License-Identifier: MIT
// The cards of the models: what each is, and the buttons for what can be done with it.

import { about, byId, clock, count, gigabytes, lasting, list, make, many, mark, say, show } from "./dom.js";

const STATES = {
  ready: "Active",
  sleepPending: "Going to sleep",
  asleep: "Asleep",
  waking: "Waking",
  stopped: "Stopped",
  starting: "Loading",
  error: "Error",
  disabled: "Disabled",
};
const NOISE_GB = 0.02;
const STOP = { weights: "discard", process: "stop" };

// What the buttons ask for: of the control API, because who clicks is a person.
const ACTIONS = {
  switch: { label: "Switch", to: " to ", path: "control/switch", primary: true },
  wake: { label: "Wake", to: " ", path: "control/wake", primary: true },
  load: { label: "Load", to: " ", path: "control/switch", primary: true },
  sleep: { label: "Sleep", to: " ", path: "control/sleep" },
  unload: { label: "Unload", to: " ", path: "control/sleep", more: { eviction: STOP } },
  pin: { label: "Pin", to: " ", path: "control/pin" },
  unpin: { label: "Unpin", to: " ", path: "control/unpin" },
};

export function request(action, model) {
  const { path, more } = ACTIONS[action];
  return action === "unpin" ? [path, null] : [`${path}?wait=false`, { model: model.id, ...more }];
}

// The actions that make sense for a model, each with the reason why it can't be done now, if there is one.
function offers(model, host) {
  if (model.state === "disabled") return new Map();
  const coming = host.queue.some((ticket) => ticket.model === model.id && ticket.desired === "active");
  const pinned = host.pinned === model.id;
  const stays = model.eviction.weights === "retain" && model.eviction.process === "keep_running";
  const kept = pinned ? "It is pinned: unpin it first." : stays ? "Its eviction says that it never makes room." : "";
  const found = new Map();
  if (model.state !== "ready") {
    const others = host.switching || host.models.some((one) => one.state === "ready" && one.id !== model.id);
    const down = model.state === "stopped" || model.state === "error";
    found.set(others ? "switch" : down ? "load" : "wake", coming ? "It is on its way." : "");
  }
  if (model.state === "ready" && (model.can_sleep || stays)) found.set("sleep", kept);
  if (model.state !== "stopped") found.set("unload", kept);
  found.set(pinned ? "unpin" : "pin", "");
  return found;
}

// What a model is and does, in a line.
function doing(model, age) {
  const parts = [];
  const waits = model.eta_seconds === null ? null : `ready in ${about(model.eta_seconds)}`;
  if (model.state === "ready") {
    if (model.active_seconds !== null) parts.push(`for ${lasting(model.active_seconds + age)}`);
    if (model.in_flight) parts.push(many(model.in_flight, "request"));
    else if (model.idle_seconds !== null) parts.push(`idle for ${lasting(model.idle_seconds + age)}`);
  } else if (model.state === "asleep") {
    if (model.level !== null) parts.push(`level ${model.level}`);
    if (waits) parts.push(waits);
  } else if (model.state !== "disabled" && waits) parts.push(waits);
  if (model.queue_depth) parts.push(`${many(model.queue_depth, "caller")} waiting`);
  if (model.unknown) parts.push("its server does not answer in time");
  return parts.join(" · ");
}

// What is wrong with it, or remarkable.
function remarks(model) {
  const found = [];
  const breaker = model.breaker;
  if (model.problem) found.push(["bad", model.problem]);
  if (breaker && breaker.failures) {
    const then = breaker.retry_at ? `, next try at ${clock(breaker.retry_at)}` : "";
    const state = { open: "Breaker open: ", half_open: "Breaker half open: " }[breaker.state] ?? "";
    const text = `${state}${many(breaker.failures, "failure")} lately${then}`;
    found.push(["bad", model.problem || !breaker.reason ? text : `${text}: ${breaker.reason}`]);
  }
  if (model.note) found.push(["warn", model.note]);
  return found;
}

// The odometer: what its server keeps from sleep to sleep. Less than the noise is no growth.
function odometer(leak) {
  if (!leak || (leak.held_gb === null && leak.switches_left === null)) return ["", "", "good"];
  const left = leak.switches_left;
  const grows = leak.gb_per_sleep >= NOISE_GB ? `+${gigabytes(leak.gb_per_sleep)} a sleep` : "stable";
  const held = leak.held_gb === null ? grows : `${gigabytes(leak.held_gb)}, ${grows}`;
  const fit = left === null ? "" : `fit for ${many(left, "more switch", "more switches")}`;
  return [held, fit, left === null || left >= 25 ? "good" : left < 5 ? "bad" : "warn"];
}

class Card {
  constructor(model, act) {
    const button = (name) => {
      const { label, to, primary } = ACTIONS[name];
      const made = make("button", { type: "button", class: primary ? "primary" : "plain", "data-action": name, hidden: "" });
      const meant = make("span", { class: "unseen" });
      made.append(label, meant);
      made.addEventListener("click", () => {
        if (made.getAttribute("aria-disabled") !== "true") act(name, this.model, made);
      });
      return [name, { made, meant, to }];
    };
    this.buttons = new Map(Object.keys(ACTIONS).map(button));
    this.pill = make("span", { class: "state" });
    this.pinned = make("span", { class: "tag" }, "Pinned");
    this.name = make("h3", { id: `model-${model.id}` });
    this.id = make("p", { class: "id" });
    this.description = make("p", { class: "dim" });
    this.line = make("p", { class: "line" });
    this.held = make("span", { class: "amount" });
    this.bar = make("div", { class: "fill" });
    this.memory = make(
      "div",
      { class: "memory" },
      make("p", {}, make("span", { class: "dim" }, "GPU memory"), this.held),
      make("div", { class: "meter", "aria-hidden": "true" }, this.bar),
    );
    this.kept = make("span", { class: "amount" });
    this.fit = make("span", { class: "fit" });
    this.odometer = make("p", { class: "odometer" }, make("span", { class: "dim" }, "Kept asleep"), this.kept, this.fit);
    this.remarks = make("ul", { class: "remarks" });
    this.why = make("p", { class: "dim why", id: `why-${model.id}` });
    this.row = make("div", { class: "row actions" }, ...[...this.buttons.values()].map((one) => one.made));
    this.card = make(
      "article",
      { class: "card", "aria-labelledby": this.name.id },
      make("div", { class: "top" }, this.pill, this.pinned),
      this.name,
      this.id,
      this.description,
      this.line,
      this.memory,
      this.odometer,
      this.remarks,
      make("div", { class: "foot" }, this.row, this.why),
    );
    this.node = make("li", {}, this.card);
  }

  update(model, host, age, most, reason) {
    this.model = model;
    mark(this.card, "data-state", model.state);
    say(this.pill, STATES[model.state] ?? model.state);
    show(this.pinned, host.pinned === model.id);
    say(this.name, model.name);
    say(this.id, model.id);
    show(this.id, model.id !== model.name);
    say(this.description, model.description);
    show(this.description, model.description !== "");
    say(this.line, doing(model, age));
    const held = model.gpu_memory_held_gb;
    // What it holds after a switch is known a moment later.
    if (held !== null) measured.add(model.id);
    show(this.memory, measured.has(model.id) && model.state !== "stopped");
    say(this.held, held === null ? "…" : `${gigabytes(held)}${model.gpu_memory_gb ? ` of ${count(model.gpu_memory_gb)} GB` : ""}`);
    this.bar.style.width = `${Math.min(100, (100 * (held ?? 0)) / most)}%`;
    const [kept, fit, level] = odometer(model.leak);
    show(this.odometer, kept !== "");
    say(this.kept, kept);
    say(this.fit, fit);
    mark(this.fit, "data-level", level);
    const key = ([kind, text]) => `${kind} ${text}`;
    list(this.remarks, remarks(model), key, ([kind]) => make("li", { class: kind }), (node, [, text]) => say(node, text));
    this.offer(reason ? new Map() : offers(model, host));
  }

  offer(offered) {
    const focused = this.row.contains(document.activeElement) ? document.activeElement : null;
    for (const [name, { made, meant, to }] of this.buttons) {
      const why = offered.get(name);
      show(made, why !== undefined);
      say(meant, `${to}${this.model.name}`);
      mark(made, "aria-disabled", why || made.dataset.busy !== undefined ? "true" : null);
      mark(made, "aria-describedby", why ? this.why.id : null);
    }
    const reasons = [...new Set(offered.values())].filter((why) => why);
    say(this.why, reasons.join(" "));
    show(this.row, offered.size > 0);
    show(this.why, reasons.length > 0);
    // Who works with the keyboard stays with this model.
    if (focused && focused.hidden) this.row.querySelector("button:not([hidden])")?.focus();
  }
}

const cards = new Map();
// The models whose memory was known once: those of which it will be again, after a switch.
const measured = new Set();

// The memory that all of them hold, in words; empty where nobody can tell.
export function heldByAll(models) {
  const up = models.filter((model) => measured.has(model.id) && model.state !== "stopped");
  if (!measured.size) return "";
  if (up.some((model) => model.gpu_memory_held_gb === null)) return "…";
  return `${up.reduce((sum, model) => sum + model.gpu_memory_held_gb, 0).toFixed(1)} GB`;
}

// Show the models of a host; `reason` is why the caller may not change anything, `age` how old this is, in seconds.
export function showModels(host, age, reason, act) {
  const most = Math.max(1, ...host.models.map((model) => Math.max(model.gpu_memory_held_gb ?? 0, model.gpu_memory_gb ?? 0)));
  const create = (model) => {
    const card = new Card(model, act);
    cards.set(model.id, card);
    return card.node;
  };
  const update = (_node, model) => cards.get(model.id).update(model, host, age, most, reason);
  list(byId("models"), host.models, (model) => model.id, create, update);
}

// SPDX-License-Identifier: MIT
// The status page of a model manager: what it knows of its host, kept up to date by the events that it is told.

import { ahead, follow, get, keepToken, needsToken, post, token } from "./api.js";
import { byId, isPressed, list, make, mark, onRelease, say, seconds, show } from "./dom.js";
import { request, showModels } from "./models.js";
import { recordOf, rowOf, showNow, showQueue, showSwitches } from "./switches.js";
import { showUsage } from "./usage.js";

const PAGE = 8; // switches
const LOOK_MS = 5000; // what no event tells: requests in flight, memory, times
const CLOSE_MS = 150; // events that come together are one reason to look
const USAGE_MS = 60000;
const LONGEST_PAUSE_MS = 15000;
const INVALID = "This token is not valid.";
const FAILED = { active: "The switch to", sleeping: "The sleep of", stopped: "The unload of" };

let host = null; // the answer of /models, with the states that were told since
const told = new Map(); // the states of which was told since that answer was asked for
let hostAt = 0; // when that came, by the clock of this page
let reason = ""; // why the caller may not change anything
let running = null; // the switch that goes on, with its steps
let over = ""; // the id of the last one of which the end was told: an answer that comes later may be older
let records = []; // switches that have ended, the newest first
let older = null; // from where to read on
let paged = false; // whether older ones were asked for
let usage = [];
let notices = [];
let lastEvent = null;

const now = () => Date.now() / 1000 + ahead;
const age = () => (performance.now() - hostAt) / 1000;
const nameOf = (id) => host?.models.find((model) => model.id === id)?.name ?? id;
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// What is shown.

function render() {
  if (!host || isPressed()) return;
  const rows = records.map(rowOf);
  if (running) rows.unshift(rowOf({ ...running, running: true }));
  showNow(host, running, nameOf, age(), now());
  showModels(host, age(), reason, act);
  showQueue(host.queue, nameOf, age());
  showSwitches(rows, nameOf, now());
  show(byId("more"), older !== null);
  showUsage(usage, now(), nameOf);
  showNotices();
  const active = host.models.filter((one) => one.state === "ready").map((one) => one.name).join(", ");
  const coming = running?.desired === "active" ? `Switching to ${nameOf(running.model)}` : "";
  document.title = `${coming || active || "No active model"} · Model manager`;
}

// What is to be known before all else: what holds for the host now, and what has gone wrong.
function showNotices() {
  const standing = [];
  if (reason) standing.push({ key: "reader", kind: "info", text: `Read only: ${reason}.` });
  if (host.problem) standing.push({ key: "problem", kind: "bad", text: host.problem });
  if (host.lock_holder) standing.push({ key: "lock", kind: "warn", text: `Somebody else switches models: ${host.lock_holder}.` });
  if (host.mode === "manual") {
    const what = host.pinned ? `${nameOf(host.pinned)} is pinned` : "The mode is manual";
    const text = `${what}: only this page and the control API switch models.`;
    standing.push({ key: "mode", kind: "warn", text, offer: reason ? null : ["Back to automatic", automatic] });
  }
  if (host.age_seconds + age() > 60) {
    standing.push({ key: "old", kind: "warn", text: `The servers were last looked at ${seconds(host.age_seconds + age())} ago.` });
  }
  const all = [...standing, ...notices];
  list(byId("notices"), all, (one) => one.key, createNotice, (node, one) => say(node.children[0], one.text));
}

function createNotice(one) {
  const node = make("div", { class: `notice ${one.kind}`, role: one.dismiss ? "alert" : null }, make("p"));
  if (one.remedy) node.append(make("p", { class: "remedy" }, one.remedy));
  const [label, done] = one.dismiss ? ["Dismiss", () => dismiss(one.key)] : one.offer ?? [];
  if (label) {
    const button = make("button", { type: "button", class: "plain" }, label);
    button.addEventListener("click", done);
    node.append(button);
  }
  return node;
}

function complain(text, remedy = "") {
  const same = notices.find((one) => one.text === text);
  if (same) return;
  notices = [{ key: `notice ${performance.now()}`, kind: "bad", text, remedy, dismiss: true }, ...notices].slice(0, 3);
  render();
}

function dismiss(key) {
  notices = notices.filter((one) => one.key !== key);
  byId("models").focus({ preventScroll: true });
  render();
}

function connection(state) {
  const words = { live: "Live", lost: "Reconnecting", ended: "Signed out" };
  say(byId("link"), words[state]);
  mark(byId("link"), "data-state", state);
}

// What people do.

async function act(action, model, button) {
  if (action === "unload" && !(await confirmed(model))) return;
  mark(button, "data-busy", "");
  mark(button, "aria-disabled", "true");
  try {
    await post(...request(action, model));
  } catch (error) {
    complain(`${model.name}: ${error.message}`, error.remedy);
  }
  mark(button, "data-busy", null);
  await look();
}

async function automatic() {
  try {
    await post("control/unpin", null);
  } catch (error) {
    complain(error.message, error.remedy);
  }
  await look();
}

function confirmed(model) {
  const dialog = byId("ask");
  say(byId("ask-title"), `Unload ${model.name}?`);
  const flying = model.in_flight ? ` It has requests in flight (${model.in_flight}), which may end first.` : "";
  say(byId("ask-text"), `Its server is stopped. To make it active again, it has to be loaded, which takes longer than a wake.${flying}`);
  say(byId("ask-yes"), "Unload");
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
}

byId("more").addEventListener("click", async () => {
  try {
    const page = await get(`switches?limit=${PAGE}&before=${older}`);
    records = [...records, ...page.switches];
    older = page.before;
    paged = true;
  } catch (error) {
    complain(error.message, error.remedy);
  }
  render();
});

// What is known.

let looking = null;
let again = false;

const takeOver = () => host?.models.forEach((model) => Object.assign(model, told.get(model.id)));

// Ask for the host; who asks meanwhile gets the next answer.
function look() {
  if (looking) {
    again = true;
    return looking;
  }
  looking = (async () => {
    do {
      again = false;
      told.clear();
      host = await get("models");
      hostAt = performance.now();
      takeOver(); // it may be older than what was told meanwhile
      const ticket = host.queue.find((one) => one.status === "running" && one.id !== over);
      if (!ticket) running = null;
      else running = { ...ongoing(ticket, host.switching?.from ?? ""), eta_seconds: ticket.eta_seconds };
    } while (again);
  })()
    .catch(lost)
    .finally(() => {
      looking = null;
      render();
    });
  return looking;
}

// The switch that goes on. Its steps are those of which was told, if some were.
function ongoing(ticket, from) {
  if (running?.id === ticket.id) return running;
  return { ...ticket, requested_by: ticket.by, previous: from ? [from] : [], rung: "", error: "", steps: [] };
}

async function readSwitches() {
  try {
    const page = await get(`switches?limit=${PAGE}`);
    const oldest = page.switches.at(-1);
    // What was read of it earlier goes on where this page ends, or is too old.
    const place = paged && oldest ? records.findIndex((one) => one.id === oldest.id) : -1;
    if (place < 0) {
      older = page.before;
      paged = false;
    }
    // What the history could not keep was told all the same.
    const since = page.switches[0]?.ended_at ?? 0;
    const told = records.filter((one) => one.id === undefined && one.ended_at > since);
    records = [...told, ...page.switches, ...(place < 0 ? [] : records.slice(place + 1))];
  } catch (error) {
    lost(error);
  }
  render();
}

async function readUsage() {
  try {
    usage = (await get("usage?days=0&hours=24")).hours;
  } catch (error) {
    lost(error);
  }
  render();
}

// What can't be read now is read later.
function lost(error) {
  if (error.status !== 401) return;
  if (needsToken) signIn(INVALID);
  else complain("This manager has tokens now.", "Reload the page.");
}

let soon = 0;
let later = 0;

function lookSoon() {
  soon ||= setTimeout(() => {
    soon = 0;
    look();
  }, CLOSE_MS);
}

// The history has a switch a moment after its end was told.
function readSwitchesSoon() {
  clearTimeout(later);
  later = setTimeout(readSwitches, 1000);
}

function happened(event) {
  lastEvent = event.id;
  const data = event.data;
  switch (event.kind) {
    case "snapshot":
      break; // it was read when the connection was opened
    case "state":
      told.set(data.model, { state: data.state, level: data.level, problem: data.problem });
      takeOver();
      break;
    case "switch_begun":
      running = ongoing(data, data.from_model);
      break;
    case "step_begun":
      if (running?.id === data.ticket) running.steps.push(data);
      break;
    case "step_ended":
      if (running?.id === data.ticket) running.steps = [...running.steps.filter((one) => !sameStep(one, data)), data];
      break;
    case "switch_ended":
      ended(data);
      break;
    case "switch_seen":
      readSwitchesSoon();
      break;
    default:
  }
  render();
  lookSoon();
}

const sameStep = (one, other) =>
  one.model === other.model && one.action === other.action && one.started_seconds === other.started_seconds;

function ended(ticket) {
  over = ticket.id;
  if (running?.id === ticket.id) running = null;
  if (ticket.error) complain(`${FAILED[ticket.desired]} ${nameOf(ticket.model)} has failed: ${ticket.error.message}`, ticket.error.remedy);
  else {
    const word = { active: "active", sleeping: "asleep", stopped: "stopped" }[ticket.desired];
    say(byId("said"), `${nameOf(ticket.model)} is ${word}.`);
  }
  const known = records.some((one) => one.model === ticket.model && one.begun_at === ticket.begun_at);
  if (!known && ticket.begun_at && (ticket.error || ticket.result?.steps.length)) {
    records = [recordOf(ticket), ...records];
    readSwitchesSoon();
  }
}

async function live() {
  let wait = 500;
  const opened = () => {
    wait = 500;
    connection("live");
    readAccess();
    look();
    readSwitches();
    readUsage();
  };
  for (;;) {
    try {
      await follow(lastEvent, opened, happened);
    } catch (error) {
      if (error.status === 401 && needsToken) await signIn(INVALID);
      else if (error.status) {
        // There are too many readers: what is shown is up to date now and then.
        wait = Math.max(wait, 1000 * error.retryAfter);
        look();
        readSwitches();
      }
    }
    connection("lost");
    await pause(wait);
    wait = Math.min(2 * wait, LONGEST_PAUSE_MS);
  }
}

// Tokens.

let signingIn = null;

// Ask for a token, until there is a valid one.
function signIn(said = "") {
  signingIn ??= (async () => {
    keepToken("");
    host = null;
    connection("ended");
    show(byId("board"), false);
    show(byId("forget"), false);
    byId("notices").replaceChildren();
    say(byId("token-error"), said);
    show(byId("token"), true);
    do {
      byId("token-text").focus();
      await submitted();
    } while (!(await enter()));
    signingIn = null;
  })();
  return signingIn;
}

function submitted() {
  return new Promise((done) => {
    const take = (event) => {
      event.preventDefault();
      keepToken(byId("token-text").value.trim());
      done();
    };
    byId("token").addEventListener("submit", take, { once: true });
  });
}

// Begin to show the host; whether the token is valid.
async function enter() {
  while (!(await readAccess())) {
    if (needsToken && !token()) {
      say(byId("token-error"), INVALID);
      return false;
    }
    connection("lost");
    await pause(2000);
  }
  byId("token-text").value = "";
  say(byId("token-error"), "");
  show(byId("token"), false);
  show(byId("forget"), needsToken);
  show(byId("board"), true);
  return true;
}

async function readAccess() {
  try {
    ({ reason } = await get("access"));
    return true;
  } catch (error) {
    if (error.status === 401) keepToken("");
    return false;
  }
}

byId("forget").addEventListener("click", () => {
  keepToken("");
  location.reload();
});

async function begin() {
  say(byId("where"), location.host);
  if (needsToken && !token()) await signIn();
  else if (!(await enter())) await signIn(INVALID);
  setInterval(() => document.hidden || !host || look(), LOOK_MS);
  setInterval(() => document.hidden || !host || readUsage(), USAGE_MS);
  setInterval(() => running && render(), 200);
  setInterval(render, 1000);
  onRelease(render);
  new ResizeObserver(render).observe(byId("usage"));
  document.addEventListener("visibilitychange", () => document.hidden || !host || look());
  await live();
}

begin();

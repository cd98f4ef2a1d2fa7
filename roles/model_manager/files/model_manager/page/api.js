// SPDX-License-Identifier: MIT
// Calls of the manager's API, with the token of this tab where tokens are needed, and the stream of its events.

const KEY = "model-manager-token";
// The manager says something every 15 seconds. A connection on which nothing comes is a dead one.
const SILENT_MS = 40000;

export const needsToken = document.documentElement.dataset.tokens === "needed";

// By how many seconds the manager's clock is ahead of this one.
export let ahead = 0;

export class Refused extends Error {
  constructor(status, said, retryAfter) {
    super(said.error ?? `the manager answers ${status}`);
    this.status = status;
    this.remedy = said.remedy ?? "";
    this.retryAfter = Number(retryAfter) || 0;
  }
}

export const token = () => (needsToken ? sessionStorage.getItem(KEY) ?? "" : "");

export function keepToken(text) {
  if (text) sessionStorage.setItem(KEY, text);
  else sessionStorage.removeItem(KEY);
}

function headers(more = {}) {
  return needsToken ? { Authorization: `Bearer ${token()}`, ...more } : more;
}

async function checked(answer) {
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, said, answer.headers.get("Retry-After"));
}

export async function get(path) {
  const answer = await checked(await fetch(path, { headers: headers() }));
  const date = Date.parse(answer.headers.get("Date") ?? "");
  if (date) ahead = Math.abs(date - Date.now()) < 2000 ? 0 : (date - Date.now()) / 1000;
  return answer.json();
}

export async function post(path, body) {
  const more = body ? { "Content-Type": "application/json" } : {};
  const text = body ? JSON.stringify(body) : null;
  return (await checked(await fetch(path, { method: "POST", headers: headers(more), body: text }))).json();
}

// Read the events until the connection ends; `last` is the id of the last event that was had before, or null.
// EventSource can't send a token.
export async function follow(last, opened, happened) {
  const ending = new AbortController();
  let silent = 0;
  const alive = () => {
    clearTimeout(silent);
    silent = setTimeout(() => ending.abort(), SILENT_MS);
  };
  alive();
  try {
    const more = last === null ? {} : { "Last-Event-ID": String(last) };
    const answer = await checked(await fetch("events", { headers: headers(more), signal: ending.signal }));
    opened();
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let left = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      alive();
      const frames = (left + value).split("\n\n");
      left = frames.pop();
      for (const frame of frames) {
        const data = frame.split("\n").find((line) => line.startsWith("data: "));
        if (data) happened(JSON.parse(data.slice(6)));
      }
    }
  } finally {
    clearTimeout(silent);
    ending.abort();
  }
}

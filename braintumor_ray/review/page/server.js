// Talks to the server: reads with the token, and a queue of labels that survives both sides' crashes.

const TOKEN = "braintumor-review-token";
const QUEUE = "braintumor-review-queue-";

let token = read(sessionStorage, TOKEN) || "";

function read(storage, key) {
  try { return storage.getItem(key); } catch { return null; } // a browser may forbid it
}

function write(storage, key, value) {
  try {
    if (value === null) storage.removeItem(key); else storage.setItem(key, value);
    return true;
  } catch { return false; }
}

export function setToken(value) {
  token = value.trim();
  write(sessionStorage, TOKEN, token);
}

export class Refused extends Error {
  constructor(status, detail) { super(detail); this.status = status; }
}

export async function ask(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  let detail = `the server answered ${answer.status}`;
  try { detail = (await answer.json()).detail || detail; } catch { /* no problem document */ }
  throw new Refused(answer.status, detail);
}

export const json = async (path, options) => (await ask(path, options)).json();
export const blob = async (path, options) => (await ask(path, options)).blob();

// Labels in the order in which they were given. Each has an id: sent twice, it is one label.
export class Queue {
  constructor(taken, changed) {
    this.taken = taken; // called with the server's answer; gives a message or ""
    this.changed = changed; // called with how many wait, and a message
    this.results = "";
    this.waiting = [];
    this.sending = false;
    this.pause = 500;
  }

  // Names the results that labels are of: another review may be at this address before they are sent.
  open(results) {
    if (this.results) return;
    this.results = results;
    this.key = `${QUEUE}${results}-${crypto.randomUUID()}`;
    this.adopt();
  }

  // What a closed or crashed tab has left. If that tab is alive, ids keep a label from counting twice.
  adopt() {
    for (const key of storedKeys(`${QUEUE}${this.results}-`)) {
      for (const item of parsed(read(localStorage, key))) {
        if (!this.waiting.some((other) => other.id === item.id)) this.waiting.push(item);
      }
      write(localStorage, key, null);
    }
    this.store();
  }

  add(change) {
    this.waiting.push({ id: crypto.randomUUID(), results: this.results, ...change });
    const kept = this.store();
    this.changed(this.waiting.length, kept ? "" : "this browser keeps nothing: do not close the tab");
    this.send();
  }

  store() {
    const text = this.waiting.length ? JSON.stringify(this.waiting) : null;
    this.kept = write(localStorage, this.key, text);
    return this.kept;
  }

  async send() {
    if (this.sending) return;
    this.sending = true;
    while (this.waiting.length) {
      try {
        const answer = await this.post(this.waiting[0]);
        this.done(answer);
      } catch (error) {
        if (error instanceof Refused && error.status < 500 && error.status !== 401) {
          this.done(null, `not kept: ${error.message}`); // sending it again would not help
          continue;
        }
        const told = error instanceof Refused ? error.message : "no answer from the server: trying again";
        this.changed(this.waiting.length, error.status === 401 ? "a token is needed" : told);
        await new Promise((resolve) => setTimeout(resolve, this.pause));
        this.pause = Math.min(this.pause * 2, 4000);
      }
    }
    this.sending = false;
  }

  post(item) {
    const body = JSON.stringify(item);
    return json("/v1/labels", { method: "POST", body, headers: { "Content-Type": "application/json" } });
  }

  done(answer, message = "") {
    const item = this.waiting.shift();
    this.pause = 500;
    this.store();
    const told = answer ? this.taken(item, answer) : "";
    this.changed(this.waiting.length, message || told);
  }
}

function storedKeys(prefix) {
  try { return Object.keys(localStorage).filter((key) => key.startsWith(prefix)); } catch { return []; }
}

function parsed(text) {
  try { return JSON.parse(text) || []; } catch { return []; }
}

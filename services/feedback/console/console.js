// The console: paints a table of what the store holds. Nothing here makes HTML out of text: all
// text goes in as text.

import { Link } from "/link.js";
import { Store, VIEWS } from "/store.js";

const STATES = {
  running: ["busy", "running", "M8 2a6 6 0 1 1-6 6"],
  cancelling: ["wait", "cancelling", "M3 8h10M8 3v10"],
  queued: ["idle", "queued", "M3 4h10M3 8h10M3 12h6"],
  waiting: ["wait", "waiting", "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2M8 5v3l2 2"],
  succeeded: ["good", "succeeded", "M3 8.5l3.5 3.5L13 4.5"],
  failed: ["bad", "failed", "M4 4l8 8M12 4l-8 8"],
  cancelled: ["idle", "cancelled", "M3 3l10 10M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2"],
};
const ROWS_SHOWN = 200;
const NEWS_EVERY_MS = 5_000;

const $ = (id) => document.getElementById(id);
const store = new Store();
const shown = new Map();
let link = null;
let view = "all";
let painting = 0;
let news = { at: 0, text: "" };

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function icon(path) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(space, "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

function age(from, now) {
  const seconds = Math.max(0, Math.round((now - Date.parse(from)) / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d`;
}

function waitingFor(row) {
  if (!row.waiting) return "";
  const { on, detail } = row.waiting;
  const about = detail?.resource ?? detail?.job ?? detail?.until ?? "";
  return about ? `${on}: ${about}` : on;
}

/** A table row that knows how to show a job, cell by cell, without being made anew. */
class Line {
  constructor() {
    this.state = element("span", { class: "state" });
    this.why = element("span", { class: "sub" });
    this.task = element("td");
    this.objects = element("td", { class: "code" });
    this.queue = element("td", { class: "code soft" });
    this.fill = element("div", { class: "fill" });
    this.track = element("div", { class: "track", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 }, this.fill);
    this.figure = element("span", { class: "figure" });
    this.progress = element("div", { class: "progress" }, this.track, this.figure);
    this.worker = element("td", { class: "code soft" });
    this.age = element("td", { class: "number soft" });
    this.error = element("td", { class: "code" });
    this.row = element("tr", {},
      element("td", {}, this.state, this.why), this.task, this.objects, this.queue,
      element("td", {}, this.progress), this.worker, this.age, this.error);
  }

  show(job, now) {
    text(this.age, age(job.submitted_at, now));
    if (this.seq === job.seq && this.told === job.progress) return;
    this.seq = job.seq;
    this.told = job.progress;
    const [tone, word, path] = STATES[job.state] ?? ["idle", job.state, "M8 8h0"];
    if (this.word !== word) {
      this.word = word;
      this.state.dataset.tone = tone;
      this.state.replaceChildren(icon(path), word);
    }
    text(this.why, waitingFor(job));
    this.why.hidden = !job.waiting;
    text(this.task, job.task);
    text(this.objects, job.objects.join(", "));
    text(this.queue, job.queue);
    text(this.worker, job.worker ?? "");
    text(this.error, job.error?.code ?? "");
    this.age.title = job.submitted_at;
    this.row.title = job.id;
    this.showProgress(job);
  }

  showProgress(job) {
    const isDone = job.state === "succeeded";
    const percent = isDone ? 100 : job.progress?.percent;
    this.progress.hidden = !isDone && !job.progress;
    this.track.setAttribute("aria-label", `Progress of ${job.task} ${job.objects.join(", ")}`);
    if (typeof percent === "number") {
      this.track.setAttribute("aria-valuenow", Math.round(percent));
      this.fill.style.transform = `scaleX(${Math.min(100, Math.max(0, percent)) / 100})`;
      const phase = isDone ? "" : job.progress?.phase ?? "";
      text(this.figure, `${percent.toFixed(percent < 100 ? 1 : 0)} % ${phase}`.trim());
    } else {
      this.track.removeAttribute("aria-valuenow");
      this.fill.style.transform = "scaleX(0)";
      text(this.figure, job.progress?.phase ?? "");
    }
  }
}

function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

function paint() {
  painting = 0;
  if (document.hidden || $("jobs").hidden) return;
  const now = Date.now() + (link?.offset ?? 0);
  const counts = store.counts();
  for (const button of $("tabs").children) {
    const isPressed = button.dataset.view === view;
    button.setAttribute("aria-pressed", isPressed);
    text(button.querySelector(".count"), String(counts[button.dataset.view]));
  }
  const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = store.list(view, words);
  const list = found.slice(0, ROWS_SHOWN);
  const wanted = new Set(list.map((job) => job.id));
  for (const [id, line] of shown) {
    if (!wanted.has(id)) {
      line.row.remove();
      shown.delete(id);
    }
  }
  let place = $("rows").firstElementChild;
  for (const job of list) {
    let line = shown.get(job.id);
    if (!line) {
      line = new Line();
      shown.set(job.id, line);
    }
    line.show(job, now);
    if (line.row === place) place = place.nextElementSibling;
    else $("rows").insertBefore(line.row, place);
  }
  const isEmpty = list.length === 0;
  $("empty").hidden = !isEmpty;
  const hint = "No jobs yet. Publish one: nats req storage.default.high '{\"task\":\"ping\"}'";
  const nothing = store.rows.size === 0 ? hint : "No job fits.";
  text($("empty"), store.isWhole ? nothing : "Loading …");
  $("more").hidden = found.length <= ROWS_SHOWN;
  text($("more"), `The last changed ${ROWS_SHOWN} of ${found.length}. Find narrows them down.`);
  if (store.isWhole) tell(`${counts.running} running, ${counts.waiting} waiting, ${counts.failed} failed`);
}

/** For those who listen: a summary now and then, never each row. */
function tell(summary) {
  const now = Date.now();
  if (summary === news.text || now - news.at < NEWS_EVERY_MS) return;
  news = { at: now, text: summary };
  text($("news"), summary);
}

function soon() {
  if (!painting) painting = requestAnimationFrame(paint);
}

function state(name, words) {
  $("link").dataset.state = name;
  text($("link-text"), words);
  $("jobs").classList.toggle("stale", name !== "live");
}

function connect(token) {
  link?.end();
  store.clear();
  $("enter").hidden = true;
  $("jobs").hidden = false;
  $("leave").hidden = false;
  link = new Link(token, store, {
    state,
    change: soon,
    welcome(frame) {
      state("live", "live");
      const { sub, tenant } = frame.user;
      $("who").hidden = false;
      text($("who"), tenant ? `${sub} of ${tenant}` : sub);
      soon();
    },
    expiring: (at) => text($("link-text"), `live; the token ends at ${new Date(at).toLocaleTimeString()}`),
    refused: (reason) => ask(reason),
  });
  link.open();
}

function ask(reason) {
  link?.end();
  link = null;
  store.clear();
  keep(null);
  for (const line of shown.values()) line.row.remove();
  shown.clear();
  state("off", "not connected");
  $("jobs").hidden = true;
  $("leave").hidden = true;
  $("who").hidden = true;
  $("enter").hidden = false;
  text($("token-error"), reason);
  $("token").focus();
}

/** The token lives as long as the tab; a page that is loaded again needn't ask. */
function keep(token) {
  try {
    if (token) sessionStorage.setItem("virtbus.token", token);
    else sessionStorage.removeItem("virtbus.token");
  } catch {
    // Without storage it's asked for again.
  }
}

function kept() {
  try {
    return sessionStorage.getItem("virtbus.token");
  } catch {
    return null;
  }
}

/** `#token=…` is never sent to a server; it leaves the address bar at once. */
function tokenOfAddress() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) history.replaceState(null, "", location.pathname + location.search);
  return token;
}

function theme(next) {
  const root = document.documentElement;
  const isDark = (next ?? root.dataset.theme) === "dark"
    || (!(next ?? root.dataset.theme) && matchMedia("(prefers-color-scheme: dark)").matches);
  if (next) {
    root.dataset.theme = next;
    try {
      localStorage.setItem("virtbus.theme", next);
    } catch {
      // It lasts as long as the page then.
    }
  }
  text($("theme"), isDark ? "Light" : "Dark");
  $("theme").setAttribute("aria-label", isDark ? "Light theme" : "Dark theme");
  return isDark;
}

function begin() {
  let chosen = null;
  try {
    chosen = localStorage.getItem("virtbus.theme");
  } catch {
    // The system's own then.
  }
  theme(chosen === "dark" || chosen === "light" ? chosen : undefined);
  $("theme").addEventListener("click", () => theme($("theme").textContent === "Light" ? "light" : "dark"));
  $("leave").addEventListener("click", () => ask(""));
  $("find").addEventListener("input", soon);
  $("tabs").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) {
      view = button.dataset.view;
      soon();
    }
  });
  const enter = (token) => {
    keep(token);
    connect(token);
  };
  $("enter").addEventListener("submit", (event) => {
    event.preventDefault();
    const token = $("token").value.trim();
    $("token").value = "";
    text($("token-error"), "");
    if (token) enter(token);
  });
  addEventListener("hashchange", () => {
    const token = tokenOfAddress();
    if (token) enter(token);
  });
  addEventListener("online", () => link?.hurry());
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) {
      link?.hurry();
      soon();
    }
  });
  setInterval(soon, 1000);
  const token = tokenOfAddress() ?? kept();
  if (token) enter(token);
  else ask("");
}

begin();

// The page: joins list, stage and server; keys and labels.

import { blob, json, Queue, Refused, setToken } from "./server.js";
import { List } from "./list.js";
import { Stage } from "./stage.js";

const $ = (id) => document.getElementById(id);
const ORDERS = { urgency: "by urgency", uncertainty: "by uncertainty", disagreement: "by disagreement with the label" };
const FILTERS = {
  all: "all", open: "without your label", done: "labeled", positive: "decided tumor",
  unsure: "several classes possible", foreign: "out of domain", differ: "other than the source's label",
};
const percent = (value) => `${(value * 100).toFixed(1)}%`;
const words = (name) => name.replaceAll("_", " ");

let about = null;
let scan = null; // facts of the scan that is shown; null while the next one comes
let looked = false; // its picture is there, or cannot be had: it may be labeled
let method = "";
let mapClass = "";
let mapShown = true;
let turn = 0; // the newest request to show something wins
let events = 0;

const list = new List($("list"), $("spacer"), (row) => show(row.scan), describe, leave);
const stage = new Stage($("stage"), (boxes) => tell({ boxes }));
const queue = new Queue(taken, saved);

function element(tag, text = "", properties = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  return Object.assign(made, properties);
}

function fail(error) {
  if (error instanceof Refused && error.status === 401) {
    $("token-form").hidden = false;
    $("token").focus();
    return;
  }
  $("error").textContent = error.message === "Failed to fetch" ? "The server does not answer. Labels are kept here until it does." : error.message;
  $("error").hidden = false;
}

async function start() {
  try { about = await json("/v1/review"); } catch (error) { fail(error); return; }
  $("token-form").hidden = true;
  $("error").hidden = true;
  options($("order"), about.orders, ORDERS, about.order);
  options($("filter"), about.filters, FILTERS, "all");
  options($("method"), Object.keys(about.methods), about.methods, method || Object.keys(about.methods)[0]);
  method = $("method").value;
  $("reviewer").value = remembered("reviewer") || about.reviewer;
  $("classes").replaceChildren(...about.class_names.map(classButton));
  $("classes").classList.toggle("long", about.class_names.some((name) => name.length > 17));
  $("shifts").replaceChildren(...about.shifts.map((text) => element("p", text, { className: "warning" })));
  events = about.events;
  progress(about);
  queue.open(about.results);
  queue.send();
  await reload();
}

function options(select, values, names, chosen) {
  select.replaceChildren(...values.map((value) => element("option", names[value] || words(value), { value })));
  select.value = chosen;
}

function remembered(name) {
  try { return localStorage.getItem(`braintumor-review-${name}`); } catch { return null; }
}

function remember(name, value) {
  try { localStorage.setItem(`braintumor-review-${name}`, value); } catch { /* it is asked for again */ }
}

function classKey(index) {
  if (index < 10) return String((index + 1) % 10);
  return index < 20 ? `Shift+${(index + 1) % 10}` : ""; // further ones by the mouse or Tab
}

function classButton(name, index) {
  const button = element("button", words(name) + " ", { type: "button", title: name });
  const key = classKey(index);
  if (key) { button.append(element("kbd", key.replace("Shift+", "⇧"))); button.setAttribute("aria-keyshortcuts", key); }
  button.dataset.name = name;
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => judge({ label: name }));
  return button;
}

async function reload() {
  try {
    await list.load($("order").value, $("filter").value);
  } catch (error) { fail(error); return; }
  $("list-count").textContent = list.total === 1 ? "1 scan" : `${list.total.toLocaleString("en")} scans`;
  if (list.total) { await list.select(0); return; }
  leave();
  $("scan-title").textContent = "No scan is like that";
}

function lastPart(path) { return path.split("/").pop(); }

function describe(row, index) {
  const name = element("span", lastPart(row.path) + (row.frame ? ` · ${row.frame + 1}` : ""), { className: "name", title: row.path });
  const facts = element("span", `${index + 1} · ${words(row.predicted_class)} · tumor ${percent(row.urgency)}`, { className: "facts quiet" });
  const marks = element("span", "", { className: "marks" });
  if (row.verdict || row.label) {
    const text = row.label && row.verdict !== "right" ? `✗ ${words(row.label)}` : row.verdict === "right" ? "✓ right" : "✗ wrong";
    marks.append(element("span", text, { className: `mark ${row.verdict}` }));
  }
  if (row.boxes) marks.append(element("span", "▢", { className: "mark", title: "with a box" }));
  if (row.note) marks.append(element("span", "✎", { className: "mark", title: "with a note" }));
  if (row.out_of_domain) marks.append(element("span", "out of domain", { className: "mark warn" }));
  return [name, facts, marks];
}

// Another scan was chosen: until it is shown, no key may label the one before or one not yet seen.
function leave() {
  turn += 1;
  if (!$("note").readOnly) $("note").blur(); // what is written there is of the scan before
  $("note").value = "";
  $("note").readOnly = true; // not disabled: what is typed after 'n' would be keys of labels
  scan = null;
  looked = false;
  $("view-panel").setAttribute("aria-busy", "true");
  stage.setBoxes([]);
  stage.blank();
}

async function show(name) {
  leave();
  const mine = turn;
  const alive = () => mine === turn;
  let found;
  try { found = await json(`/v1/scans/${name}`); } catch (error) { if (alive()) again(name, error); return; }
  if (!alive()) return;
  scan = found;
  mapClass = "";
  $("error").hidden = true;
  $("scan-title").textContent = lastPart(scan.path) + (scan.frame ? `, frame ${scan.frame + 1}` : "");
  $("scan-title").title = scan.path;
  stage.setBoxes(waitingBoxes() ?? scan.review.boxes);
  drawFacts();
  drawReview();
  drawSeries();
  classOptions();
  const picture = drawScan(alive).then(() => alive() && ready(), (error) => alive() && again(name, error));
  await Promise.all([picture, drawMap(alive), drawNeighbors(alive)]);
  if (alive()) ahead();
}

// Without an answer it is asked for again, until another scan is chosen.
function again(name, error) {
  fail(error);
  const mine = turn;
  if (!(error instanceof Refused)) setTimeout(() => mine === turn && show(name), 1500);
}

function ready() {
  looked = true;
  $("note").readOnly = false;
  $("view-panel").dataset.scan = scan.scan;
  $("view-panel").setAttribute("aria-busy", "false");
}

const base = () => `/v1/scans/${scan.scan}`;
const picturePath = (name) => `/v1/scans/${name}/picture?size=1024`;
const mapPath = (name, of) => `/v1/scans/${name}/map?${new URLSearchParams({ method, class: of })}`;

async function drawScan(alive) {
  $("missing").hidden = true;
  try {
    await stage.showScan(picturePath(scan.scan), alive);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (!alive()) return;
    stage.showNothing(scan.width, scan.height);
    $("missing").textContent = `No picture: ${error.message}. The map is shown alone.`;
    $("missing").hidden = false;
  }
  if (alive()) $("scan").setAttribute("aria-label", `Scan ${lastPart(scan.path)}, predicted ${words(scan.predicted_class)}`);
}

async function drawMap(alive = () => true) {
  const of = mapClass || scan.cam_class;
  $("caption").textContent = `${about.methods[method]} for class ${words(of)}, stretched to its own 0 to 1. Warm colors mark evidence; they do not outline a tumor.`;
  $("heat").alt = `${about.methods[method]} map for class ${words(of)}`;
  const mine = turn;
  try { await stage.showHeat(mapPath(scan.scan, mapClass), () => alive() && mine === turn); } catch (error) {
    stage.hideHeat();
    if (alive()) fail(error);
  }
}

function ahead() {
  for (const step of [1, 2, -1]) {
    const row = list.row(list.current + step);
    if (!row) continue;
    stage.fetch(picturePath(row.scan)).catch(() => {}); // shown as missing when it is its turn
    stage.fetch(mapPath(row.scan, "")).catch(() => {});
  }
}

function classOptions() {
  const own = scan.cam_class;
  const select = $("class");
  options(select, about.any_class ? about.class_names : [own], {}, own);
  select.disabled = !about.any_class;
  select.title = about.any_class ? "" : "maps of other classes need the network: start the review with --bundle";
}

function drawFacts() {
  const urgency = percent(scan.urgency);
  $("decision").replaceChildren(
    element("strong", scan.decision ? "tumor" : "no tumor", { className: scan.decision ? "yes" : "no" }),
    ` · ${urgency} (threshold ${percent(about.threshold)})`,
  );
  $("foreign").hidden = !scan.out_of_domain;
  const sorted = Object.entries(scan.probabilities).sort((a, b) => b[1] - a[1]);
  $("bars").replaceChildren(...sorted.map(([name, value]) => bar(name, value)));
  const set = scan.prediction_set;
  const facts = {
    "Prediction set": set ? (set.length ? set.map(words).join(", ") : "empty: no class fits") : "none: this bundle makes no sets",
    "Out of domain": scan.out_of_domain ? "yes" : "no",
    "Uncertainty": `entropy ${scan.entropy.toFixed(3)}, margin ${scan.margin.toFixed(3)}`,
    "Source's label": scan.known_label ? words(scan.known_label) : "none",
    "Patient": scan.patient ? `number ${scan.patient} of these results` : "unknown",
    "Size": `${scan.width} × ${scan.height}`,
    "File": scan.path,
  };
  $("facts").replaceChildren(...Object.entries(facts).flatMap(([key, value]) => [element("dt", key), element("dd", value)]));
}

function bar(name, value) {
  const made = element("div", "", { className: name === scan.predicted_class ? "bar top" : "bar" });
  const line = element("div", "", { className: "line" });
  line.append(element("span", words(name), { title: name, className: "bar-name" }), element("span", percent(value)));
  const track = element("div", "", { className: "track" });
  const fill = element("div", "", { className: "fill" });
  fill.style.width = percent(value);
  track.append(fill);
  made.append(line, track);
  return made;
}

function drawReview() {
  const seen = scan.review;
  const said = seen.label ? `${words(seen.label)}${seen.verdict === "right" ? " (the prediction is right)" : ""}` : seen.verdict === "wrong" ? "wrong; which class is it?" : "not labeled yet";
  const by = seen.reviewer && seen.time ? `, by ${seen.reviewer} at ${new Date(seen.time).toLocaleString()}` : "";
  $("given").textContent = seen.label || seen.verdict ? said + by : said;
  for (const button of $("classes").children) button.setAttribute("aria-pressed", button.dataset.name === seen.label);
  $("right").setAttribute("aria-pressed", seen.verdict === "right");
  $("wrong").setAttribute("aria-pressed", seen.verdict === "wrong");
  if (document.activeElement !== $("note") || $("note").readOnly) $("note").value = seen.note;
  $("unbox").disabled = !stage.boxes.length;
}

function drawSeries() {
  const alone = scan.series.length < 2;
  $("series-panel").hidden = alone;
  if (alone) { $("series").replaceChildren(); return; }
  const same = $("series").dataset.key === scan.series.join();
  if (!same) {
    $("series").dataset.key = scan.series.join();
    $("series").replaceChildren(...scan.series.map(sliceButton));
  }
  for (const button of $("series").children) {
    const current = button.dataset.scan === scan.scan;
    button.setAttribute("aria-current", current);
    if (current) button.scrollIntoView({ block: "nearest", inline: "center" });
  }
}

const thumbnails = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    thumbnails.unobserve(target);
    blob(`/v1/scans/${target.dataset.scan}/picture?size=96`).then((content) => {
      const image = target.querySelector("img");
      image.src = URL.createObjectURL(content);
      image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
    }, () => { target.querySelector("img").alt = "no picture"; });
  }
});

function sliceButton(name, index) {
  const button = element("button", "", { type: "button", className: "slice" });
  button.dataset.scan = name;
  button.append(element("img", "", { alt: `Slice ${index + 1}`, width: 72, height: 72 }), element("span", String(index + 1)));
  button.addEventListener("click", () => show(name));
  thumbnails.observe(button);
  return button;
}

async function drawNeighbors(alive) {
  const told = (text) => { $("neighbors-missing").textContent = text; $("neighbors-missing").hidden = !text; };
  if (about.no_neighbors) { told(about.no_neighbors); return; }
  const fresh = $("neighbors").dataset.scan === scan.scan;
  if (fresh) return;
  $("neighbors").replaceChildren();
  let found;
  try { found = await json(`${base()}/neighbors`); } catch (error) { if (alive()) told(`not shown: ${error.message}`); return; }
  if (!alive()) return;
  told("");
  $("neighbors").dataset.scan = scan.scan;
  $("neighbors").replaceChildren(...found.neighbors.map(neighbor));
}

function neighbor(near) {
  const figure = element("figure", "", { title: near.path });
  const image = element("img", "", { alt: `Training scan of class ${words(near.class_name)}`, width: 96, height: 96 });
  blob(`/v1/neighbors/${near.index}`).then((content) => {
    image.src = URL.createObjectURL(content);
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  }, () => { image.alt += ", which cannot be read"; });
  figure.append(image, element("figcaption", `${words(near.class_name)} ${near.similarity.toFixed(3)}`));
  return figure;
}

// Labels

function judge(change) {
  if (!looked) { saved(queue.waiting.length, "the scan is not shown yet: press again"); return; }
  tell(change);
  if (change.label && $("advance").checked) list.select(list.current + 1);
  if (change.verdict === "right" && $("advance").checked) list.select(list.current + 1);
  if (change.verdict === "wrong" && about.class_names.length === 2 && $("advance").checked) list.select(list.current + 1);
}

function tell(change) {
  if (!looked) return;
  const shown = preview(change);
  Object.assign(scan.review, shown);
  drawReview();
  list.update(scan.scan, marks(scan.review));
  queue.add({ scan: scan.scan, reviewer: $("reviewer").value.trim(), ...change });
}

// What the server will answer, shown at once.
function preview(change) {
  const others = about.class_names.filter((name) => name !== scan.predicted_class);
  if (change.label) return { label: change.label, verdict: change.label === scan.predicted_class ? "right" : "wrong" };
  if (change.verdict === "right") return { verdict: "right", label: scan.predicted_class };
  if (change.verdict === "wrong") return { verdict: "wrong", label: others.length === 1 ? others[0] : null };
  if ("verdict" in change) return { verdict: null, label: null };
  return change;
}

const marks = (review) => ({ label: review.label, verdict: review.verdict, boxes: review.boxes.length, note: Boolean(review.note) });

function taken(item, answer) {
  if (!queue.waiting.some((other) => other.scan === item.scan)) {
    list.update(item.scan, marks(answer.review));
    if (scan?.scan === item.scan) { scan.review = { ...scan.review, ...answer.review }; drawReview(); }
  }
  const was = answer.before;
  let told = "";
  if (was && was.reviewer && was.reviewer !== answer.review.reviewer && was.label && was.label !== answer.review.label) {
    told = `before, ${was.reviewer} said ${words(was.label)}: both are kept, yours counts`;
  }
  events = answer.events;
  progress(answer);
  return told;
}

function waitingBoxes() {
  const mine = queue.waiting.filter((item) => item.scan === scan.scan && "boxes" in item);
  return mine.length ? mine[mine.length - 1].boxes : null;
}

let message = 0;
function saved(waiting, text) {
  clearTimeout(message);
  $("saved").dataset.waiting = waiting;
  $("saved").textContent = waiting ? `${waiting} not saved yet${text ? `; ${text}` : ""}` : text || "all saved";
  if (!waiting && text) message = setTimeout(() => { $("saved").textContent = "all saved"; }, 8000);
}

function progress(found) {
  $("progress").textContent = `${found.done.toLocaleString("en")} of ${found.total.toLocaleString("en")} scans labeled`;
}

// Another tab or reviewer labels, too.
setInterval(async () => {
  if (!about || document.hidden) return;
  try {
    const found = await json("/v1/progress");
    progress(found);
    if (found.events !== events && !queue.waiting.length) {
      events = found.events;
      list.refresh();
      if (scan) {
        const fresh = await json(base());
        if (fresh.scan === scan?.scan && !queue.waiting.length) { scan.review = fresh.review; stage.setBoxes(fresh.review.boxes); drawReview(); }
      }
    }
  } catch { /* told when something is asked of the server */ }
}, 4000);

// Controls

function ranges() {
  stage.level = Number($("level").value);
  stage.width = Number($("width").value);
  $("opacity-value").textContent = `${$("opacity").value}%`;
  $("level-value").textContent = $("level").value;
  $("width-value").textContent = $("width").value;
  $("zoom-value").textContent = `${$("zoom").value}%`;
  $("heat").style.opacity = mapShown ? $("opacity").value / 100 : 0;
}

for (const id of ["level", "width"]) $(id).addEventListener("input", () => { ranges(); stage.window(); });
$("opacity").addEventListener("input", () => { mapShown = true; ranges(); });
$("zoom").addEventListener("input", () => { stage.setZoom($("zoom").value / 100); ranges(); });
$("stage").addEventListener("zoomed", () => { $("zoom").value = Math.round(stage.zoom * 100); ranges(); });
$("method").addEventListener("change", () => { method = $("method").value; if (scan) drawMap(); });
$("class").addEventListener("change", () => { if (!scan) return; mapClass = $("class").value === scan.cam_class ? "" : $("class").value; drawMap(); });
$("order").addEventListener("change", reload);
$("filter").addEventListener("change", reload);
$("previous").addEventListener("click", () => list.select(list.current - 1));
$("next").addEventListener("click", () => list.select(list.current + 1));
$("right").addEventListener("click", () => judge({ verdict: "right" }));
$("wrong").addEventListener("click", () => judge({ verdict: "wrong" }));
$("clear").addEventListener("click", () => judge({ verdict: null, label: null }));
$("unbox").addEventListener("click", () => { if (looked) { stage.setBoxes([]); tell({ boxes: [] }); } });
$("reset").addEventListener("click", resetView);
$("box").addEventListener("click", () => setDrawing(!stage.drawing));
$("help-open").addEventListener("click", () => $("help").showModal());
$("note").addEventListener("change", noteDone);
$("reviewer").addEventListener("change", () => remember("reviewer", $("reviewer").value.trim()));
$("token-form").addEventListener("submit", (event) => { event.preventDefault(); setToken($("token").value); start(); });
$("download").addEventListener("click", async (event) => {
  event.preventDefault(); // a link cannot carry the token
  const url = URL.createObjectURL(await blob("/v1/labels.csv"));
  element("a", "", { href: url, download: "labels.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
});
addEventListener("beforeunload", (event) => { if (queue.waiting.length && !queue.kept) event.preventDefault(); });

function noteDone() {
  if (scan && $("note").value.trim() !== scan.review.note) tell({ note: $("note").value.trim() });
}

function resetView() {
  for (const [id, value] of Object.entries({ level: 128, width: 256, zoom: 100, opacity: 40 })) $(id).value = value;
  stage.setZoom(1);
  mapShown = true;
  ranges();
  stage.window();
}

function setDrawing(on) {
  if (on) $("stage").focus();
  stage.setDrawing(on);
  $("box").setAttribute("aria-pressed", on);
}

function stepSlice(step) {
  const at = scan ? scan.series.indexOf(scan.scan) + step : -1;
  if (scan && at >= 0 && at < scan.series.length) show(scan.series[at]);
}

function nudge(id, step) {
  $(id).value = Number($(id).value) + step;
  $(id).dispatchEvent(new Event("input"));
}

const KEYS = {
  j: () => list.select(list.current + 1), ArrowDown: () => list.select(list.current + 1),
  k: () => list.select(list.current - 1), ArrowUp: () => list.select(list.current - 1),
  Home: () => list.select(0), End: () => list.select(list.total - 1),
  PageDown: () => list.select(list.current + 10), PageUp: () => list.select(list.current - 10),
  ArrowLeft: () => stepSlice(-1), ArrowRight: () => stepSlice(1),
  r: () => judge({ verdict: "right" }), w: () => judge({ verdict: "wrong" }), u: () => judge({ verdict: null, label: null }),
  n: () => $("note").focus(), b: () => setDrawing(!stage.drawing && looked), z: resetView,
  h: () => { mapShown = !mapShown; ranges(); },
  m: () => { const all = Object.keys(about.methods); $("method").value = all[(all.indexOf(method) + 1) % all.length]; $("method").dispatchEvent(new Event("change")); },
  "[": () => nudge("opacity", -10), "]": () => nudge("opacity", 10), "+": () => nudge("zoom", 25), "-": () => nudge("zoom", -25),
  x: async () => { const at = await list.find((row) => !row.label && !row.verdict); if (at !== null) list.select(at); else saved(0, "no scan without a label comes after this one"); },
  "?": () => $("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  const inside = event.target.closest("input, select, textarea, dialog");
  if (event.key === "Escape") {
    if (event.target === $("note")) event.target.blur();
    if (stage.drawing) setDrawing(false);
    return;
  }
  if (inside && !(inside.type === "range" && !event.key.startsWith("Arrow")) && inside.type !== "checkbox") return;
  if (event.ctrlKey || event.altKey || event.metaKey || !about) return;
  if (stage.drawing && stage.key(event)) { event.preventDefault(); return; }
  const digit = /^(?:Digit|Numpad)?(\d)$/.exec(event.code) || /^(\d)$/.exec(event.key);
  if (digit) {
    const index = (Number(digit[1]) + 9) % 10 + (event.shiftKey ? 10 : 0);
    if (index < about.class_names.length) { event.preventDefault(); judge({ label: about.class_names[index] }); }
    return;
  }
  const action = KEYS[event.key];
  if (action) { event.preventDefault(); action(); }
});

ranges();
start();

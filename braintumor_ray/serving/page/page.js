"use strict";
// Plain script of the page at /. Text from the server or from a file's name is only ever set as
// text, never as markup.
const byId = (id) => document.getElementById(id);
const state = { file: null, answer: null, token: "", running: null };

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function percent(p) {
  if (p > 0.9995 && p < 1) return ">99.9%";
  if (p < 0.0005 && p > 0) return "<0.1%";
  return (100 * p).toFixed(1) + "%";
}

const readable = (name) => name.replaceAll("_", " ");
const picture = (base64) => "data:image/png;base64," + base64;

function showError(title, detail) {
  const box = byId("error");
  box.replaceChildren(element("strong", "", title), document.createElement("br"), detail);
  box.hidden = false;
  byId("result").hidden = true;
}

async function problemOf(response) {
  try {
    return await response.json();
  } catch {
    return { title: "The service failed", detail: "status " + response.status + "; try again" };
  }
}

async function send(file) {
  const query = new URLSearchParams({
    explain: "both", heatmap: "png", scan: "png",
    frame: byId("frame").value, plane: byId("plane").value,
  });
  if (byId("class").value) query.set("cam_class", byId("class").value);
  const headers = { "Content-Type": "application/octet-stream" };
  if (state.token) headers.Authorization = "Bearer " + state.token;
  state.running?.abort();
  state.running = new AbortController();
  return fetch("/v1/predict?" + query, {
    method: "POST", body: file, headers, signal: state.running.signal,
  });
}

async function predict() {
  if (!state.file) return;
  byId("error").hidden = true;
  byId("status").textContent = "Reading " + state.file.name + " …";
  for (const button of document.querySelectorAll("main button")) button.disabled = true;
  try {
    const response = await send(state.file);
    if (response.ok) {
      show(await response.json());
      byId("status").textContent = state.file.name + ": done";
    } else {
      await refuse(response);
    }
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("status").textContent = "";
    showError("No answer", "The service cannot be reached; check that it runs and try again.");
  } finally {
    for (const button of document.querySelectorAll("main button")) button.disabled = false;
  }
}

async function refuse(response) {
  const problem = await problemOf(response);
  if (problem.frames > 1 && state.fresh) {
    showFrames({ format: "nifti", frame: 0, frames: problem.frames });
    return startInTheMiddle({ format: "nifti", frames: problem.frames });
  }
  byId("status").textContent = state.file.name + ": no answer";
  showError(problem.title, problem.detail);
  if (response.status === 401) {
    byId("token-form").hidden = false;
    byId("token").focus();
  }
}

function show(answer) {
  state.answer = answer;
  const { decision } = answer;
  const verdict = element("span", decision.positive ? "yes" : "no",
    decision.positive ? "Positive" : "Negative");
  byId("decision").replaceChildren(verdict,
    ": probability of a positive class " + percent(decision.probability) +
    (decision.positive ? " reaches" : " is below") + " the threshold " + percent(decision.threshold) +
    ". " + differs(answer));
  byId("foreign").hidden = !answer.out_of_domain;
  showBars(answer);
  showFacts(answer);
  showFrames(answer.scan);
  startInTheMiddle(answer.scan);
  offerClasses(answer);
  byId("scan").src = picture(answer.scan.png);
  byId("bundle").textContent = "bundle " + answer.bundle_fingerprint.slice(0, 12);
  byId("result").hidden = false;
  showMap();
}

// Frames of a volume or of a file with several: a slider; planes where the file is a volume.
function showFrames(scan) {
  const frames = scan.frames ?? 1;
  const volume = scan.format === "nifti";
  byId("frames").hidden = frames < 2 && !volume;
  byId("planes").hidden = !volume;
  byId("frame").max = Math.max(frames - 1, 0);
  byId("frame").value = scan.frame;
  tellFrame();
}

// The ends of a volume show no brain: a new one starts in its middle.
function startInTheMiddle(scan) {
  if (!state.fresh) return;
  state.fresh = false;
  if (scan.format !== "nifti" || scan.frames < 2) return;
  byId("frame").value = Math.floor(scan.frames / 2);
  predict();
}

function tellFrame() {
  const { value, max } = byId("frame");
  byId("frame-value").textContent = Number(value) + 1 + " of " + (Number(max) + 1);
}

function offerClasses(answer) {
  const select = byId("class");
  if (select.options.length > 1) return;
  for (const name of Object.keys(answer.probabilities)) {
    const option = element("option", "", readable(name));
    option.value = name;
    select.append(option);
  }
}

// The likeliest class and the decision are two rules, which may differ.
function differs(answer) {
  const { decision } = answer;
  if (decision.positive_classes.includes(answer.predicted_class) === decision.positive) return "";
  return "The likeliest class is " + readable(answer.predicted_class) + " all the same" +
    (decision.positive ? "." : ", too unsure for the threshold.");
}

function showBars(answer) {
  const rows = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]);
  byId("bars").replaceChildren(...rows.map(([name, p]) => {
    const row = element("div", name === answer.predicted_class ? "bar top" : "bar");
    row.setAttribute("role", "listitem");
    const label = element("div", "name");
    label.append(element("span", "", readable(name)), element("span", "", percent(p)));
    const track = element("div", "track");
    const fill = element("div", "fill");
    fill.style.width = 100 * p + "%";
    track.append(fill);
    row.append(label, track);
    return row;
  }));
}

function showFacts(answer) {
  const { scan, heat, entropy } = answer;
  const share = (value) => (value === null ? "unknown" : percent(value));
  const facts = [
    ["Uncertainty", entropy.toFixed(2) + " (0 certain, 1 undecided)"],
    ["Heat inside the head", share(heat.inside)],
    ["Heat on its rim", share(heat.rim)],
    ["Heat on background", share(heat.background)],
    ["Scan", scan.width + " x " + scan.height + " pixels, " + scan.format],
  ];
  byId("facts").replaceChildren(...facts.flatMap(([name, value]) =>
    [element("dt", "", name), element("dd", "", value)]));
}

function method() {
  return document.querySelector("input[name=method]:checked");
}

function showMap() {
  const chosen = method();
  const name = chosen.parentElement.textContent.trim();
  const map = state.answer.maps[chosen.value];
  byId("heat").src = picture(map.png);
  byId("heat").alt = name + " heatmap over the scan";
  byId("caption").textContent = name + " for class " + readable(state.answer.cam_class);
  byId("flat").hidden = !map.flat;
  mix();
}

function mix() {
  const value = byId("mix").value;
  byId("heat").style.opacity = value / 100;
  byId("mix-value").textContent = value + "%";
}

async function loaded(image) {
  await image.decode();
  return image;
}

async function download() {
  const scan = await loaded(byId("scan"));
  const heat = await loaded(byId("heat"));
  const canvas = element("canvas");
  canvas.width = scan.naturalWidth;
  canvas.height = scan.naturalHeight;
  const context = canvas.getContext("2d");
  context.drawImage(scan, 0, 0);
  context.globalAlpha = byId("mix").value / 100;
  context.drawImage(heat, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  const link = element("a");
  link.href = URL.createObjectURL(blob);
  link.download = "overlay_" + method().value + ".png";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function choose(file) {
  if (!file) return;
  state.fresh = true;
  state.file = file;
  byId("frame").value = 0;
  byId("plane").value = "axial";
  byId("frames").hidden = true;
  predict();
}

// A phantom tells nothing about a network of real scans: offered to one of phantoms only.
async function offerExample() {
  const headers = state.token ? { Authorization: "Bearer " + state.token } : {};
  const response = await fetch("/v1/model", { headers }).catch(() => null);
  const synthetic = Boolean(response?.ok && (await response.json()).synthetic);
  byId("example").hidden = byId("example-note").hidden = !synthetic;
}

async function example() {
  const response = await fetch("/static/example.png");
  choose(new File([await response.blob()], "synthetic phantom"));
}

function connectDrop() {
  const drop = byId("drop");
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  document.addEventListener("dragleave", () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    choose(event.dataTransfer.files[0]);
  });
}

function connect() {
  byId("file").addEventListener("change", (event) => {
    choose(event.target.files[0]);
    event.target.value = "";
  });
  byId("example").addEventListener("click", example);
  byId("frame").addEventListener("input", tellFrame);
  byId("frame").addEventListener("change", predict);
  byId("plane").addEventListener("change", () => {
    byId("frame").value = 0;
    state.fresh = true;
    predict();
  });
  byId("class").addEventListener("change", predict);
  byId("mix").addEventListener("input", mix);
  byId("download").addEventListener("click", download);
  for (const radio of document.querySelectorAll("input[name=method]")) {
    radio.addEventListener("change", showMap);
  }
  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    state.token = byId("token").value.trim();
    offerExample();
    predict();
  });
  connectDrop();
  offerExample();
}

connect();

"use strict";
// Renders /openapi.json; no library. Text is only ever set as text.
const byId = (id) => document.getElementById(id);

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.type === "array") return "list of " + typeOf(schema.items);
  if (schema.additionalProperties) return "object of " + typeOf(schema.additionalProperties);
  return schema.type || "any";
}

function table(heads, rows) {
  const head = element("tr", "", ...heads.map((text) => element("th", "", text)));
  const body = rows.map((cells) => element("tr", "", ...cells.map((text) => element("td", "", text))));
  const made = element("table", "", element("thead", "", head), element("tbody", "", ...body));
  const scroll = element("div", "scroll", made);
  scroll.tabIndex = 0; // wide tables scroll by keyboard, too
  return scroll;
}

function parameters(operation) {
  const rows = (operation.parameters || []).map((p) => [
    p.name, typeOf(p.schema), String(p.schema.default ?? ""), p.description || p.schema.description || "",
  ]);
  return rows.length ? [element("h3", "", "Parameters"), table(["name", "values", "default", "meaning"], rows)] : [];
}

function bodies(operation) {
  const content = operation.requestBody?.content;
  return content ? [element("h3", "", "Body"), element("p", "", Object.keys(content).join(", "))] : [];
}

function responses(operation) {
  const rows = Object.entries(operation.responses).map(([status, r]) => [
    status, r.description, Object.values(r.content || {}).map((c) => typeOf(c.schema)).join(", "),
  ]);
  return [element("h3", "", "Answers"), table(["status", "meaning", "content"], rows)];
}

function operationSection(path, verb, operation) {
  const title = element("h2", "", element("span", "verb", verb.toUpperCase()), " " + path);
  return element("section", "", title, element("p", "", operation.description || operation.summary),
    ...parameters(operation), ...bodies(operation), ...examples(path, verb, operation),
    ...responses(operation));
}

const TOKEN = "Authorization: Bearer ";

// A sample as it runs against this service; the shell fills in the token.
function curlOf(sample, operation) {
  const token = operation.security ? ' --header "' + TOKEN + '$TOKEN"' : "";
  return sample.source.replace(/http.{3}127\.0\.0\.1:8000/, location.origin)
    .replace("--fail-with-body", "--fail-with-body" + token);
}

function examples(path, verb, operation) {
  const made = [element("h3", "", "Example")];
  for (const sample of operation["x-codeSamples"] || []) {
    if (sample.label) made.push(element("p", "", sample.label));
    const line = element("pre", "curl", element("code", "", curlOf(sample, operation)));
    line.tabIndex = 0; // scrolled by keyboard where it is wider than the window
    made.push(line);
  }
  return [...made, tryIt(path, verb, operation)];
}

function tryIt(path, verb, operation) {
  const button = element("button", "", "Try it");
  button.type = "button";
  const output = element("pre", "answer");
  output.tabIndex = 0;
  output.hidden = true;
  output.setAttribute("role", "status");
  const form = element("p", "row");
  let input = null;
  if (verb === "post") {
    input = element("input");
    input.type = "file";
    input.multiple = !operation.requestBody.content["application/octet-stream"];
    input.setAttribute("aria-label", (input.multiple ? "Scans for " : "Scan for ") + path);
    form.append(input);
  }
  form.append(button);
  button.addEventListener("click", () => ask(path, verb, input, output));
  return element("div", "try", form, output);
}

// The chosen file as it is, or several (zips among them) as a form.
function bodyOf(input, headers) {
  if (!input) return undefined;
  if (!input.multiple) {
    headers["Content-Type"] = "application/octet-stream";
    return input.files[0];
  }
  const form = new FormData(); // the browser sets its Content-Type
  for (const file of input.files) form.append("files", file);
  return form;
}

async function ask(path, verb, input, output) {
  output.hidden = false;
  if (input && !input.files.length) {
    output.textContent = "Choose a scan first.";
    return;
  }
  const token = byId("token").value.trim();
  const headers = token ? { Authorization: "Bearer " + token } : {};
  try {
    const body = bodyOf(input, headers);
    const response = await fetch(path, { method: verb.toUpperCase(), headers, body });
    const found = await response.json();
    output.textContent = "status " + response.status + "\n" + JSON.stringify(found, null, 2);
  } catch {
    output.textContent = "The service cannot be reached; check that it runs and try again.";
  }
}

function schemaSection(name, schema) {
  const rows = Object.entries(schema.properties || {}).map(([field, s]) =>
    [field, typeOf(s), s.description || ""]);
  const made = element("section", "", element("h2", "", name),
    element("p", "", schema.description || ""), table(["field", "type", "meaning"], rows));
  made.id = name;
  return made;
}

function problemSection(kinds) {
  const made = element("section", "", element("h2", "", "Problems"),
    element("p", "", "Errors are application/problem+json (RFC 9457); type is one of these."));
  for (const [name, kind] of Object.entries(kinds)) {
    const line = element("p", "", element("code", "", name), " " + kind.status + ": " + kind.title);
    line.id = name;
    made.append(line);
  }
  return made;
}

function render(found) {
  const sections = [];
  for (const [path, methods] of Object.entries(found.paths)) {
    for (const [verb, operation] of Object.entries(methods)) {
      sections.push(operationSection(path, verb, operation));
    }
  }
  const schemas = Object.entries(found.components.schemas);
  sections.push(...schemas.map(([name, schema]) => schemaSection(name, schema)));
  sections.push(problemSection(found["x-problems"]));
  byId("paths").replaceChildren(...sections);
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

async function load(token) {
  const headers = token ? { Authorization: "Bearer " + token } : {};
  const response = await fetch("/openapi.json", { headers });
  byId("token-form").hidden = response.status !== 401;
  byId("error").hidden = response.ok;
  if (response.ok) {
    render(await response.json());
  } else {
    byId("error").textContent = (await response.json()).detail;
  }
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  load(byId("token").value.trim());
});
load("");

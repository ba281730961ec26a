// Keeps the status page up to date, and draws its plots, from status.json.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 80;
const POINTS = 150;

function setField(root, field, text) {
  const element = root.querySelector(`[data-field="${field}"]`);
  if (element !== null) {
    element.textContent = text;
  }
}

function milliseconds(seconds) {
  return seconds === null ? "-" : `${Number((seconds * 1000).toPrecision(3))} ms`;
}

function uptime(seconds) {
  return seconds < 100 ? `${Number(seconds.toPrecision(3))} s` : `${(seconds / 3600).toFixed(1)} h`;
}

function showRefusals(root, kinds) {
  const table = root.querySelector("[data-refusals]");
  const rows = Object.entries(kinds).sort((one, other) => other[1] - one[1]);
  table.hidden = rows.length === 0;
  table.tBodies[0].replaceChildren(
    ...rows.map(([kind, count]) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      const cell = document.createElement("td");
      head.textContent = kind;
      cell.textContent = count;
      row.append(head, cell);
      return row;
    }),
  );
}

function line(values, name, top) {
  const element = document.createElementNS(SVG, "polyline");
  const start = POINTS - values.length;
  const points = values
    .map((value, index) => [((start + index) / (POINTS - 1)) * WIDTH, value])
    .filter(([, value]) => value !== null)
    .map(([x, value]) => `${x.toFixed(1)},${(HEIGHT - 2 - (value / top) * (HEIGHT - 6)).toFixed(1)}`);
  element.setAttribute("class", name);
  element.setAttribute("points", points.join(" "));
  return element;
}

function draw(figure, points) {
  const svg = figure.querySelector("svg");
  const isLatency = figure.dataset.plot === "latency";
  const series = svg.dataset.series.split(" ").map((name) => points[name].slice(-POINTS));
  const top = Math.max(1e-9, ...series.flat().filter((value) => value !== null));
  svg.replaceChildren(line(series[0], "first", top), line(series[1], "second", top));
  const latest = series.map((values) => (values.length === 0 ? null : values[values.length - 1]));
  const texts = [...latest, top < 1e-6 ? null : top].map((value) =>
    isLatency ? milliseconds(value) : value === null ? "-" : value.toFixed(1),
  );
  figure.querySelectorAll("output").forEach((output, index) => {
    output.textContent = texts[index];
  });
  svg.setAttribute("aria-label", figure.querySelector("figcaption").textContent);
}

function showModel(article, model) {
  const total = Object.values(model.requests).reduce((sum, count) => sum + count, 0);
  setField(article, "ok", model.requests.OK);
  setField(article, "refused", total - model.requests.OK);
  setField(article, "queue_requests", model.queue_requests);
  setField(article, "running_batches", model.running_batches);
  setField(article, "batch_rows", model.batch_rows.toFixed(1));
  for (const [name, seconds] of Object.entries(model.latency_seconds)) {
    setField(article, name, milliseconds(seconds));
  }
  showRefusals(article, model.refusals);
  article.querySelectorAll("figure").forEach((figure) => draw(figure, model.points));
}

function identity(name, version, state, reason) {
  return JSON.stringify([name, String(version), state, reason]);
}

function shown() {
  return Array.from(document.querySelectorAll("article"), (article) =>
    identity(
      article.dataset.model,
      article.dataset.version,
      article.querySelector(".badge").dataset.state,
      article.querySelector(".reason")?.textContent ?? "",
    ),
  ).join();
}

function show(status) {
  const listed = status.models.map((model) => identity(model.name, model.version, model.state, model.reason)).join();
  if (listed !== shown()) {
    location.reload(); // models came, went or changed their state: the server writes those
    return;
  }
  const header = document.querySelector("header");
  const ready = status.ready ? "ready" : "not ready";
  document.title = `Slipway: ${ready}`;
  setField(header, "ready", ready);
  header.querySelector(".badge").dataset.state = ready;
  setField(header, "phase", status.phase.toLowerCase());
  setField(header, "uptime_seconds", uptime(status.uptime_seconds));
  setField(header, "streams", status.streams);
  setField(header, "request_bytes", status.request_bytes);
  showRefusals(header, status.refusals);
  const articles = document.querySelectorAll("article");
  status.models.forEach((model, index) => {
    if ("points" in model) {
      showModel(articles[index], model);
    }
  });
}

async function update() {
  const lost = document.getElementById("lost");
  let seconds = 2;
  try {
    const response = await fetch("status.json", { signal: AbortSignal.timeout(5000) });
    if (!response.ok) {
      throw new Error(`status.json: ${response.status}`);
    }
    const status = await response.json();
    seconds = status.point_seconds;
    lost.hidden = true;
    show(status);
  } catch (error) {
    lost.hidden = false;
  }
  setTimeout(update, seconds * 1000);
}

update();

"use strict";
// The page pulls: it asks for the next frame when it has drawn the last one, so a slow or
// sleeping page makes no work for the server.

const find = (id) => document.getElementById(id);
const view = {
  paused: false, safe: false, hatch: false, after: -1, labels: null, certified: null, classes: null,
  camera: "",
};
const SVG = "http://www.w3.org/2000/svg";
const OLD_MS = 2000; // without a new frame, the picture is shown as an old one
let drawnAt = 0;

const wait = (ms) => new Promise((done) => setTimeout(done, ms));

async function readClasses() {
  const answer = await fetch("classes");
  if (!answer.ok) throw new Error(`classes: ${answer.status}`);
  view.classes = await answer.json();
  find("model").textContent = view.classes.model;
  document.title = `rtseg ${view.classes.model}`;
  drawLegend();
  listCameras(view.classes.cameras);
}

function listCameras(names) {
  find("camera").replaceChildren(...names.map((name) => new Option(name)));
  find("cameras").hidden = names.length < 2;
  [view.camera = ""] = names;
}

function setCamera(name) {
  view.camera = name;
  view.after = -1; // each camera counts its own frames
}

function ofCamera() {
  return `camera=${encodeURIComponent(view.camera)}`;
}

function palette() {
  return view.safe ? view.classes.safe_palette : view.classes.palette;
}

function drawLegend() {
  const entries = view.classes.names.map((name, number) => {
    const item = document.createElement("li");
    const patch = document.createElementNS(SVG, "svg");
    patch.setAttribute("width", "16");
    patch.setAttribute("height", "16");
    patch.setAttribute("aria-hidden", "true");
    const square = document.createElementNS(SVG, "rect");
    square.setAttribute("width", "16");
    square.setAttribute("height", "16");
    square.setAttribute("rx", "3");
    square.setAttribute("stroke", "#fff6");
    square.setAttribute("fill", `rgb(${palette()[number].join(",")})`);
    patch.append(square);
    item.append(patch, name);
    return item;
  });
  find("legend").replaceChildren(...entries);
}

// A frame is a JPEG and behind it the labels as a PNG of class ids, the same way up; then, where it
// is known, which of them are certified.
async function nextFrame() {
  const { camera } = view;
  const answer = await fetch(`frame?after=${view.after}&${ofCamera()}`);
  if (answer.status === 204 || camera !== view.camera) return;
  if (!answer.ok) throw new Error(`frame: ${answer.status}`);
  const facts = JSON.parse(answer.headers.get("X-Frame"));
  const body = await answer.blob();
  const exact = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const end = facts.jpeg_bytes + facts.labels_bytes;
  const [picture, labels, certified] = await Promise.all([
    createImageBitmap(body.slice(0, facts.jpeg_bytes, "image/jpeg")),
    createImageBitmap(body.slice(facts.jpeg_bytes, end, "image/png"), exact),
    end < body.size ? createImageBitmap(body.slice(end, body.size, "image/png"), exact) : null,
  ]);
  if (camera !== view.camera) return;
  view.after = facts.frame_id;
  if (view.paused) return;
  drawFrame(picture, labels, certified);
  find("frame-id").textContent = facts.frame_id;
  find("latency").textContent = `${facts.age_ms.toFixed(1)} ms`;
  find("age-source").textContent = facts.age_source;
  find("level").textContent = facts.level;
  drawnAt = performance.now();
}

function drawFrame(picture, labels, certified) {
  const frame = find("frame");
  frame.width = picture.width;
  frame.height = picture.height;
  frame.getContext("2d").drawImage(picture, 0, 0);
  view.labels = readPixels(labels);
  view.certified = certified === null ? null : readPixels(certified);
  find("hatch-choice").hidden = view.certified === null;
  picture.close();
  drawLabels();
}

function readPixels(bitmap) {
  const scratch = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = scratch.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, bitmap.width, bitmap.height);
  bitmap.close();
  return pixels;
}

function drawLabels() {
  if (!view.labels || !view.classes) return;
  const { width, height, data } = view.labels;
  const canvas = find("labels");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const table = new Uint32Array(256).fill(0xff000000);
  palette().forEach(([red, green, blue], number) => {
    table[number] = (255 << 24) | (blue << 16) | (green << 8) | red;
  });
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i += 1) pixels[i] = table[data[4 * i]];
  if (view.hatch && view.certified !== null) hatch(pixels, width, view.certified.data);
  context.putImageData(image, 0, 0);
}

// Diagonal stripes over what is not certified.
function hatch(pixels, width, certified) {
  for (let i = 0; i < pixels.length; i += 1) {
    const stripe = (i % width + Math.floor(i / width)) % 8 < 4;
    if (stripe && certified[4 * i] === 0) pixels[i] = 0xff000000;
  }
}

function showStatus(status) {
  const badge = find("state");
  badge.textContent = status.state;
  badge.dataset.state = status.state;
  find("reason").textContent = status.reasons.join("; ");
  if (view.paused) return;
  find("rate").textContent = `${status.rate_hz.toFixed(1)} / s`;
  find("p99").textContent = `${status.latency.p99_ms.toFixed(1)} ms`;
  find("misses").textContent = status.deadline_ms === null
    ? "no deadline" : `${status.deadline_misses} of ${status.published}`;
  find("published").textContent = status.published;
  const causes = Object.entries(status.dropped).map(([cause, count]) => `${count} ${cause}`);
  find("dropped").textContent = causes.join(", ") || "0";
  find("status").textContent = status.last_status || "none";
  drawHistogram(status.latency, status.deadline_ms);
}

function drawHistogram(latency, deadline) {
  const canvas = find("histogram");
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  const base = height - 34;
  const top = latency.edges_ms[latency.edges_ms.length - 1];
  const most = Math.max(1, ...latency.counts);
  const wide = width / latency.counts.length;
  context.clearRect(0, 0, width, height);
  latency.counts.forEach((count, bin) => {
    const late = deadline !== null && latency.edges_ms[bin] >= deadline;
    const tall = Math.round((base - 24) * count / most);
    context.fillStyle = late ? "#ff8f70" : "#74b9ff";
    context.fillRect(bin * wide + 1, base - tall, wide - 2, tall);
  });
  context.fillStyle = getComputedStyle(document.body).getPropertyValue("--faint");
  context.font = "22px system-ui, sans-serif";
  context.fillRect(0, base, width, 2);
  [0, 0.5, 1].forEach((share) => {
    context.textAlign = share === 0 ? "left" : share === 1 ? "right" : "center";
    context.fillText(`${Math.round(share * top)}${share === 1 ? "+" : ""}`, share * width, height - 6);
  });
  if (deadline !== null) {
    const x = Math.min(width - 2, deadline / top * width);
    context.fillStyle = "#ff8f70";
    context.fillRect(x, 0, 3, base);
    context.textAlign = x > width / 2 ? "right" : "left";
    context.fillText(`deadline ${deadline} ms`, x + (x > width / 2 ? -8 : 10), 20);
  }
}

function setPaused(paused) {
  view.paused = paused;
  const button = find("pause");
  button.textContent = paused ? "Resume" : "Pause";
  button.setAttribute("aria-pressed", String(paused));
}

function setOpacity(percent) {
  const value = Math.max(0, Math.min(100, percent));
  find("opacity").value = value;
  find("opacity-value").textContent = `${value} %`;
  find("labels").style.opacity = value / 100;
}

function setSafe(safe) {
  view.safe = safe;
  find("safe").checked = safe;
  if (view.classes) drawLegend();
  drawLabels();
}

function setHatch(wanted) {
  view.hatch = wanted;
  find("hatch").checked = wanted;
  drawLabels();
}

function nameUnder(event) {
  if (!view.labels || !view.classes) return;
  const box = find("labels").getBoundingClientRect();
  const x = Math.floor((event.clientX - box.left) / box.width * view.labels.width);
  const y = Math.floor((event.clientY - box.top) / box.height * view.labels.height);
  const id = view.labels.data[4 * (y * view.labels.width + x)];
  find("under").textContent = view.classes.names[id] ?? "";
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const opacity = Number(find("opacity").value);
  const onButton = event.target.closest("button, input[type=checkbox]"); // has its own Space
  if (event.key === " " && !onButton) setPaused(!view.paused);
  else if (event.key === "[") setOpacity(opacity - 5);
  else if (event.key === "]") setOpacity(opacity + 5);
  else if (event.key === "c" || event.key === "C") setSafe(!view.safe);
  else if (event.key === "h" || event.key === "H") setHatch(!view.hatch);
  else return;
  event.preventDefault();
}

async function keepGoing(step, pause) {
  for (;;) {
    try {
      await step();
    } catch (error) {
      find("state").textContent = "disconnected";
      find("state").dataset.state = "disconnected";
      await wait(1000);
    }
    await wait(pause);
  }
}

find("pause").addEventListener("click", () => setPaused(!view.paused));
find("opacity").addEventListener("input", (event) => setOpacity(Number(event.target.value)));
find("camera").addEventListener("change", (event) => setCamera(event.target.value));
find("safe").addEventListener("change", (event) => setSafe(event.target.checked));
find("hatch").addEventListener("change", (event) => setHatch(event.target.checked));
find("picture").addEventListener("pointermove", nameUnder);
find("picture").addEventListener("pointerleave", () => { find("under").textContent = ""; });
document.addEventListener("keydown", onKey);
setOpacity(55);

keepGoing(async () => {
  if (!view.classes) await readClasses();
  if (view.paused) await wait(100);
  else await nextFrame();
}, 0);
keepGoing(async () => {
  const answer = await fetch(`status?${ofCamera()}`);
  if (!answer.ok) throw new Error(`status: ${answer.status}`);
  showStatus(await answer.json());
  const old = !view.paused && drawnAt > 0 && performance.now() - drawnAt > OLD_MS;
  find("picture").classList.toggle("old", old);
}, 400);

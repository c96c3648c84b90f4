"use strict";
// What the scene page does: draws the boxes of a moment in its cameras and from above, and walks through its errors.
// Frames and units are those of the package: BEV metres (x, y, z of the middle of the lower face, l, w, h, yaw, vx, vy).

const NEAR_M = 0.1, REACH_M = 2.0, TRUTH = "#5a6068", TRUTH_IN_IMAGE = "#f8f9fa", INK = "#212529";
const EDGES = [[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 6], [6, 7], [7, 4], [0, 4], [1, 5], [2, 6], [3, 7]];
const FRONT = [0, 1, 5, 4];
const KINDS = ["miss", "false alarm", "confused"];

// ---- geometry -------------------------------------------------------------------------------------------------------

// Eight corners of a box: front left, front right, rear right, rear left of the lower face, then of the upper one.
function corners(box) {
  const [x, y, z, l, w, h, yaw] = box, c = Math.cos(yaw), s = Math.sin(yaw), found = [];
  for (const up of [0, 1])
    for (const [along, across] of [[0.5, 0.5], [0.5, -0.5], [-0.5, -0.5], [-0.5, 0.5]])
      found.push([x + along * l * c - across * w * s, y + along * l * s + across * w * c, z + up * h]);
  return found;
}

function transformed(matrix, point) {
  return matrix.slice(0, 3).map((row) => row[0] * point[0] + row[1] * point[1] + row[2] * point[2] + (row[3] || 0));
}

function pixel(camera, point) {
  const [u, v, depth] = transformed(camera.pixels_from_camera, point);
  return [u / depth, v / depth];
}

// A polygon or segment in the camera frame cut at the near plane.
function clipped(points, closed) {
  const kept = [];
  for (let i = 0; i < points.length; i++) {
    const here = points[i], inside = here[2] >= NEAR_M;
    if (inside) kept.push(here);
    if (!closed && i + 1 === points.length) break;
    const there = points[(i + 1) % points.length];
    if (inside !== there[2] >= NEAR_M) {
      const part = (NEAR_M - here[2]) / (there[2] - here[2]);
      kept.push(here.map((value, axis) => value + (there[axis] - value) * part));
    }
  }
  return kept;
}

// Metres to pixels of a window shown `side` pixels along its longer side, turned so that forward is up.
function windowPixel(view, side, x, y) {
  const turn = [[1, 0, 0, 1], [0, -1, 1, 0], [-1, 0, 0, -1], [0, 1, -1, 0]][view.quarter_turns];
  const across = (px, py) => [turn[0] * px + turn[1] * py, turn[2] * px + turn[3] * py];
  const ends = view.x_range_m.flatMap((px) => view.y_range_m.map((py) => across(px, py)));
  const left = Math.min(...ends.map((end) => end[0])), top = Math.max(...ends.map((end) => end[1]));
  const [u, v] = across(x, y);
  return [(u - left) * scaleOf(view, side), (top - v) * scaleOf(view, side)];
}

function scaleOf(view, side) {
  return side / Math.max(view.x_range_m[1] - view.x_range_m[0], view.y_range_m[1] - view.y_range_m[0]);
}

// ---- errors ---------------------------------------------------------------------------------------------------------

// Errors of a moment at a threshold. Pairs by class are made by falling score, so they hold at every threshold; what is
// left over on both sides within reach of each other is a confusion of classes.
// weight: a false alarm's and a confusion's score (how sure the model was); a miss's nearness, 1 here, 0 at 60 m.
function errorsOf(moment, threshold) {
  if (!moment.matched) return [];
  const shown = moment.predicted.filter((box) => box.score >= threshold);
  const found = new Set(shown.filter((box) => box.found !== undefined).map((box) => box.found));
  const missed = new Map(moment.truth.filter((box) => box.counted && !found.has(box.row)).map((box) => [box.row, box]));
  const extra = shown.filter((box) => box.counted && box.found === undefined).sort((a, b) => b.score - a.score);
  const errors = [];
  for (const box of extra) {
    let nearest = null, least = REACH_M;
    for (const other of missed.values()) {
      const apart = Math.hypot(box.box[0] - other.box[0], box.box[1] - other.box[1]);
      if (other.name !== box.name && apart < least) [nearest, least] = [other, apart];
    }
    if (nearest) missed.delete(nearest.row);
    errors.push({ kind: nearest ? "confused" : "false alarm", box, truth: nearest, weight: box.score });
  }
  for (const box of missed.values()) {
    const away = Math.hypot(box.box[0], box.box[1]);
    errors.push({ kind: "miss", box, truth: box, weight: Math.max(0, 1 - away / 60) });
  }
  return errors.sort((a, b) => b.weight - a.weight);
}

function allErrors(content, threshold, kinds) {
  return content.moments
    .flatMap((moment, time) => errorsOf(moment, threshold).map((error) => ({ ...error, time })))
    .filter((error) => kinds.has(error.kind))
    .sort((a, b) => b.weight - a.weight || a.time - b.time);
}

// What a box says when it is pointed at.
function told(box, truth) {
  const [x, y, , l, w, h, , vx, vy] = box.box, lines = [];
  lines.push(box.name.replaceAll("_", " ") + (box.score === undefined ? " (truth)" : `  score ${box.score.toFixed(2)}`));
  lines.push(`${l.toFixed(1)} x ${w.toFixed(1)} x ${h.toFixed(1)} m, ${Math.hypot(x, y).toFixed(1)} m away`);
  if (vx != null && vy != null) lines.push(`speed ${Math.hypot(vx, vy).toFixed(1)} m/s`);
  if (box.attribute) lines.push(box.attribute);
  if (box.identity) lines.push(`identity ${box.identity.length > 8 ? box.identity.slice(0, 8) : box.identity}`);
  if (box.score !== undefined && box.counted !== undefined)
    lines.push(box.found !== undefined ? `${box.distance_m.toFixed(2)} m from the matched truth`
      : box.counted ? "matches no truth" : "outside the range that counts");
  if (truth) lines.push(`truth: ${truth.name.replaceAll("_", " ")}`);
  return lines.join("\n");
}

// ---- the page -------------------------------------------------------------------------------------------------------

const content = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const state = { time: 0, threshold: content.score_thr, heads: new Map(), kinds: new Set(KINDS), errors: [], chosen: -1, cell: null };
const pictures = new Map();
let drawn = [], timer = null;

function picture(address, ready) {
  let image = pictures.get(address);
  if (!image) {
    image = new Image();
    pictures.set(address, image);
    image.src = address;
  }
  if (!image.complete) image.addEventListener("load", ready, { once: true });
  return image;
}

function headNames() {
  const names = [];
  const has = (list, name) => { if (list && !names.includes(name)) names.push(name); };
  for (const moment of content.moments) {
    has(moment.predicted.length, "predicted boxes");
    has(moment.truth.length, "true boxes");
    for (const raster of moment.rasters) has(true, `${raster.kind} ${raster.name}`);
    for (const panel of moment.panels) has(true, panel.title);
  }
  return names;
}

const isShown = (name) => state.heads.get(name) === true;

function visibleBoxes(moment) {
  const boxes = isShown("true boxes") ? moment.truth.map((box) => ({ box, truth: true })) : [];
  if (isShown("predicted boxes"))
    for (const box of moment.predicted) if (box.score >= state.threshold) boxes.push({ box, truth: false });
  return boxes.map((entry) => ({ ...entry, corners: corners(entry.box.box), color: entry.truth && moment.predicted.length ? TRUTH : content.classes[entry.box.name] || TRUTH }));
}

function polygon(pen, points) {
  pen.beginPath();
  points.forEach(([u, v], i) => (i ? pen.lineTo(u, v) : pen.moveTo(u, v)));
  pen.closePath();
}

function isChosen(box) {
  const error = state.errors[state.chosen];
  return error && error.time === state.time && (error.box === box || error.truth === box);
}

function drawCamera(canvas, camera, boxes) {
  const pen = canvas.getContext("2d"), image = picture(camera.image, draw);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (image.complete) pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  const faces = boxes.map((entry) => ({ ...entry, seen: entry.corners.map((point) => transformed(camera.camera_from_bev, point)) }));
  faces.sort((a, b) => b.seen.reduce((sum, p) => sum + p[2], 0) - a.seen.reduce((sum, p) => sum + p[2], 0));
  canvas.hits = [];
  for (const { box, truth, color, seen } of faces) {
    if (seen.every((point) => point[2] < NEAR_M)) continue;
    pen.strokeStyle = color === TRUTH ? TRUTH_IN_IMAGE : color;
    pen.setLineDash(truth && color === TRUTH ? [4, 3] : []);
    pen.lineWidth = isChosen(box) ? 4 : 1.5;
    const face = clipped(FRONT.map((corner) => seen[corner]), true).map((point) => pixel(camera, point));
    if (face.length > 2 && color !== TRUTH) {
      pen.globalAlpha = 0.3;
      pen.fillStyle = color;
      polygon(pen, face);
      pen.fill();
      pen.globalAlpha = 1;
    }
    const ends = [];
    for (const edge of EDGES) {
      const cut = clipped(edge.map((corner) => seen[corner]), false);
      if (cut.length !== 2) continue;
      const [start, end] = cut.map((point) => pixel(camera, point));
      ends.push(start, end);
      pen.beginPath();
      pen.moveTo(...start);
      pen.lineTo(...end);
      pen.stroke();
    }
    if (!ends.length) continue;
    const us = ends.map((end) => end[0]), vs = ends.map((end) => end[1]);
    canvas.hits.push({ box, area: [Math.min(...us), Math.min(...vs), Math.max(...us), Math.max(...vs)] });
  }
  pen.setLineDash([]);
  const cell = askedCell(content.moments[state.time]), place = content.moments[state.time].cameras.indexOf(camera);
  const seen = cell ? cell.seen.filter((sample) => sample[0] === place) : [];
  drawSamples(pen, seen.map(([, u, v, weight]) => [u, v, weight]), cell ? cell.seen[0] && cell.seen[0][3] : 0, canvas.height / 40);
}

// The cell nearest to the place that was clicked, of those whose attention the page holds.
function askedCell(moment) {
  if (!state.cell || !moment.attention.length) return null;
  const away = ({ at: [x, y] }) => Math.hypot(x - state.cell[0], y - state.cell[1]);
  return moment.attention.reduce((best, other) => (away(other) < away(best) ? other : best));
}

// Discs at (u, v), their areas the weights; the strongest has the given radius.
function drawSamples(pen, samples, strongest, radius) {
  for (const [u, v, weight] of [...samples].reverse()) {
    pen.beginPath();
    pen.arc(u, v, Math.max(1.5, radius * Math.sqrt(weight / Math.max(1, strongest))), 0, 2 * Math.PI);
    pen.fillStyle = "#e6007e";
    pen.fill();
    pen.strokeStyle = "#fff";
    pen.lineWidth = 1;
    pen.stroke();
  }
}

function askAt(event) {
  const canvas = at("bev"), room = canvas.getBoundingClientRect(), [ou, ov] = windowPixel(content.window, 720, 0, 0);
  const right = windowPixel(content.window, 720, 1, 0), ahead = windowPixel(content.window, 720, 0, 1);
  const u = (event.clientX - room.left) * canvas.width / room.width - ou, v = (event.clientY - room.top) * canvas.height / room.height - ov;
  const [a, b, c, d] = [right[0] - ou, ahead[0] - ou, right[1] - ov, ahead[1] - ov], area = a * d - b * c;
  const place = [(d * u - b * v) / area, (a * v - c * u) / area];
  const again = state.cell && Math.hypot(place[0] - state.cell[0], place[1] - state.cell[1]) < 2;
  state.cell = again ? null : place;
  draw();
}

function drawBev(moment, boxes) {
  const canvas = at("bev"), pen = canvas.getContext("2d"), view = content.window;
  const turned = view.quarter_turns % 2, spans = [view.x_range_m, view.y_range_m].map((range) => range[1] - range[0]);
  const side = 720, [width, height] = (turned ? [spans[1], spans[0]] : spans).map((span) => span * scaleOf(view, side));
  if (canvas.width !== Math.round(width)) canvas.width = Math.round(width);
  if (canvas.height !== Math.round(height)) canvas.height = Math.round(height);
  const place = (x, y) => windowPixel(view, side, x, y);
  pen.fillStyle = "#f6f6f3";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  for (const raster of moment.rasters) {
    const image = isShown(`${raster.kind} ${raster.name}`) && picture(raster.image, draw);
    if (image && image.complete) pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  }
  const [cu, cv] = place(0, 0);
  pen.font = "12px sans-serif";
  for (let radius = 10; radius < 100; radius += 10) {
    pen.strokeStyle = "#adb2b8";
    pen.lineWidth = 0.7;
    pen.beginPath();
    pen.arc(cu, cv, radius * scaleOf(view, side), 0, 2 * Math.PI);
    pen.stroke();
    pen.fillStyle = TRUTH;
    if (radius % 20 === 0) pen.fillText(`${radius} m`, cu + radius * scaleOf(view, side) * 0.71, cv - radius * scaleOf(view, side) * 0.71);
  }
  pen.fillStyle = INK;
  pen.beginPath();
  pen.moveTo(cu, cv - 14);
  pen.lineTo(cu - 7, cv + 14);
  pen.lineTo(cu + 7, cv + 14);
  pen.fill();
  canvas.hits = [];
  for (const { box, truth, color, corners: points } of boxes) {
    const foot = points.slice(0, 4).map(([x, y]) => place(x, y)), [u, v] = place(box.box[0], box.box[1]);
    polygon(pen, foot);
    if (!(truth && color === TRUTH)) {
      pen.globalAlpha = truth ? 0.5 : 0.25 + 0.45 * box.score;
      pen.fillStyle = color;
      pen.fill();
      pen.globalAlpha = 1;
    }
    pen.strokeStyle = color;
    pen.lineWidth = isChosen(box) ? 4 : 1.6;
    pen.stroke();
    pen.beginPath();
    pen.moveTo(u, v);
    pen.lineTo((foot[0][0] + foot[1][0]) / 2, (foot[0][1] + foot[1][1]) / 2);
    pen.stroke();
    if (isChosen(box)) {
      pen.strokeStyle = INK;
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(u, v, 26, 0, 2 * Math.PI);
      pen.stroke();
    }
    const us = foot.map((end) => end[0]), vs = foot.map((end) => end[1]);
    canvas.hits.push({ box, area: [Math.min(...us, u - 5), Math.min(...vs, v - 5), Math.max(...us, u + 5), Math.max(...vs, v + 5)] });
  }
}

// The asked cell from above, and where it looks back.
function drawCell(moment) {
  const cell = askedCell(moment), pen = at("bev").getContext("2d");
  if (!cell) return;
  const [u, v] = windowPixel(content.window, 720, ...cell.at);
  const past = (cell.past || []).map(([x, y, weight]) => [...windowPixel(content.window, 720, x, y), weight]);
  drawSamples(pen, past, past.length ? past[0][2] : 0, 8);
  pen.strokeStyle = "#e6007e";
  pen.lineWidth = 2.5;
  pen.strokeRect(u - 7, v - 7, 14, 14);
}

// Cameras that look forward above those that look back, each row from left to right as a driver points at them.
function cameraRows(cameras) {
  const forward = Math.PI / 2 - content.window.quarter_turns * Math.PI / 2, rows = [[], []];
  for (const camera of cameras) {
    const looking = camera.camera_from_bev[2], round = 2 * Math.PI;
    const angle = ((Math.atan2(looking[1], looking[0]) - forward) % round + round) % round;
    if (Math.cos(angle) > 1e-6) rows[0].push([angle <= Math.PI ? -angle : round - angle, camera]);
    else rows[1].push([angle, camera]);
  }
  return rows.map((row) => row.sort((a, b) => a[0] - b[0]).map((pair) => pair[1])).filter((row) => row.length);
}

function layOutCameras(cameras) {
  const names = cameras.map((camera) => camera.name).join();
  if (at("cameras").dataset.names === names) return;
  at("cameras").dataset.names = names;
  at("cameras").replaceChildren(...cameraRows(cameras).map((row) => {
    const line = document.createElement("div");
    line.className = "row";
    for (const camera of row) {
      const figure = document.createElement("figure"), canvas = document.createElement("canvas"), caption = document.createElement("figcaption");
      [canvas.width, canvas.height] = camera.size_px;
      canvas.dataset.camera = camera.name;
      caption.textContent = camera.name;
      figure.append(canvas, caption);
      line.append(figure);
      canvas.onclick = () => document.body.classList.toggle("large", figure.classList.toggle("large"));
      listenForPointer(canvas);
    }
    return line;
  }));
}

function draw() {
  const moment = content.moments[state.time];
  drawn = visibleBoxes(moment);
  layOutCameras(moment.cameras);
  for (const canvas of at("cameras").querySelectorAll("canvas"))
    drawCamera(canvas, moment.cameras.find((camera) => camera.name === canvas.dataset.camera), drawn);
  drawBev(moment, drawn);
  drawCell(moment);
  at("panels").replaceChildren(...moment.panels.filter((panel) => isShown(panel.title)).map((panel) => {
    const figure = document.createElement("figure"), image = new Image(), caption = document.createElement("figcaption");
    image.src = panel.image;
    caption.textContent = panel.title;
    figure.append(image, caption);
    return figure;
  }));
  at("time").value = state.time;
  at("moment").textContent = `${state.time + 1} / ${content.moments.length}   ${moment.scene}   ${(moment.seconds - content.moments.find((other) => other.scene === moment.scene).seconds).toFixed(1)} s`;
  at("score").value = state.threshold;
  at("score_shown").textContent = state.threshold.toFixed(2);
}

function listErrors() {
  const chosen = state.errors[state.chosen];
  state.errors = allErrors(content, state.threshold, state.kinds);
  state.chosen = chosen ? state.errors.findIndex((error) => error.box === chosen.box && error.kind === chosen.kind) : -1;
  at("error_count").textContent = content.moments.some((moment) => moment.matched) ? `${state.errors.length} errors, worst first` : "no truth to find errors by";
  at("errors").replaceChildren(...state.errors.map((error, place) => {
    const line = document.createElement("li"), name = error.box.name.replaceAll("_", " ");
    const what = error.kind === "confused" ? `${error.truth.name.replaceAll("_", " ")} taken for ${name}` : `${error.kind}: ${name}`;
    const strength = error.kind === "miss" ? `${Math.hypot(error.box.box[0], error.box.box[1]).toFixed(0)} m away` : `score ${error.box.score.toFixed(2)}`;
    line.textContent = `${error.time + 1}  ${what}, ${strength}`;
    line.onclick = () => choose(place);
    return line;
  }));
  markChosen();
}

function markChosen() {
  at("errors").querySelectorAll(".chosen").forEach((line) => line.classList.remove("chosen"));
  const line = at("errors").children[state.chosen];
  if (line) {
    line.classList.add("chosen");
    at("errors").scrollTop = line.offsetTop - at("errors").offsetTop - 80;
  }
}

function choose(place) {
  if (!state.errors.length) return;
  state.chosen = (place + state.errors.length) % state.errors.length;
  state.time = state.errors[state.chosen].time;
  markChosen();
  draw();
}

function goTo(time) {
  state.time = Math.max(0, Math.min(content.moments.length - 1, time));
  draw();
}

function play() {
  if (timer) {
    clearInterval(timer);
    timer = null;
  } else timer = setInterval(() => goTo((state.time + 1) % content.moments.length), 250);
  at("play").textContent = timer ? "\u275a\u275a" : "\u25b6";
}

function listenForPointer(canvas) {
  canvas.addEventListener("pointermove", (event) => {
    const room = canvas.getBoundingClientRect();
    const u = (event.clientX - room.left) * canvas.width / room.width, v = (event.clientY - room.top) * canvas.height / room.height;
    const under = (canvas.hits || []).filter(({ area }) => u >= area[0] && u <= area[2] && v >= area[1] && v <= area[3]);
    const size = ({ area }) => (area[2] - area[0]) * (area[3] - area[1]);
    // Of what lies under the pointer the smallest; a prediction before the truth that it covers.
    under.sort((a, b) => (b.box.score !== undefined) - (a.box.score !== undefined) || size(a) - size(b));
    at("told").hidden = !under.length;
    if (!under.length) return;
    const { box } = under[0], truth = box.found === undefined ? null : content.moments[state.time].truth.find((other) => other.row === box.found);
    at("told").textContent = told(box, truth);
    at("told").style.left = `${Math.min(event.clientX + 14, innerWidth - 260)}px`;
    at("told").style.top = `${Math.min(event.clientY + 14, innerHeight - 150)}px`;
  });
  canvas.addEventListener("pointerleave", () => (at("told").hidden = true));
}

function checkbox(name, on, changed) {
  const label = document.createElement("label"), box = document.createElement("input");
  box.type = "checkbox";
  box.checked = on;
  box.name = name;
  box.onchange = () => changed(box.checked);
  label.append(box, ` ${name}`);
  return label;
}

function begin() {
  const heads = headNames(), predicts = heads.some((name) => name.startsWith("predicted"));
  for (const name of heads) state.heads.set(name, !(predicts && name.startsWith("true ") && name !== "true boxes"));
  at("heads").append(...heads.map((name) => checkbox(name, state.heads.get(name), (on) => { state.heads.set(name, on); draw(); })));
  at("kinds").append(...KINDS.map((kind) => checkbox(kind, true, (on) => { state.kinds[on ? "add" : "delete"](kind); listErrors(); draw(); })));
  at("legend").append(...Object.entries(content.classes).map(([name, color]) => {
    const entry = document.createElement("span"), square = document.createElement("i");
    square.style.background = color;
    entry.append(square, name.replaceAll("_", " "));
    return entry;
  }));
  at("time").max = content.moments.length - 1;
  at("score").min = content.lowest_score;
  at("time").oninput = () => goTo(Number(at("time").value));
  at("score").oninput = () => { state.threshold = Number(at("score").value); listErrors(); draw(); };
  at("play").onclick = play;
  at("next_error").onclick = () => choose(state.chosen + 1);
  at("previous_error").onclick = () => choose(state.chosen < 0 ? -1 : state.chosen - 1);
  listenForPointer(at("bev"));
  if (content.moments.some((moment) => moment.attention.length)) at("bev").onclick = askAt;
  addEventListener("keydown", (event) => {
    const keys = { ArrowRight: () => goTo(state.time + 1), ArrowLeft: () => goTo(state.time - 1), n: () => choose(state.chosen + 1), p: () => choose(state.chosen < 0 ? -1 : state.chosen - 1), " ": play };
    if (!keys[event.key] || event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  const named = () => {
    const time = content.moments.findIndex((moment) => moment.token === decodeURIComponent(location.hash.slice(1)));
    if (time >= 0) goTo(time);
  };
  addEventListener("hashchange", named);
  listErrors();
  draw();
  named();
}

begin();

"use strict";
const index = JSON.parse(document.getElementById("index").textContent);
const columns = index.columns, count = columns.x.length, names = index.answers.map((one) => one.name);
const $ = (id) => document.getElementById(id);
const text = (name, face) => columns[name].texts[columns[name].of[face]];
const list = $("list"), all = $("all"), said = $("said"), by = $("by");
const WIDTH = 108, HEIGHT = 140;

// What was answered: for each face, the number of the answer and the time in ms. It is kept in this browser.
const KEY = "fer-review-" + index.id;
let kept = { by: "", answers: {} };
try { kept = Object.assign(kept, JSON.parse(localStorage.getItem(KEY) || "{}")); } catch (error) { say("This browser keeps nothing: save often."); }
const answers = new Map(Object.entries(kept.answers).map(([face, answer]) => [Number(face), answer]));
by.value = kept.by;
const undone = [];
let saved = true;

let shown = [], columnCount = 1, current = 0, anchor = 0;
const selected = new Set();
const tiles = new Map();

function say(words) { said.textContent = words; }

function keep() {
  try { localStorage.setItem(KEY, JSON.stringify({ by: by.value, answers: Object.fromEntries(answers) })); }
  catch (error) { say("This browser cannot keep more answers: save them now."); }
}

function progress(words) {
  say(`${words ? words + " " : ""}${answers.size} of ${count} answered${selected.size > 1 ? `, ${selected.size} selected` : ""}.`);
}

function arrange() {
  const face = shown[current], order = $("order").value, show = $("show").value, label = $("label").value;
  const first = (value) => (value === null || value === undefined ? Infinity : value);
  shown = [];
  for (let one = 0; one < count; one++) {
    if (show !== "all" && answers.has(one) !== (show === "answered")) continue;
    if (label && text("expression", one) !== label) continue;
    shown.push(one);
  }
  if (order === "confidence" || order === "quality") shown.sort((a, b) => first(columns[order][a]) - first(columns[order][b]));
  if (order === "expression" || order === "folder") shown.sort((a, b) => (text(order, a) < text(order, b) ? -1 : text(order, a) > text(order, b) ? 1 : a - b));
  selected.clear();
  current = Math.max(0, shown.indexOf(face));
  anchor = current;
  layout();
}

function layout() {
  columnCount = Math.max(1, Math.floor(all.clientWidth / WIDTH));
  all.style.height = Math.ceil(shown.length / columnCount) * HEIGHT + "px";
  for (const tile of tiles.values()) tile.remove();
  tiles.clear();
  draw();
}

function draw() {
  const first = Math.max(0, Math.floor(list.scrollTop / HEIGHT) - 1) * columnCount;
  const last = Math.min(shown.length, (Math.ceil((list.scrollTop + list.clientHeight) / HEIGHT) + 1) * columnCount);
  for (const [place, tile] of tiles) if (place < first || place >= last) { tile.remove(); tiles.delete(place); }
  for (let place = first; place < last; place++) if (!tiles.has(place)) tiles.set(place, all.appendChild(made(place)));
  for (const [place, tile] of tiles) mark(place, tile);
  const active = tiles.get(current);
  if (active) list.setAttribute("aria-activedescendant", active.id); else list.removeAttribute("aria-activedescendant");
}

function made(place) {
  const face = shown[place], tile = document.createElement("div"), picture = document.createElement("i");
  const sheet = Math.floor(face / index.side ** 2), inside = face % index.side ** 2;
  picture.style.backgroundImage = `url(sheets/${String(sheet).padStart(5, "0")}.jpg)`;
  picture.style.backgroundPosition = `-${(inside % index.side) * index.px}px -${Math.floor(inside / index.side) * index.px}px`;
  tile.className = "tile";
  tile.id = "face-" + place;
  tile.setAttribute("role", "option");
  tile.setAttribute("aria-setsize", shown.length);
  tile.setAttribute("aria-posinset", place + 1);
  tile.style.left = (place % columnCount) * WIDTH + 2 + "px";
  tile.style.top = Math.floor(place / columnCount) * HEIGHT + 2 + "px";
  tile.append(picture, document.createElement("b"), document.createElement("span"));
  tile.title = [text("uri", face), text("member", face)].filter(Boolean).join(" : ");
  return tile;
}

function mark(place, tile) {
  const face = shown[place], answer = answers.get(face), sure = Math.round(100 * columns.confidence[face]) + " %";
  const label = text("expression", face), given = answer ? names[answer[0]].replaceAll("_", " ") : "";
  tile.children[1].textContent = answer ? (names[answer[0]] === label ? "✓ " : "→ ") + given : "";
  tile.children[2].textContent = `${label} ${sure}${columns.uncertain[face] ? " ?" : ""}`;
  tile.classList.toggle("answered", Boolean(answer));
  tile.classList.toggle("current", place === current);
  tile.setAttribute("aria-selected", selected.has(place));
  tile.setAttribute("aria-label", `labelled ${label}, ${sure}${answer ? ", answered " + given : ", not answered"}`);
}

function go(place, extend) {
  current = Math.min(Math.max(0, place), Math.max(0, shown.length - 1));
  selected.clear();
  if (extend) for (let one = Math.min(anchor, current); one <= Math.max(anchor, current); one++) selected.add(one);
  else anchor = current;
  const top = Math.floor(current / columnCount) * HEIGHT;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + HEIGHT - list.clientHeight;
  draw();
  progress("");
}

function answer(name) {
  if (!shown.length) return;
  const places = selected.size ? [...selected] : [current], before = [], at = Date.now();
  for (const place of places) {
    const face = shown[place], number = names.indexOf(name === "right" ? text("expression", face) : name);
    before.push([face, answers.get(face)]);
    if (number >= 0) answers.set(face, [number, at]);
  }
  undone.push(before);
  saved = false;
  keep();
  if (selected.size) { selected.clear(); draw(); } else go(current + 1, false);
  progress(`${places.length === 1 ? "Answered" : places.length + " faces answered"}: ${name.replaceAll("_", " ")}.`);
}

function undo() {
  const before = undone.pop();
  if (!before) { progress("There is nothing to undo."); return; }
  for (const [face, value] of before) if (value) answers.set(face, value); else answers.delete(face);
  saved = false;
  keep();
  const place = shown.indexOf(before[0][0]);
  go(place < 0 ? current : place, false);
  progress("Undone.");
}

function line(face, [number, at]) {
  const facts = {};
  for (const name of ["content_sha256", "time_ms", "x", "y", "w", "h"]) facts[name] = columns[name][face];
  return { ...facts, uri: text("uri", face), member: text("member", face), answer: names[number], seen: text("expression", face),
    model_digest: text("model_digest", face), by: by.value, at: new Date(at).toISOString() };
}

function save() {
  if (!/^[\w.-]{1,40}$/.test(by.value)) { say("Enter a pseudonym of letters, digits, dots and dashes first."); by.focus(); return; }
  const lines = [...answers].sort((a, b) => a[0] - b[0]).map(([face, value]) => JSON.stringify(line(face, value)) + "\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/x-ndjson" }));
  link.download = `corrections-${by.value}.jsonl`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  saved = true;
  progress(`Saved as ${link.download}.`);
}

function place(facts) { return JSON.stringify([facts.content_sha256 || facts.uri, facts.member, facts.time_ms, facts.x, facts.y, facts.w, facts.h]); }

async function load(file) {
  const faces = new Map();
  for (let face = 0; face < count; face++) faces.set(place(line(face, [0, 0])), face);
  let taken = 0, left = 0;
  for (const words of (await file.text()).split("\n").filter((one) => one.trim())) {
    let facts = null;
    try { facts = JSON.parse(words); } catch (error) { left += 1; continue; }
    const face = facts && faces.get(place(facts)), number = facts ? names.indexOf(facts.answer) : -1, at = facts ? Date.parse(facts.at) : NaN;
    if (face === undefined || face === null || number < 0 || Number.isNaN(at) || (by.value && facts.by !== by.value)) { left += 1; continue; }
    by.value = facts.by;
    if (!answers.has(face) || answers.get(face)[1] < at) answers.set(face, [number, at]);
    taken += 1;
  }
  keep();
  draw();
  progress(`${taken} answers read${left ? `, ${left} lines left out: they are of others, of other faces, or broken` : ""}.`);
}

list.addEventListener("scroll", () => requestAnimationFrame(draw));
new ResizeObserver(() => requestAnimationFrame(layout)).observe(list);
list.addEventListener("click", (event) => {
  const tile = event.target.closest(".tile");
  if (!tile) return;
  const place = Number(tile.id.slice(5));
  if (event.ctrlKey || event.metaKey) {
    if (!selected.size && place !== current) selected.add(current);
    if (selected.has(place)) selected.delete(place); else selected.add(place);
    current = anchor = place;
    draw();
    progress("");
  } else go(place, event.shiftKey);
});
list.addEventListener("keydown", (event) => {
  const page = Math.max(1, Math.floor(list.clientHeight / HEIGHT)) * columnCount;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columnCount, ArrowUp: -columnCount, PageDown: page, PageUp: -page };
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const known = index.answers.find((one) => one.key === event.key);
  if (event.key in steps) go(current + steps[event.key], event.shiftKey);
  else if (event.key === "Home") go(0, event.shiftKey);
  else if (event.key === "End") go(shown.length - 1, event.shiftKey);
  else if (event.key === " ") { if (selected.has(current)) selected.delete(current); else selected.add(current); draw(); progress(""); }
  else if (event.key === "Escape") { selected.clear(); draw(); progress(""); }
  else if (event.key === "Enter") answer("right");
  else if (event.key === "u") undo();
  else if (event.key === "s") save();
  else if (known) answer(known.name);
  else return;
  event.preventDefault();
});
for (const button of document.querySelectorAll("[data-answer]")) button.addEventListener("click", () => { answer(button.dataset.answer); list.focus(); });
for (const id of ["order", "show", "label"]) $(id).addEventListener("change", arrange);
$("undo").addEventListener("click", undo);
$("save").addEventListener("click", save);
$("load").addEventListener("change", (event) => { if (event.target.files.length) load(event.target.files[0]); });
by.addEventListener("change", keep);
window.addEventListener("beforeunload", (event) => { if (!saved) event.preventDefault(); });
arrange();
progress(answers.size ? "Going on." : "");

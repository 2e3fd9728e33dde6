"use strict";
const index = JSON.parse(document.getElementById("index").textContent);
const columns = index.columns, count = columns.x.length, names = index.answers.map((one) => one.name);
const $ = (id) => document.getElementById(id);
const text = (name, face) => columns[name].texts[columns[name].of[face]];
const list = $("list"), all = $("all"), said = $("said"), by = $("by");
const WIDTH = index.px + 12, HEIGHT = index.px + 44, WITHDRAWN = -1, NAME = /^[\w.-]{1,40}$/;

// What a person answered: for each face, the number of the answer, or WITHDRAWN, and the time in ms. This browser keeps it for
// each pseudonym, in parts of CHUNK faces, so that an answer writes little. Where two tabs differ, the later answer counts.
const KEY = "fer-review-" + index.id, CHUNK = 500;
let answers = new Map(), person = "", trouble = "", saved = true, open = count;
const undone = [];

let shown = [], columnCount = 1, current = 0, anchor = 0;
const selected = new Set();
const tiles = new Map();

const answered = (face) => answers.has(face) && answers.get(face)[0] !== WITHDRAWN;
const chunkKey = (chunk) => `${KEY}:${person}:${chunk}`;

function isAnswer(face, value) {
  return Number.isInteger(face) && face >= 0 && face < count && Array.isArray(value) && Number.isInteger(value[0])
    && value[0] >= WITHDRAWN && value[0] < names.length && Number.isFinite(value[1]);
}

function take(face, value) {
  if (!isAnswer(face, value) || (answers.has(face) && answers.get(face)[1] >= value[1])) return false;
  open += (answered(face) ? 1 : 0) - (value[0] === WITHDRAWN ? 0 : 1);
  answers.set(face, value);
  return true;
}

function takeChunk(words) {
  let facts = {};
  try { facts = JSON.parse(words || "{}") || {}; } catch (error) { return; }
  for (const face of Object.keys(facts)) take(Number(face), facts[face]);
}

function recall() {
  answers = new Map();
  open = count;
  try {
    for (let chunk = 0; chunk * CHUNK < count; chunk++) takeChunk(localStorage.getItem(chunkKey(chunk)));
  } catch (error) { trouble = "This browser keeps nothing: save before you close the page."; }
}

function keep(faces) {
  try {
    localStorage.setItem(KEY + ":by", person);
    for (const chunk of new Set([...faces].map((face) => Math.floor(face / CHUNK)))) {
      takeChunk(localStorage.getItem(chunkKey(chunk)));  // of another tab
      const part = {};
      for (let face = chunk * CHUNK; face < Math.min(count, (chunk + 1) * CHUNK); face++) if (answers.has(face)) part[face] = answers.get(face);
      localStorage.setItem(chunkKey(chunk), JSON.stringify(part));
    }
    trouble = "";
  } catch (error) { trouble = "This browser cannot keep more answers: save them before you close the page."; }
}

function say(words) { said.textContent = words; }

function progress(words) {
  say([words, `${count - open} of ${count} answered${selected.size ? `, ${selected.size} selected` : ""}.`, trouble].filter(Boolean).join(" "));
}

function arrange() {
  const face = shown[current], order = $("order").value, show = $("show").value, label = $("label").value;
  const first = (value) => (value === null || value === undefined ? Infinity : value);
  shown = [];
  for (let one = 0; one < count; one++) {
    if (show !== "all" && answered(one) !== (show === "answered")) continue;
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
  look();
  draw();
}

// Scroll so that the current face is seen.
function look() {
  const top = Math.floor(current / columnCount) * HEIGHT;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + HEIGHT - list.clientHeight;
}

// After scrolling, the first face that is seen is the current one: no key answers a face that is out of sight.
function follow() {
  const top = Math.floor(current / columnCount) * HEIGHT;
  if (top + HEIGHT / 2 < list.scrollTop || top + HEIGHT / 2 > list.scrollTop + list.clientHeight) {
    current = Math.min(Math.max(0, shown.length - 1), Math.ceil((list.scrollTop - HEIGHT / 2) / HEIGHT) * columnCount);
    anchor = current;
  }
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
  picture.style.backgroundImage = `url(${index.sheets}/${String(sheet).padStart(5, "0")}.jpg)`;
  picture.style.backgroundPosition = `-${(inside % index.side) * index.px}px -${Math.floor(inside / index.side) * index.px}px`;
  tile.className = "tile";
  tile.id = "face-" + place;
  tile.setAttribute("role", "option");
  tile.setAttribute("aria-setsize", shown.length);
  tile.setAttribute("aria-posinset", place + 1);
  tile.style.left = (place % columnCount) * WIDTH + 2 + "px";
  tile.style.top = Math.floor(place / columnCount) * HEIGHT + 2 + "px";
  tile.append(picture, document.createElement("b"), document.createElement("span"));
  if (!index.blind) tile.title = [text("uri", face), text("member", face)].filter(Boolean).join(" : ");
  return tile;
}

function mark(place, tile) {
  const face = shown[place], sure = columns.confidence[face] === null ? "" : Math.round(100 * columns.confidence[face]) + " %";
  const label = text("expression", face) || "", name = answered(face) ? names[answers.get(face)[0]] : "", given = name.replaceAll("_", " ");
  tile.children[1].textContent = name ? (name === label ? "✓ " : "→ ") + given : "";
  tile.children[2].textContent = `${label} ${sure}${columns.uncertain[face] ? " ?" : ""}`;
  tile.classList.toggle("answered", Boolean(name));
  tile.classList.toggle("current", place === current);
  tile.setAttribute("aria-selected", selected.has(place));
  tile.setAttribute("aria-label", `${label ? `labelled ${label}, ${sure}, ` : ""}${name ? "answered " + given : "not answered"}`);
}

function go(place, extend) {
  current = Math.min(Math.max(0, place), Math.max(0, shown.length - 1));
  if (extend) {
    selected.clear();
    for (let one = Math.min(anchor, current); one <= Math.max(anchor, current); one++) selected.add(one);
  } else anchor = current;
  look();
  draw();
  progress("");
}

// Answer for the selected faces, or for the current one. Without a name, the label is right.
function answer(name) {
  if (!shown.length) return;
  const places = selected.size ? [...selected] : [current], before = [], at = Date.now();
  for (const place of places) {
    const face = shown[place], number = names.indexOf(name || text("expression", face));
    if (number < 0) continue;
    before.push([face, answers.get(face)]);
    take(face, [number, Math.max(at, answers.has(face) ? answers.get(face)[1] + 1 : 0)]);
  }
  if (!before.length) return;
  undone.push(before);
  saved = false;
  keep(before.map(([face]) => face));
  if (selected.size) { selected.clear(); draw(); } else go(current + 1, false);
  progress(`${before.length === 1 ? "Answered" : before.length + " faces answered"}: ${(name || "the label is right").replaceAll("_", " ")}.`);
}

function undo() {
  const before = undone.pop();
  if (!before || !before.length) { progress("There is nothing to undo."); return; }
  for (const [face, value] of before) take(face, [value ? value[0] : WITHDRAWN, answers.get(face)[1] + 1]);
  saved = false;
  keep(before.map(([face]) => face));
  const place = shown.indexOf(before[0][0]);
  go(place < 0 ? current : place, false);
  progress("Undone.");
}

function line(face, number, at) {
  const facts = {};
  for (const name of ["content_sha256", "time_ms", "x", "y", "w", "h"]) facts[name] = columns[name][face];
  return { ...facts, uri: text("uri", face), member: text("member", face), answer: names[number], seen: text("expression", face),
    model_digest: text("model_digest", face), chosen: text("chosen", face), by: person, at: new Date(at).toISOString() };
}

function save() {
  if (!NAME.test(person)) { say("Enter a pseudonym of letters, digits, dots and dashes first."); by.focus(); return; }
  const given = [...answers].filter(([face]) => answered(face)).sort((a, b) => a[0] - b[0]);
  const lines = given.map(([face, [number, at]]) => JSON.stringify(line(face, number, at)) + "\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/x-ndjson" }));
  link.download = `${index.file}-${person}.jsonl`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  saved = true;
  progress(`Saved as ${link.download}.`);
}

function place(facts) {
  return JSON.stringify([facts.content_sha256, facts.uri, facts.member, facts.time_ms, facts.x, facts.y, facts.w, facts.h]);
}

async function load(file) {
  const faces = new Map(), read = new Set();
  for (let face = 0; face < count; face++) faces.set(place(line(face, 0, 0)), face);
  let left = 0;
  for (const words of (await file.text()).split("\n").filter((one) => one.trim())) {
    let facts = null;
    try { facts = JSON.parse(words); } catch (error) { /* it is left out */ }
    const face = facts ? faces.get(place(facts)) : undefined, number = facts ? names.indexOf(facts.answer) : -1, at = facts ? Date.parse(facts.at) : NaN;
    const isTheirs = facts && typeof facts.by === "string" && NAME.test(facts.by) && (!person || facts.by === person);
    if (face === undefined || number < 0 || Number.isNaN(at) || !isTheirs) { left += 1; continue; }
    if (!person) become(facts.by);
    take(face, [number, at]);
    read.add(face);
  }
  saved = saved && !read.size;
  keep(read);
  draw();
  progress(`${read.size} answers read${left ? `, ${left} lines left out: they are of others, of other faces, or broken` : ""}.`);
}

// Take a pseudonym. Answers that were given without one go with it; those of another one stay with that.
function become(name) {
  const before = person ? new Map() : answers;
  person = name;
  by.value = name;
  recall();
  for (const [face, value] of before) take(face, value);
  undone.length = 0;
  keep(before.keys());
}

list.addEventListener("scroll", () => requestAnimationFrame(follow));
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
  } else {
    selected.clear();
    go(place, event.shiftKey);
  }
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
  else if (event.key === "Enter") answer("");
  else if (event.key === "u") undo();
  else if (event.key === "s") save();
  else if (known) answer(known.name);
  else return;
  event.preventDefault();
});
for (const button of document.querySelectorAll("[data-answer]")) button.addEventListener("click", () => { answer(button.dataset.answer); list.focus(); });
for (const id of ["order", "show", "label"]) $(id).addEventListener("change", arrange);
$("undo").addEventListener("click", undo);
$("save").addEventListener("click", () => { if (by.value !== person && NAME.test(by.value)) become(by.value); save(); });
$("load").addEventListener("change", (event) => { if (event.target.files.length) load(event.target.files[0]); });
by.addEventListener("change", () => {
  if (!NAME.test(by.value)) { progress("A pseudonym has letters, digits, dots and dashes."); return; }
  become(by.value);
  arrange();
  progress("");
});
window.addEventListener("storage", (event) => {
  if (event.key === null || !event.key.startsWith(`${KEY}:${person}:`)) return;
  takeChunk(event.newValue);
  draw();
  progress("");
});
window.addEventListener("beforeunload", (event) => { if (!saved && (trouble || !person)) event.preventDefault(); });
try { person = localStorage.getItem(KEY + ":by") || ""; } catch (error) { /* `recall` says so */ }
by.value = person;
recall();
arrange();
progress(open < count ? "Going on." : "");

// The page around `forward`: words in, barcodes, arcs and sentences out.

const {llama: file, words: known, texts: T} = JSON.parse(document.getElementById("data").textContent);
const llama = load_llama(file), $ = id => document.getElementById(id);
const FIRST_NEURON = 42, MOST_WORDS = 60, MOST_FACTS = 20;
const BACK = {layer: 0, head: 0}, COPY = {layer: 1, head: 3};          // the two heads that somebody listens to
const first_fact = T.first_fact, facts = [first_fact], silent = new Set();
let now, chosen = 0, step = 3, timers = [];

// ---- words and their numbers ----

const segmenter = Intl.Segmenter && new Intl.Segmenter(T.lang, {granularity: "word"});
const letters = word => /[\p{L}\p{N}]/u.test(word), chinese = word => /\p{Script=Han}/u.test(word);

function split(text) {
  text = text.toLowerCase();
  const pieces = segmenter ? Array.from(segmenter.segment(text), piece => piece.segment)
    : text.match(/\p{Script=Han}|[\p{L}\p{N}\p{M}'’]+|\S/gu) || [];
  return pieces.map(piece => piece.trim()).filter(piece => piece);
}

// The words that stand in the text and the facts, each with a number: its own, or that of a word that isn't in use.
function number(list) {
  const words = known.slice(), used = new Set(list), fresh = [], skipped = [];
  const free = Array.from(words, (_, i) => i * 37 % words.length).filter(id => id && !used.has(words[id]));
  for (const word of used) {
    if (words.includes(word)) continue;
    if (!free.length) { skipped.push(word); continue; }
    words[free.pop()] = word;
    fresh.push(word);
  }
  return {words, fresh, skipped};
}

function read(text) {
  let list = split(text), typing = "";
  const last = list.at(-1), told = facts.flat();
  const unfinished = last && letters(last) && !chinese(last) && !/\s$/.test(text);
  if (unfinished && ![...known, ...told, ...list.slice(0, -1)].includes(last)) typing = list.pop();
  const long = list.length > MOST_WORDS;
  list = list.slice(-MOST_WORDS);
  const {words, fresh, skipped} = number([...told, ...list]);
  const ids = [0, ...list.filter(word => !skipped.includes(word)).map(word => words.indexOf(word))];
  return {ids, words, long, typing, skipped, fresh: fresh.filter(word => list.includes(word))};
}

function joined(text, word) {                             // `text`, one word longer
  const before = split(text).length, glue = /^[\p{P}]/u.test(word) || /^$|\s$/.test(text) ? "" : T.space;
  const parts = split(text + glue + word);
  return parts.length === before + 1 && parts.at(-1) === word ? text + glue + word : text + " " + word;
}

// ---- the model ----

function with_facts(words) {                              // the facts, in a copy of three tensors
  const weights = {...llama.weights};
  for (const name of ["w1", "w2", "w3"].map(name => `layers.0.feed_forward.${name}.weight`))
    weights[name] = weights[name].map(row => row.slice());
  facts.forEach((fact, i) => write_fact(weights, FIRST_NEURON + i, ...fact.map(word => words.indexOf(word))));
  return {config: llama.config, weights};
}

function think(text) {
  const seen = read(text), {logits, streams, looks} = watch(with_facts(seen.words), seen.ids, [...silent]);
  return {...seen, looks, logits, chances: softmax(logits.at(-1)), streams: [0, 1, 2, 4].map(i => streams[i])};
}

// ---- what is shown ----

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
  element.append(...children);
  return element;
}

// "One stands after {before} under *before*" as text and elements; a value is a string or [string, class].
function fill_in(text, values = {}) {
  return text.split(/(\{\w+\}|\*[^*]+\*)/).map(part => {
    if (part[0] === "*") return make("em", {}, part.slice(1, -1));
    if (part[0] !== "{") return part;
    const [word, kind] = [values[part.slice(1, -1)]].flat();
    return make("b", {class: kind || ""}, word);
  });
}

const shown = id => id ? now.words[id] : T.start;
const percent = share => share > 0.995 ? "> 99%" : share < 0.005 ? "< 1%" : `${Math.round(100 * share)}%`;

function spelled(digits) {                                // the word whose barcode stands there, if one does
  if (digits.some(digit => Math.abs(digit) < 0.3)) return "";
  return shown(digits.reduce((id, digit) => 2 * id + (digit > 0), 0));
}

function draw_barcode(digits, kind, full) {
  const stops = digits.map((digit, i) => {
    const strength = Math.min(Math.abs(digit) / full, 1) * (digit > 0 ? 1 : 0.2);
    return `rgb(var(--${kind}) / ${strength.toFixed(2)}) ${i / DIGITS * 100}% ${(i + 1) / DIGITS * 100}%`;
  });
  return make("span", {class: `code ${kind}`}, make("i", {style: `background: linear-gradient(90deg, ${stops})`}),
    make("small", {}, spelled(digits)));
}

function draw_row(id, i) {
  const registers = [["who", WHO, 1], ["before", BEFORE, 1], ["next", NEXT, 2]];
  const digits = (part, at) => [...now.streams[part][i].slice(at, at + DIGITS)];
  const parts = now.streams.map((_, part) => make("span", {class: "part"},
    ...registers.map(([kind, at, full]) => draw_barcode(digits(part, at), kind, full))));
  const before = spelled(digits(3, BEFORE)), next = spelled(digits(3, NEXT));
  const label = T.row.replace("{place}", i).replace("{who}", shown(id))
    + (before && T.row_before.replace("{before}", before)) + (next && T.row_next.replace("{next}", next));
  const gutter = make("span", {class: "gutter"});
  return make("button", {type: "button", "data-row": i, "aria-label": label}, gutter, ...parts);
}

function draw_guesses() {
  const sorted = [...now.chances.keys()].sort((a, b) => now.chances[b] - now.chances[a]);
  const best = sorted.filter(id => id).slice(0, 3);       // all but the start, which nobody can type
  const clueless = now.chances[best[0]] < 0.05;
  $("llama").classList.toggle("shrug", clueless);
  const guess = id => make("button", {type: "button", "data-word": now.words[id]},
    make("i", {style: `width: ${100 * now.chances[id]}%`}), make("b", {}, now.words[id]),
    make("small", {}, percent(now.chances[id])));
  const nothing = make("p", {}, now.ids.length > 1 ? T.clueless : now.typing ? "…" : T.empty);
  $("guesses").replaceChildren(...clueless ? [nothing] : best.map(guess));
  const plain = text => split(text).join(" "), written = plain($("text").value);
  const notes = [], example = T.tries.find(({text}) => plain(text) === written);
  if (example && !silent.size && facts.includes(first_fact)) notes.push(fill_in(example.why));
  if (now.typing) notes.push(fill_in(T.typing, {word: now.typing}));
  if (now.fresh.length) notes.push(fill_in(T.new, {words: now.fresh.slice(0, 12).join(T.comma)}));
  const off = Array.from($("silence").querySelectorAll("[aria-pressed=true]"), button => button.textContent);
  if (off.length) notes.push(fill_in(T.silent, {words: off.join(T.comma)}));
  if (now.long) notes.push([T.long]);
  if (now.skipped.length) notes.push(fill_in(T.full, {words: now.skipped.slice(0, 12).join(T.comma)}));
  if (!notes.length && !clueless) notes.push([T.runners]);
  $("note").replaceChildren(...notes.flatMap(note => [...note, T.space]));
}

function sentences() {                                    // what happened on the chosen row, up to the chosen part
  const i = chosen, who = [shown(now.ids[i]), "who"], said = [];
  const register = (part, at) => spelled([...now.streams[part][i].slice(at, at + DIGITS)]);
  if (!i) return [T.is_start];
  said.push(fill_in(T.is, {who}));
  const blind = silent.has("0.0"), before = [register(1, BEFORE), "before"];
  if (step >= 1) said.push(blind ? [T.back_off] : fill_in(T.back, {before}));
  if (step >= 2 && silent.has("neurons")) said.push([T.facts_off]);
  else if (step >= 2 && register(2, NEXT))
    said.push(fill_in(T.fact, {before, who, answer: [register(2, NEXT), "next"]}));
  if (step < 3) return said;
  const shares = new Map();                               // of the copying head's look, for every word
  now.looks[COPY.layer][COPY.head][i].forEach((share, j) =>
    shares.set(now.ids[j], share + (shares.get(now.ids[j]) || 0)));
  const [id, most] = [...shares].reduce((best, next) => next[1] > best[1] ? next : best);
  const found = [shown(id), "next"];
  if (silent.has("1.3")) said.push([T.copy_off]);
  else if (blind) said.push(fill_in(T.no_notes, {who}));
  else if (!id) said.push(fill_in(T.rest, {who}));
  else {
    const text = most > 0.97 ? T.copy : most > 0.55 ? T.copy_nearest : T.copy_mixed;
    said.push(fill_in(text, {who, found, share: percent(most)}));
  }
  return said;
}

function look() {                                         // arcs from the chosen row to where its heads look
  const rows = [...$("rows").querySelectorAll("button")], box = $("rows").getBoundingClientRect();
  rows.forEach((row, i) => {
    row.setAttribute("aria-pressed", i === chosen);
    row.tabIndex = i === chosen ? 0 : -1;
  });
  $("rows").querySelectorAll(".code").forEach(code => code.classList.remove("source-before", "source-next"));
  const right = rows[0].querySelector(".gutter").getBoundingClientRect().right - box.left - 4;
  const middle = i => (row => row.top - box.top + row.height / 2)(rows[i].getBoundingClientRect());
  const arcs = [[BACK, "before", 1, -3], [COPY, "next", 3, 3]].flatMap(([{layer, head}, kind, from, shift]) => {
    if (step < from || silent.has(`${layer}.${head}`)) return [];
    return [...now.looks[layer][head][chosen]].map((weight, j) => {
      if (weight < 0.03) return "";
      const y = middle(chosen) + shift, to = middle(j) + shift;
      const bend = right - Math.min(right, 20 + Math.abs(y - to) / 4);
      if (weight > 0.5) rows[j].querySelectorAll(".who").forEach(code => code.classList.add(`source-${kind}`));
      return `<path d="M${right} ${y}C${bend} ${y} ${bend} ${to} ${right} ${to}" stroke="rgb(var(--${kind}))" `
        + `opacity="${Math.max(weight, 0.2)}" stroke-width="${1 + 1.5 * weight}"/>`
        + `<circle cx="${right}" cy="${to}" r="${2 + 1.5 * weight}" fill="rgb(var(--${kind}))"/>`;
    });
  });
  $("rows").querySelector("svg").innerHTML = arcs.join("");
  $("says").replaceChildren(...sentences().flatMap(sentence => [...[sentence].flat(), T.space]));
}

function draw() {
  now = think($("text").value);
  chosen = now.ids.length - 1;
  draw_guesses();
  const arcs = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  $("rows").replaceChildren(...now.ids.map(draw_row), arcs);
  $("window").scrollTop = $("window").scrollHeight;
  look();
}

function turn(to) {                                       // show the stream after this part
  step = to;
  $("stream").dataset.step = to;
  $("steps").querySelectorAll("button").forEach((button, i) => button.setAttribute("aria-pressed", i === to));
  look();
}

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

function fill() {
  timers.forEach(clearTimeout);
  if (still()) return turn(3);
  timers = [0, 1, 2, 3].map(part => setTimeout(turn, 900 * part, part));
}

function say(text) {
  timers.forEach(clearTimeout);
  if ($("text").value !== text) {
    $("text").value = text;
    $("text").scrollTop = $("text").scrollHeight;
  }
  draw();
  turn(3);
}

function list_facts() {
  $("facts").replaceChildren(...facts.map(([before, who, answer], i) => {
    const fact = before + T.space + who + " → " + answer, label = T.forget.replace("{fact}", fact);
    return make("span", {}, fact + " ", make("button", {type: "button", "data-fact": i, "aria-label": label}, "×"));
  }));
}

function learn(fact) {                                    // a sentence if it can't be learned
  if (fact.some(words => words.length !== 1)) return T.fact_words;
  const [before, who, answer] = fact.flat(), same = facts.findIndex(old => old[0] === before && old[1] === who);
  const rest = facts.filter((_, i) => i !== same);
  if (rest.length >= MOST_FACTS) return T.fact_many;
  if (number([...rest.flat(), ...fact.flat()]).skipped.length) return T.fact_full;
  facts.splice(same < 0 ? facts.length : same, same < 0 ? 0 : 1, [before, who, answer]);
  list_facts();
  say(joined(before, who));
  return "";
}

// ---- what can be pressed ----

const press = (id, selector, action) => $(id).addEventListener("click", event => {
  const button = event.target.closest(selector);
  if (button) action(button);
});

$("tries").append(...T.tries.map(({text, ask}, i) =>
  make("button", {type: "button", "data-try": i}, make("small", {}, ask), text)));
const heads = () => make("span", {class: "heads"},
  ...["who", "before", "next"].map(kind => make("small", {class: kind}, T[kind])));
$("steps").append(make("span", {class: "gutter"}), ...T.parts.map((part, i) =>
  make("span", {}, make("button", {type: "button", "data-step": i}, part), heads())));
press("tries", "button", button => { say(T.tries[button.dataset.try].text); fill(); });
press("steps", "button", button => { timers.forEach(clearTimeout); turn(+button.dataset.step); });
press("guesses", "button", button => {
  const text = $("text").value;
  if (!still()) $("llama").animate([{transform: "none"}, {transform: "rotate(9deg)"}, {transform: "none"}], 350);
  say(joined(now.typing ? text.slice(0, text.toLowerCase().lastIndexOf(now.typing)) : text, button.dataset.word));
});
press("rows", "button", button => { chosen = +button.dataset.row; look(); });
press("facts", "button", button => {
  facts.splice(+button.dataset.fact, 1);
  $("refused").textContent = "";
  list_facts();
  draw();
});
press("silence", "button", button => {
  const name = button.dataset.silent, on = silent.has(name), row = chosen;
  if (on) silent.delete(name); else silent.add(name);
  button.setAttribute("aria-pressed", !on);
  draw();
  chosen = row;
  look();
});
$("fill").onclick = fill;
$("clear").onclick = () => { say(""); $("text").focus(); };
$("text").oninput = event => { if (!event.isComposing) say($("text").value); };
$("text").addEventListener("compositionend", () => say($("text").value));
$("own").querySelector("form").onsubmit = event => {
  event.preventDefault();
  $("refused").textContent = learn(Array.from(event.target.querySelectorAll("input"), input => split(input.value)));
};
$("rows").onkeydown = event => {
  const to = chosen + {ArrowUp: -1, ArrowDown: 1}[event.key];
  if (!(to >= 0 && to < now.ids.length)) return;
  event.preventDefault();
  chosen = to;
  look();
  $("rows").querySelectorAll("button")[to].focus();
};
addEventListener("resize", look);
list_facts();
say(T.first);

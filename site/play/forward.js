// The tutorial's `forward` and `write_fact` in plain JavaScript, under the same names.
// A matrix is an array of rows, each a Float32Array. Sums are added up in doubles, as JavaScript's numbers are.

function row_of(size, value) {
  const row = new Float32Array(size);
  for (let j = 0; j < size; j++) row[j] = value(j);
  return row;
}

const each = (x, value) => x.map((row, i) => row_of(row.length, j => value(row[j], i, j)));

function times(x, weight) {                               // x @ weight.T
  return x.map(row => row_of(weight.length, j => {
    let sum = 0;
    for (let i = 0; i < row.length; i++) sum += row[i] * weight[j][i];
    return sum;
  }));
}

const add = (x, y) => each(x, (value, i, j) => value + y[i][j]);
const silu = x => each(x, value => value / (1 + Math.exp(-value)));
const columns = x => Array.from(x[0], (_, j) => row_of(x.length, i => x[i][j]));    // x.T

function rms_norm(x, weight, eps) {
  const sizes = x.map(row => Math.sqrt(row.reduce((sum, value) => sum + value * value, 0) / row.length + eps));
  return each(x, (value, i, j) => value / sizes[i] * weight[j]);
}

function rope(config, end) {                              // the angle of every pair at every position
  const head_dim = config.dim / config.n_heads;
  const freqs = row_of(head_dim / 2, j => 1 / config.rope_theta ** (2 * j / head_dim));
  return Array.from({length: end}, (_, position) => freqs.map(freq => position * freq));
}

function rotate(x, rotations) {
  return each(x, (value, i, j) => {
    const angle = rotations[i][j >> 1], even = j % 2 === 0;
    return value * Math.cos(angle) + (even ? -x[i][j + 1] : x[i][j - 1]) * Math.sin(angle);
  });
}

function softmax(row) {
  const most = row.reduce((a, b) => Math.max(a, b)), powers = Array.from(row, score => Math.exp(score - most));
  const total = powers.reduce((a, b) => a + b);
  return row_of(row.length, j => powers[j] / total);
}

function split_heads(x, n) {                              // [seq, n * head_dim] to [n, seq, head_dim]
  const head_dim = x[0].length / n;
  return Array.from({length: n}, (_, head) => x.map(row => row.slice(head * head_dim, (head + 1) * head_dim)));
}

function join_heads(heads) {                              // and back
  return heads[0].map((_, i) => Float32Array.from(heads.flatMap(head => [...head[i]])));
}

const leave = (name, layer, x) => x;

function forward(llama, tokens, tap = leave) {
  const {n_layers, n_heads, n_kv_heads, dim, norm_eps} = llama.config;
  const head_dim = dim / n_heads, group = n_heads / n_kv_heads;
  const weight = name => llama.weights[name + ".weight"];
  const norm = (h, name) => rms_norm(h, weight(name), norm_eps);
  const shared = (heads, head) => heads[Math.floor(head / group)];    // the key or value head of a query head

  let h = tokens.map(token => weight("tok_embeddings")[token]);
  const rotations = rope(llama.config, tokens.length);
  const mask = (score, i, j) => j > i ? -Infinity : score;

  for (let layer = 0; layer < n_layers; layer++) {
    const block = `layers.${layer}.`;
    h = tap("stream", layer, h);
    let x = norm(h, block + "attention_norm");
    let q = times(tap("q", layer, x), weight(block + "attention.wq"));
    let k = times(tap("k", layer, x), weight(block + "attention.wk"));
    let v = times(tap("v", layer, x), weight(block + "attention.wv"));
    q = split_heads(q, n_heads).map(head => rotate(head, rotations));
    k = split_heads(k, n_kv_heads).map(head => rotate(head, rotations));
    v = split_heads(v, n_kv_heads);

    const scores = q.map((rows, head) => each(times(rows, shared(k, head)), score => score / Math.sqrt(head_dim)));
    let weights = scores.map(rows => each(rows, mask).map(softmax));
    weights = tap("weights", layer, weights);
    let heads = weights.map((rows, head) => times(rows, columns(shared(v, head))));
    heads = tap("heads", layer, heads);
    h = add(h, times(join_heads(heads), weight(block + "attention.wo")));

    h = tap("middle", layer, h);
    x = norm(h, block + "ffn_norm");
    const gate = silu(times(x, weight(block + "feed_forward.w1")));
    const up = times(x, weight(block + "feed_forward.w3"));
    const neurons = tap("neurons", layer, each(gate, (value, i, j) => value * up[i][j]));
    h = add(h, times(neurons, weight(block + "feed_forward.w2")));
  }

  h = tap("stream", n_layers, h);
  return times(norm(h, "norm"), weight("output"));
}

// ---- a fact, in barcodes of 6 digits ----

const DIGITS = 6, WHO = 0, BEFORE = 6, NEXT = 12, ONE = 18;
const barcode = id => Array.from({length: DIGITS}, (_, i) => (id >> (DIGITS - 1 - i)) % 2 * 2 - 1);

function write_fact(weights, neuron, before, who, answer) {
  const [w1, w2, w3] = ["w1", "w2", "w3"].map(name => weights[`layers.0.feed_forward.${name}.weight`]);
  barcode(who).forEach((digit, i) => w1[neuron][WHO + i] = 3 * digit);
  barcode(before).forEach((digit, i) => w1[neuron][BEFORE + i] = 3 * digit);
  w1[neuron][ONE] = -3 * (2 * DIGITS - 2);
  w3[neuron][ONE] = 1;
  barcode(answer).forEach((digit, i) => w2[NEXT + i][neuron] = digit / 4);
}

// ---- what the tutorial does otherwise: open the file, and look inside ----

function load_llama({config, weights}) {                  // every tensor: its shape, and the numbers that are not zero
  const open = ({shape: [rows, width], at, numbers}) => {
    const flat = new Float32Array(rows * (width || 1));
    at.forEach((place, i) => flat[place] = numbers[i]);
    return width ? Array.from({length: rows}, (_, i) => flat.subarray(i * width, (i + 1) * width)) : flat;
  };
  return {config, weights: Object.fromEntries(Object.entries(weights).map(([name, tensor]) => [name, open(tensor)]))};
}

// `silent` names what says nothing: heads, as "layer.head", and "neurons".
function watch(llama, tokens, silent = []) {
  const streams = [], looks = [];
  const logits = forward(llama, tokens, (name, layer, x) => {
    if (name === "stream" || name === "middle") streams.push(x);
    if (name === "weights") looks.push(x);
    if (name === "neurons" && silent.includes(name)) return each(x, () => 0);
    if (name !== "heads") return x;
    return x.map((rows, head) => silent.includes(`${layer}.${head}`) ? each(rows, () => 0) : rows);
  });
  return {logits, streams, looks};
}

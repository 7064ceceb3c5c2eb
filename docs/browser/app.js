// The page: loads the model once, encodes a photo once, and names its groups whenever the words change.

import * as ort from "./ort.wasm.min.mjs";
import {
  BACKGROUND, Mistake, chooseRivals, decide, dot, encodedSize, parseLabels, resize, scores, sharedScores, strangers, windows, winners,
} from "./segment.js";
import { tokenizer } from "./tokenizer.js";

const MAX_PIXELS = 4e6; // larger photos are shrunk: phones give a canvas little memory
const element = (id) => document.getElementById(id);
let loaded = 0; // bytes
let shown = null; // the result on the page

// ---- the model

async function fetched(name, total) {
  const response = await fetch(name);
  if (!response.ok) throw new Mistake(`${name} is missing on this site: build the page with make browser.`);
  const counted = new TransformStream({
    transform(chunk, out) {
      loaded += chunk.length;
      if (total) tell(`Loading the model: ${(loaded / 1e6).toFixed(0)} of ${(total / 1e6).toFixed(0)} MB`);
      out.enqueue(chunk);
    },
  });
  return new Response(response.body.pipeThrough(counted).pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

async function loadModel() {
  const model = JSON.parse(new TextDecoder().decode(await fetched("model.json.gzip")));
  const names = ["ort.wasm.gzip", "model.onnx.gzip", "text.onnx.gzip", "nouns.f32.gzip", "tokenizer.json.gzip"];
  const [wasm, image, text, nouns, pairs] = await Promise.all(names.map((name) => fetched(name, model.bytes)));
  tell("Starting the model …");
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.proxy = true; // in a worker, so that the page stays alive
  const image_ = await ort.InferenceSession.create(new Uint8Array(image));
  const text_ = await ort.InferenceSession.create(new Uint8Array(text));
  const tokens = tokenizer(JSON.parse(new TextDecoder().decode(pairs)).model, model.contextLength);
  return { ...model, image: image_, text: text_, tokens, vectors: rowsOf(new Float32Array(nouns), model.embed) };
}

const rowsOf = (data, width) => Array.from({ length: data.length / width }, (_, i) => data.subarray(i * width, (i + 1) * width));

async function embedWords(model, words) {
  const rows = model.tokens(words.map((word) => model.template.replace("{}", () => word)));
  const tokens = new ort.Tensor("int64", BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0].length]);
  const made = await model.text.run({ tokens });
  const unseen = words.filter((_, i) => made.unseen.data[i]);
  return { vectors: rowsOf(made.words.data, model.embed), unseen };
}

/** Return the labels' names, the vectors of their words, and which words the model does not know. */
async function nameLabels(model, text) {
  const labels = parseLabels(text);
  const given = labels.flatMap((label) => label.words);
  const { vectors: made, unseen } = await embedWords(model, given);
  let next = 0;
  const named = labels.map(({ name, words }) => {
    const own = made.slice(next, (next += words.length));
    const left = strangers(words, own, model);
    const kept = (_, i) => !left.includes(words[i]);
    unseen.push(...left.filter((word) => !unseen.includes(word)));
    return { name, words: words.filter(kept), vectors: own.filter(kept) };
  });
  if (named[0].name !== BACKGROUND) {
    const [words, vectors] = [named.flatMap((label) => label.words), named.flatMap((label) => label.vectors)];
    const likeness = model.vectors.map((noun) => Math.max(...vectors.map((vector) => dot(noun, vector))));
    const rivals = chooseRivals(words, likeness, model).map((i) => model.vectors[i]);
    if (rivals.length) named.unshift({ name: BACKGROUND, vectors: rivals });
  }
  return { named, unseen };
}

/** Return the photo's windows with their groups of each size: their vectors, and which of them owns each pixel. */
async function encode(model, photo) {
  const [width, height] = encodedSize(photo.width, photo.height, model.shortSide);
  const rgba = photo.getContext("2d").getImageData(0, 0, photo.width, photo.height).data;
  const pixels = resize(rgba, photo.width, photo.height, width, height);
  const encoded = [];
  const steps = [1 / model.patch, 1 / model.patch];
  for (const place of windows(width, height, model.shortSide)) {
    const crop = new Uint8Array(3 * place.height * place.width);
    for (let row = 0; row < 3 * place.height; row++) {
      const [channel, y] = [Math.floor(row / place.height), row % place.height];
      const start = (channel * height + place.top + y) * width + place.left;
      crop.set(pixels.subarray(start, start + place.width), row * place.width);
    }
    // Groups are named later, so any word will do. The worker takes what it is given: each run has tensors of its own.
    const words = new ort.Tensor("float32", model.vectors[0].slice(), [1, model.embed]);
    const made = await model.image.run({ pixels: new ort.Tensor("uint8", crop, [1, 3, place.height, place.width]), words });
    const finals = model.sizes.map((size) => ({
      segments: rowsOf(made[`embeddings${size}`].data, model.embed),
      owners: winners(made[model.maps + size], place.width, place.height, steps),
    }));
    encoded.push({ ...place, finals, maps: made[model.maps] });
  }
  const step = [width / photo.width / model.patch, height / photo.height / model.patch];
  const groups = encoded.length === 1 ? winners(encoded[0].maps, photo.width, photo.height, step) : null;
  return { width, height, encoded, groups };
}

function segment(model, photo, { width, height, encoded, groups }, { named, unseen }) {
  const vectors = named.map((label) => label.vectors);
  const fitted = encoded.map((window) => ({
    ...window,
    finals: window.finals.map(({ segments, owners }) => ({ owners, fit: scores(segments, vectors, model.scale) })),
  }));
  const shared = sharedScores(fitted, width, height, named.length);
  const names = named.map((label) => label.name);
  const labels = names[0] === BACKGROUND ? model.colours : model.colours.slice(1); // the first one is the background's
  const decided = decide(shared, { width, height }, photo.width, photo.height);
  return { photo, names, unseen, groups, colours: { labels, groups: model.colours.slice(1) }, ...decided };
}

// ---- the photo

async function decoded(file) {
  const image = await createImageBitmap(file, { colorSpaceConversion: "none" }).catch(() => {
    throw new Mistake(`${file.name || "This"} is not a photo that your browser can read. JPEG, PNG and WebP work.`);
  });
  const scale = Math.min(1, Math.sqrt(MAX_PIXELS / (image.width * image.height)));
  const photo = document.createElement("canvas");
  [photo.width, photo.height] = [image.width, image.height].map((side) => Math.max(1, Math.round(side * scale)));
  const canvas = photo.getContext("2d", { willReadFrequently: true });
  canvas.fillStyle = "white"; // behind transparent pixels
  canvas.fillRect(0, 0, photo.width, photo.height);
  canvas.imageSmoothingQuality = "high";
  canvas.drawImage(image, 0, 0, photo.width, photo.height);
  return photo;
}

// ---- the page

function tell(text, mistake = false) {
  element("status").textContent = text;
  element("status").classList.toggle("mistake", mistake);
}

const rgb = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
const view = () => document.querySelector("input[name=view]:checked").value;

/** Paint the view over the photo: strong where the highlighted label or group lies, or all alike. */
function paint(highlighted = null) {
  const { photo, colours } = shown;
  const [canvas, map] = [element("picture"), view() === "labels" ? shown.map : shown.groups];
  [canvas.width, canvas.height] = [photo.width, photo.height];
  canvas.style.width = `min(100%, ${(75 * photo.width) / photo.height}vh)`;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(photo, 0, 0);
  const image = context.getImageData(0, 0, photo.width, photo.height);
  const painted = colours[view()].map(rgb);
  for (let i = 0; i < map.length; i++) {
    const border = (i % photo.width < photo.width - 1 && map[i] !== map[i + 1]) || (i + photo.width < map.length && map[i] !== map[i + photo.width]);
    const [paint, opacity] = border ? [[255, 255, 255], 1]
      : highlighted === null ? [painted[map[i] % painted.length], 0.5]
      : map[i] === highlighted ? [painted[map[i] % painted.length], 0.35] : [[20, 20, 20], 0.75];
    for (let c = 0; c < 3; c++) image.data[4 * i + c] += opacity * (paint[c] - image.data[4 * i + c]);
  }
  context.putImageData(image, 0, 0);
}

// Shows the label that a click keeps, or all.
function rest() {
  const kept = view() === "labels" && element("legend").querySelector("button[aria-pressed=true]");
  pointed = undefined;
  paint(kept ? Number(kept.value) : null);
}

function legend() {
  const order = shown.names.map((_, i) => i).filter((i) => shown.shares[i]).sort((a, b) => shown.shares[b] - shown.shares[a]);
  element("legend").replaceChildren(...order.map((i) => {
    const item = document.createElement("li");
    const button = Object.assign(document.createElement("button"), { type: "button", ariaPressed: "false" });
    const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    swatch.style.background = shown.colours.labels[i];
    const share = Object.assign(document.createElement("small"), {
      textContent: `${(100 * shown.shares[i]).toFixed(1)} %, score ${shown.scores[i].toFixed(2)}`,
    });
    button.append(swatch, `${shown.names[i]} `, share);
    button.value = i;
    for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => paint(i));
    for (const event of ["pointerleave", "blur"]) button.addEventListener(event, rest);
    button.addEventListener("click", () => {
      const on = button.ariaPressed === "true";
      for (const other of element("legend").querySelectorAll("button")) other.ariaPressed = "false";
      button.ariaPressed = String(!on);
      rest();
    });
    item.append(button);
    return item;
  }));
  shown.described = order.map((i) => `${shown.names[i]} ${(100 * shown.shares[i]).toFixed(0)} %`).join(", ");
  describe();
}

function describe() {
  element("picture").ariaLabel = view() === "labels" ? shown.described : "Groups, before they are named";
}

function show(result, name, seconds) {
  shown = result;
  const [labels, groups] = document.querySelectorAll("input[name=view]");
  groups.disabled = !result.groups; // windows have groups of their own
  if (groups.disabled) labels.checked = true;
  element("legend").hidden = view() !== "labels";
  element("result").hidden = false;
  legend();
  paint();
  const unseen = result.unseen.length ? ` The model does not know: ${result.unseen.join(", ")}.` : "";
  tell(`${name}: ${seconds.toFixed(1)} s, ${result.photo.width} × ${result.photo.height} pixels.${unseen}`);
}

function save(canvas, name) {
  canvas.toBlob((blob) => {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

function labelMap() {
  const canvas = Object.assign(document.createElement("canvas"), { width: shown.photo.width, height: shown.photo.height });
  const image = new ImageData(canvas.width, canvas.height);
  const colours = shown.colours.labels.map((colour) => [...rgb(colour), 255]);
  shown.map.forEach((label, i) => image.data.set(colours[label], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// ---- what the visitor does

let [file, encoding, turn] = [null, null, 0]; // `encoding` is of the latest photo that was asked about
let pointed; // what the pointer is on, in the picture
let queue = Promise.resolve(); // the model does one thing at a time

function choose(photo) {
  turn++; // whatever was on its way is overtaken
  file = photo;
  if (element("words").value.trim()) run();
  else tell(nextStep());
}

function nextStep() {
  if (!file) return "Ready: choose a photo.";
  return element("words").value.trim() ? "" : `${file.name || "The photo"}: now type what to look for.`;
}

function run() {
  const [mine, chosen, asked] = [++turn, file, element("words").value];
  queue = queue.then(async () => {
    if (mine !== turn) return; // overtaken
    try {
      if (!chosen) throw new Mistake("Choose a photo first.");
      parseLabels(asked);
      const model = await ready;
      const began = performance.now();
      tell("Looking …");
      if (encoding?.file !== chosen) {
        const photo = await decoded(chosen);
        encoding = { file: chosen, photo, ...(await encode(model, photo)) };
      }
      const labels = await nameLabels(model, asked);
      const result = segment(model, encoding.photo, encoding, labels);
      if (mine === turn) show(result, chosen.name || "The photo", (performance.now() - began) / 1000);
    } catch (error) {
      if (!(error instanceof Mistake)) console.error(error);
      tell(error instanceof Mistake ? error.message : "That did not work. Try another photo, or reload the page.", true);
    }
  });
}

element("form").addEventListener("submit", (event) => (event.preventDefault(), run()));
element("photo").addEventListener("change", ({ target }) => target.files[0] && choose(target.files[0]));
element("example").addEventListener("click", async () => {
  const mine = ++turn;
  const { example, words } = await ready;
  const blob = await (await fetch(example)).blob();
  if (mine !== turn) return; // the visitor has chosen otherwise
  element("words").value = words;
  choose(new File([blob], example));
});
for (const radio of document.querySelectorAll("input[name=view]")) {
  radio.addEventListener("change", () => {
    element("legend").hidden = view() !== "labels";
    describe();
    rest();
  });
}
element("picture").addEventListener("pointermove", ({ offsetX, offsetY, target }) => {
  const [x, y] = [(offsetX / target.clientWidth) * target.width, (offsetY / target.clientHeight) * target.height].map(Math.floor);
  const under = (view() === "labels" ? shown.map : shown.groups)[y * target.width + x] ?? null;
  if (under !== pointed) paint((pointed = under)); // a whole photo is painted in a tenth of a second
});
element("picture").addEventListener("pointerleave", rest);
element("save-picture").addEventListener("click", () => (rest(), save(element("picture"), "segments.png")));
element("save-map").addEventListener("click", () => save(labelMap(), "labels.png"));
for (const [event, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(event, (dragged) => {
    dragged.preventDefault();
    document.body.classList.toggle("over", over);
    if (event === "drop" && dragged.dataTransfer.files[0]) choose(dragged.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", ({ clipboardData }) => {
  // Office programs put a picture of the text beside it.
  if (clipboardData.files[0] && !clipboardData.types.includes("text/plain")) choose(clipboardData.files[0]);
});

const ready = loadModel();
ready.then(
  () => tell(nextStep()),
  (error) => {
    if (!(error instanceof Mistake)) console.error(error);
    tell(error instanceof Mistake ? error.message : "The model could not be loaded. Reload the page.", true);
  },
);

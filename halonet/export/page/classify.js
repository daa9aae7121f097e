// A classifier that `halonet export --format web` wrote, run by onnxruntime-web in the browser.

const SHOWN = 5; // classes
const RUNTIME = "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
const find = (id) => document.getElementById(id);
const say = (text) => { find("status").textContent = text; };

async function load() {
  let runtime;
  try {
    runtime = await import(RUNTIME);
  } catch {
    throw new Error("onnxruntime-web isn't in this folder: run npm install in it");
  }
  runtime.env.wasm.numThreads = 1; // more need headers that a plain server doesn't send
  const response = await fetch("model.json");
  if (!response.ok) throw new Error(`no model.json: ${response.status}`);
  const facts = await response.json();
  const session = await runtime.InferenceSession.create("model.onnx");
  return { runtime, session, facts };
}

// Bytes [1, height, width, channels] of a file, upright and on white, as `halonet predict` reads it.
async function readPixels(file, channels) {
  const bitmap = await createImageBitmap(file, {
    colorSpaceConversion: "none",
    imageOrientation: "from-image",
  });
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const pixels = new Uint8Array(width * height * channels);
  for (let from = 0, to = 0; from < data.length; from += 4, to += channels) {
    if (channels === 3) {
      pixels[to] = data[from];
      pixels[to + 1] = data[from + 1];
      pixels[to + 2] = data[from + 2];
    } else {
      // Pillow's grey.
      pixels[to] = (19595 * data[from] + 38470 * data[from + 1] + 7471 * data[from + 2] + 32768) >> 16;
    }
  }
  return { pixels, shape: [1, height, width, channels] };
}

function findProbabilities(logits, task) {
  if (task === "multilabel") return logits.map((one) => 1 / (1 + Math.exp(-one)));
  const largest = Math.max(...logits);
  const weights = logits.map((one) => Math.exp(one - largest));
  const sum = weights.reduce((total, one) => total + one, 0);
  return weights.map((one) => one / sum);
}

function show(probabilities, names) {
  const order = probabilities.map((_, index) => index).sort((a, b) => probabilities[b] - probabilities[a]);
  const rows = order.slice(0, SHOWN).map((index) => {
    const row = document.createElement("tr");
    const bar = document.createElement("meter");
    bar.value = probabilities[index];
    const share = `${(100 * probabilities[index]).toFixed(2)} %`;
    for (const content of [names?.[index] ?? `class ${index}`, bar, share]) {
      row.insertCell().append(content);
    }
    row.lastChild.className = "share";
    return row;
  });
  find("predictions").replaceChildren(...rows);
}

async function classify(file, { runtime, session, facts }) {
  say(`Reading ${file.name}`);
  find("predictions").replaceChildren();
  const picture = find("picture");
  URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(file);
  picture.hidden = false;
  const { pixels, shape } = await readPixels(file, facts.in_channels);
  const photos = new runtime.Tensor("uint8", pixels, shape);
  const started = performance.now();
  const { logits } = await session.run({ photos });
  const milliseconds = performance.now() - started;
  show(findProbabilities([...logits.data], facts.task), facts.class_names);
  say(`${file.name}: ${milliseconds.toFixed(0)} ms`);
}

async function main() {
  const model = await load();
  const { facts } = model;
  find("model").textContent = `${facts.model}, ${(facts.parameters / 1e6).toFixed(2)} million parameters`;
  // One picture after the other.
  let last = Promise.resolve();
  const take = (file) => {
    if (!file) return;
    last = last.then(() => classify(file, model)).catch((error) => {
      find("picture").hidden = true;
      say(`${file.name} can't be read as a picture: ${error.message}`);
    });
  };
  const target = find("target");
  find("file").addEventListener("change", (event) => {
    take(event.target.files[0]);
    event.target.value = ""; // the same file may be chosen again
  });
  target.addEventListener("dragover", (event) => {
    event.preventDefault();
    target.classList.add("over");
  });
  target.addEventListener("dragleave", () => target.classList.remove("over"));
  target.addEventListener("drop", (event) => {
    event.preventDefault();
    target.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
  find("file").disabled = false;
  say("Ready.");
}

main().catch((error) => say(`The model can't be loaded: ${error.message}`));

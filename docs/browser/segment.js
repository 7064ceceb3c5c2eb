// From a photo's groups and words to its label map, as groupvit.segmentation decides. Plain functions over typed arrays.

const LONGEST = 2048 / 448; // bound on the long side, in short sides
const MAX_WORDS = 100;
export const BACKGROUND = "background";

/** An error whose message is for the visitor. */
export class Mistake extends Error {}

/** Return labels with their words: a comma ends a label, after `person=man,woman` only before a space or another =. */
export function parseLabels(text) {
  const tidy = (word) => word.replace(/^[\s_"'“”‘’]+|[\s_"'“”‘’]+$/g, "").replace(/[\s_]+/g, " ");
  const parts = text.split(/[;\n]+|,\s+|,(?=[^,;\n]*=)/).flatMap((part) => (part.includes("=") ? [part] : part.split(",")));
  const labels = parts.filter((part) => part.trim()).map((part) => {
    const [name, words, more] = part.split("=");
    if (more !== undefined) throw new Mistake(`“${part.trim()}” has two =: write it as person=man,woman`);
    return { name: tidy(name), words: (words ?? name).split(",").map(tidy), typed: words !== undefined };
  });
  if (!labels.length) throw new Mistake("Type what to look for, such as: cat, grass, sky");
  const all = labels.flatMap((label) => label.words);
  if (all.length > MAX_WORDS) throw new Mistake(`More than ${MAX_WORDS} words: look for fewer at once.`);
  if (labels.some(({ name, words }) => !name || words.some((word) => !word))) {
    throw new Mistake("A label has a blank word: write it as cat, or as person=man,woman");
  }
  const twice = [labels.map((label) => label.name), all]
    .flatMap((list) => list.filter((word, i) => list.findIndex((other) => other.toLowerCase() === word.toLowerCase()) < i));
  if (twice.length) throw new Mistake(`“${twice[0]}” is there twice: drop one of them.`);
  const isBackground = (label) => label.name.toLowerCase() === BACKGROUND;
  if (labels.some((label) => isBackground(label) && !label.typed)) {
    throw new Mistake("The label background needs words, as in background=wall,floor");
  }
  const named = labels.filter(isBackground).map((label) => ({ ...label, name: BACKGROUND }));
  return [...named, ...labels.filter((label) => !isBackground(label))];
}

/** Return the indices of the model's nouns that compete with the words: stuff, and what is unlike each of them. */
export function chooseRivals(words, likeness, { nouns, stuff, families, people, unlike }) {
  const parts = new Set(words.flatMap((word) => [word.toLowerCase(), ...word.toLowerCase().split(" ")]));
  for (const [plural, singular] of [["s", ""], ["es", ""], ["ies", "y"], ["ves", "f"]]) {
    for (const part of [...parts]) if (part.endsWith(plural)) parts.add(part.slice(0, -plural.length) + singular);
  }
  const touched = [...families, people].filter((family) => family.some((word) => parts.has(word)));
  const kin = new Set([...parts, ...touched.flat()]);
  return nouns.flatMap((noun, i) => (!kin.has(noun) && (stuff.includes(noun) || likeness[i] < unlike) ? [i] : []));
}

/** Return which of a label's words the model takes for something else: no nouns of its own, and like none among them. */
export function strangers(words, vectors, { nouns, unlike }) {
  const known = vectors.filter((_, i) => nouns.includes(words[i].toLowerCase()));
  const alike = (vector) => Math.max(...known.map((noun) => dot(noun, vector))) >= unlike;
  return words.filter((word, i) => known.length && !nouns.includes(word.toLowerCase()) && !alike(vectors[i]));
}

export const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);

/** Return each segment's scores: the softmax over labels of the best of their words' scaled cosines. */
export function scores(segments, labels, scale) {
  return segments.map((segment) => {
    const logits = labels.map((vectors) => scale * Math.max(...vectors.map((vector) => dot(segment, vector))));
    const exps = logits.map((logit) => Math.exp(logit - Math.max(...logits)));
    const sum = exps.reduce((a, b) => a + b);
    return exps.map((exp) => exp / sum);
  });
}

/** Return the width and height at which a photo is encoded. */
export function encodedSize(width, height, shortSide) {
  const scale = Math.min(shortSide / Math.min(width, height), (LONGEST * shortSide) / Math.max(width, height));
  return [width, height].map((side) => Math.max(1, Math.floor(side * scale + 0.5)));
}

/** Return a photo's red, green and blue planes at another size, resized as Pillow does: a triangle as wide as needed. */
export function resize(rgba, width, height, toWidth, toHeight) {
  const [along, down] = [triangles(width, toWidth), triangles(height, toHeight)];
  const wide = new Uint8ClampedArray(3 * height * toWidth); // rounded between the two directions, as in Pillow
  const pixels = new Uint8ClampedArray(3 * toHeight * toWidth);
  for (let c = 0; c < 3; c++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < toWidth; x++) {
        const { first, weights } = along[x];
        let sum = 0;
        for (let i = 0; i < weights.length; i++) sum += weights[i] * rgba[4 * (y * width + first + i) + c];
        wide[(c * height + y) * toWidth + x] = sum;
      }
    }
    for (let y = 0; y < toHeight; y++) {
      const { first, weights } = down[y];
      for (let x = 0; x < toWidth; x++) {
        let sum = 0;
        for (let i = 0; i < weights.length; i++) sum += weights[i] * wide[(c * height + first + i) * toWidth + x];
        pixels[(c * toHeight + y) * toWidth + x] = sum;
      }
    }
  }
  return new Uint8Array(pixels.buffer);
}

function triangles(from, to) {
  const scale = from / to;
  const reach = Math.max(1, scale);
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(from, Math.trunc(centre + reach + 0.5));
    const weights = Array.from({ length: end - first }, (_, k) => Math.max(0, 1 - Math.abs(first + k + 0.5 - centre) / reach));
    const sum = weights.reduce((a, b) => a + b);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

/** Return the windows over an encoded photo; up to 2 : 1 there is one, the whole photo. */
export function windows(width, height, shortSide) {
  const window = 2 * shortSide;
  const starts = (length) => {
    const last = Math.max(length - window, 0);
    return [...Array(Math.ceil(last / shortSide)).keys()].map((i) => i * shortSide).concat(last);
  };
  return starts(height).flatMap((top) =>
    starts(width).map((left) => ({ top, left, height: Math.min(window, height), width: Math.min(window, width) })),
  );
}

// For each of `count` pixels, `step` cells apart: the two nearest cells, and the second one's weight.
function taps(count, step, cells) {
  const places = Float64Array.from({ length: count }, (_, i) => Math.min(Math.max((i + 0.5) * step - 0.5, 0), cells - 1));
  const low = Int32Array.from(places, Math.floor);
  const high = low.map((cell) => Math.min(cell + 1, cells - 1));
  return { low, high, weight: places.map((place, i) => place - low[i]) };
}

/** Return the map with the largest value at each pixel, after bilinear resampling; `steps` are cells per pixel. */
export function winners({ data, dims: [, count, rows, columns] }, width, height, steps) {
  const [along, down] = [taps(width, steps[0], columns), taps(height, steps[1], rows)];
  const { low, high, weight } = along;
  const owners = new Uint16Array(width * height);
  const best = new Float32Array(width);
  const line = new Float32Array(columns);
  for (let y = 0; y < height; y++) {
    const start = y * width;
    best.fill(-Infinity);
    for (let group = 0; group < count; group++) {
      const [above, below] = [(group * rows + down.low[y]) * columns, (group * rows + down.high[y]) * columns];
      for (let c = 0; c < columns; c++) line[c] = data[above + c] + down.weight[y] * (data[below + c] - data[above + c]);
      for (let x = 0; x < width; x++) {
        const left = line[low[x]];
        const value = left + weight[x] * (line[high[x]] - left);
        if (value > best[x]) {
          best[x] = value;
          owners[start + x] = group;
        }
      }
    }
  }
  return owners;
}

/** Return a table of label scores, and each pixel's row of it: the mean over the groups that own the pixel.
 *
 * A pixel belongs to one group of each size of grouping, in each window that shows it. Pixels of the same groups share
 * a row. `encoded` are windows with their `finals`: owners of the pixels, and `fit`, scores of the groups. */
export function sharedScores(encoded, width, height, labels) {
  const [sums, counts, rows] = [[Array(labels).fill(0)], [0], new Int32Array(width * height)];
  for (const { top, left, width: across, height: down, finals } of encoded) {
    for (const { owners, fit } of finals) {
      const known = new Map();
      let [last, row] = [-1, 0]; // neighbours mostly have the same groups
      for (let y = 0; y < down; y++) {
        for (let x = 0; x < across; x++) {
          const at = (top + y) * width + left + x;
          const owner = owners[y * across + x];
          const pair = rows[at] * fit.length + owner;
          if (pair !== last) {
            if (!known.has(pair)) {
              known.set(pair, sums.length);
              sums.push(sums[rows[at]].map((sum, label) => sum + fit[owner][label]));
              counts.push(counts[rows[at]] + 1);
            }
            [last, row] = [pair, known.get(pair)];
          }
          rows[at] = row;
        }
      }
    }
  }
  return { table: sums.map((sum, i) => sum.map((score) => score / Math.max(1, counts[i]))), rows };
}

/** Return the best label of each pixel of the photo, and of each label its share of the photo and its mean score. */
export function decide({ table, rows }, from, width, height) {
  const [along, down] = [taps(width, from.width / width, from.width), taps(height, from.height / height, from.height)];
  const labels = table[0].length;
  const best = table.map((row) => row.indexOf(Math.max(...row)));
  const map = new Uint8Array(width * height);
  const [counts, sums] = [Array(labels).fill(0), Array(labels).fill(0)];
  for (let y = 0; y < height; y++) {
    const [top, bottom, low] = [down.low[y] * from.width, down.high[y] * from.width, down.weight[y]];
    for (let x = 0; x < width; x++) {
      const [left, right, far] = [along.low[x], along.high[x], along.weight[x]];
      const [a, b, c, d] = [rows[top + left], rows[top + right], rows[bottom + left], rows[bottom + right]];
      let winner = best[a];
      let highest = table[a][winner];
      if (a !== b || a !== c || a !== d) {
        highest = -1;
        for (let label = 0; label < labels; label++) {
          const above = table[a][label] + far * (table[b][label] - table[a][label]);
          const below = table[c][label] + far * (table[d][label] - table[c][label]);
          const score = above + low * (below - above);
          if (score > highest) [highest, winner] = [score, label];
        }
      }
      map[y * width + x] = winner;
      counts[winner]++;
      sums[winner] += highest;
    }
  }
  return { map, shares: counts.map((n) => n / map.length), scores: sums.map((sum, i) => sum / Math.max(1, counts[i])) };
}

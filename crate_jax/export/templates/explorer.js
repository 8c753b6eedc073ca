// The explorer: every map on it is computed here, from what the network captured of each image.
//
// One state, one `draw`. A token is 0 for [CLS] and 1 + i for patch i in reading order; a head is
// -1 for all of them. The numbers drawn last are `document.getElementById("explorer").drawn`.
"use strict";
(() => {
  const root = document.getElementById("explorer");
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const find = (name) => document.getElementById(`explorer-${name}`);
  const stages = [find("photo"), find("map")];

  // -- arrays ------------------------------------------------------------------------------------

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const floats = (text) => text && new Float32Array(bytes(text).buffer);
  const tensor = (codes, scales) => ({
    codes: new Int8Array(bytes(codes).buffer),
    scales: floats(scales),
  });
  const colors = bytes(data.colors); // 256 times red, green, blue

  const unpacked = new Map(); // images are decoded when they are first looked at
  function arrays(index) {
    if (!unpacked.has(index)) {
      const image = data.images[index];
      const query = tensor(image.query, image.query_scale);
      const key = image.key ? tensor(image.key, image.key_scale) : query; // CRATE: both are w
      unpacked.set(index, {
        ...image,
        patches: image.rows * image.columns,
        query,
        key,
        graph: image.key_unrotated ? tensor(image.key_unrotated, image.key_unrotated_scale) : key,
        vectors: new Int8Array(bytes(image.vectors).buffer),
        masks: bytes(image.masks),
        gaps: floats(image.gaps),
        object: floats(image.object),
        pixels: floats(image.pixels),
      });
    }
    return unpacked.get(index);
  }

  // <a_i, b_j> over the channels from `begin` to `end`.
  function product(image, layer, a, i, b, j, begin, end) {
    const tokens = image.patches + 1;
    const first = (layer * tokens + i) * image.width;
    const second = (layer * tokens + j) * image.width;
    let sum = 0;
    for (let c = begin; c < end; c++) sum += a.codes[first + c] * b.codes[second + c];
    return sum * a.scales[layer * tokens + i] * b.scales[layer * tokens + j];
  }

  function channels(image, head) {
    const size = image.width / image.heads;
    return head < 0 ? [0, image.width] : [head * size, (head + 1) * size];
  }

  // -- the three maps, one number a patch --------------------------------------------------------

  // Softmax over the patches of <q_token, k_j> / sqrt(d_head); all heads: their mean.
  function attention(image, layer, head, token) {
    if (head < 0) {
      const mean = new Float64Array(image.patches);
      for (let h = 0; h < image.heads; h++) {
        attention(image, layer, h, token).forEach((x, j) => { mean[j] += x / image.heads; });
      }
      return mean;
    }
    const range = channels(image, head);
    const root_d = Math.sqrt(range[1] - range[0]);
    const map = new Float64Array(image.patches);
    for (let j = 0; j < map.length; j++) {
      map[j] = product(image, layer, image.query, token, image.key, j + 1, ...range) / root_d;
    }
    const top = map.reduce((a, b) => Math.max(a, b));
    const exponentials = map.map((x) => Math.exp(x - top));
    const sum = exponentials.reduce((a, b) => a + b);
    return exponentials.map((x) => x / sum);
  }

  // Cosine of k_token and k_j, rotary positions aside; over all heads side by side it is what MaskCut joins patches by.
  function similarity(image, layer, head, token) {
    const range = channels(image, head);
    const k = image.graph;
    const length = (j) => Math.sqrt(product(image, layer, k, j, k, j, ...range));
    const own = length(token);
    const map = new Float64Array(image.patches);
    for (let j = 0; j < map.length; j++) {
      const lengths = own * length(j + 1);
      map[j] = lengths > 0 ? product(image, layer, k, token, k, j + 1, ...range) / lengths : 0;
    }
    return map;
  }

  // The second eigenvector of the patches' graph, its largest magnitude 1.
  const cutAt = (layer) => layer * data.taus.length + state.tau;
  function eigenvector(image, layer) {
    const begin = cutAt(layer) * image.patches;
    return Float64Array.from(image.vectors.subarray(begin, begin + image.patches), (x) => x / 127);
  }

  // -- what of a map is kept, one bool a patch ---------------------------------------------------

  // The smallest set of patches that holds `fraction` of the mass, as `attention.keep_mass`.
  function keepMass(map, fraction) {
    const order = [...map.keys()].sort((a, b) => map[a] - map[b] || a - b);
    const dropped = (1 - fraction) * (1 + 1e-6) * map.reduce((a, b) => a + b);
    const kept = new Array(map.length).fill(false);
    let cumulative = 0;
    for (const j of order) {
      cumulative += map[j];
      kept[j] = cumulative > dropped;
    }
    return kept;
  }

  function cutMask(image, layer) {
    const begin = cutAt(layer) * image.patches;
    return Array.from({ length: image.patches }, (_, j) => {
      const bit = begin + j;
      return Boolean((image.masks[bit >> 3] >> (7 - (bit & 7))) & 1);
    });
  }

  const views = {
    attention: {
      map: attention,
      range: (map) => [0, Math.max(...map)],
      kept: (image, map) => keepMass(map, state.mass / 100),
    },
    similarity: {
      map: similarity,
      range: () => [0, 1],
      kept: (image, map) => Array.from(map, (x) => x > data.taus[state.tau]),
    },
    cut: {
      map: eigenvector,
      range: (map) => [Math.min(...map), Math.max(...map)],
      kept: (image, map, layer) => cutMask(image, layer),
    },
  };

  // IoU of kept patches with the true object, by pixels; null where there is none.
  function fit(image, kept) {
    if (!image.object) return null;
    let both = 0, either = 0;
    kept.forEach((inside, j) => {
      both += inside ? image.object[j] : 0;
      either += inside ? image.pixels[j] : image.object[j];
    });
    return either ? both / either : 0;
  }

  // -- drawing -----------------------------------------------------------------------------------

  const state = {
    image: 0, token: 0, pinned: 0, layer: data.first, head: -1,
    view: "attention", mass: Math.round(100 * data.keep), tau: data.tau,
  };

  function paint(canvas, image, color) {
    canvas.width = image.columns;
    canvas.height = image.rows;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(image.columns, image.rows);
    for (let j = 0; j < image.patches; j++) picture.data.set(color(j), 4 * j);
    context.putImageData(picture, 0, 0);
  }

  function paintMap(canvas, image, map, [low, high]) {
    paint(canvas, image, (j) => {
      const share = high > low ? (map[j] - low) / (high - low) : 0;
      const at = 3 * Math.round(255 * Math.min(1, Math.max(0, share)));
      return [colors[at], colors[at + 1], colors[at + 2], 255];
    });
  }

  // The border of the kept patches, as a path in a picture of one unit a patch.
  function border(image, kept) {
    const at = (row, column) => row >= 0 && row < image.rows && column >= 0
      && column < image.columns && kept[row * image.columns + column];
    let path = "";
    for (let row = 0; row <= image.rows; row++) {
      for (let column = 0; column <= image.columns; column++) {
        if (at(row, column) !== at(row - 1, column)) path += `M${column} ${row}h1`;
        if (at(row, column) !== at(row, column - 1)) path += `M${column} ${row}v1`;
      }
    }
    return path;
  }

  const place = (image, j) => `row ${1 + Math.floor(j / image.columns)}, column ${1 + (j % image.columns)}`;
  const percent = (x, digits = 0) => `${(100 * x).toFixed(digits)}\u00a0%`;

  function describe(image, map, kept) {
    const count = kept.filter(Boolean).length;
    const patches = `${count} of ${image.patches} patches`;
    const head = state.head < 0 ? "all heads" : `head ${state.head}`;
    const who = state.token ? `Patch at ${place(image, state.token - 1)}` : "[CLS]";
    const top = map.indexOf(Math.max(...map));
    const iou = fit(image, kept);
    const tau = data.taus[state.tau].toFixed(2);
    const said = {
      attention: () => `attends most to ${place(image, top)}: ${percent(map[top], 1)}. `
        + `${state.mass}\u00a0% of its attention lies on ${patches}.`,
      similarity: () => `its cosine with ${patches} is above τ\u00a0=\u00a0${tau}`
        + `${state.head < 0 ? ": MaskCut joins it to these" : ""}.`,
      cut: () => `MaskCut's first mask at τ\u00a0=\u00a0${tau} holds ${patches}; `
        + `eigengap ${image.gaps[cutAt(state.layer)].toPrecision(2)}.`,
    }[state.view]();
    const where = `Layer ${data.layers[state.layer]}, ${head}`;
    find("where").textContent = state.view === "cut" ? where : `${where}. ${who}`;
    find("text").textContent = said.charAt(0).toUpperCase() + said.slice(1);
    find("fit").textContent = iou === null ? "" : `IoU with the true object: ${iou.toFixed(2)}`;
  }

  function draw() {
    const image = arrays(state.image);
    const view = views[state.view];
    const map = view.map(image, state.layer, state.head, state.token);
    const kept = view.kept(image, map, state.layer);
    paintMap(stages[1].querySelector("canvas"), image, map, view.range(map));
    paint(stages[0].querySelector("canvas"), image, (j) => [10, 8, 16, kept[j] ? 0 : 178]);
    const outline = border(image, kept);
    const asked = state.token && state.view !== "cut";
    for (const stage of stages) {
      const marks = stage.querySelector("svg");
      marks.setAttribute("viewBox", `0 0 ${image.columns} ${image.rows}`);
      for (const path of marks.querySelectorAll(".kept")) path.setAttribute("d", outline);
      for (const marker of marks.querySelectorAll(".asked")) {
        marker.style.display = asked ? "" : "none";
        marker.setAttribute("x", (state.token - 1) % image.columns);
        marker.setAttribute("y", Math.floor((state.token - 1) / image.columns));
      }
    }
    for (const { canvas, layer, head } of tiles) {
      const small = view.map(image, layer, head, state.token);
      paintMap(canvas, image, small, view.range(small));
    }
    find("cls").setAttribute("aria-pressed", String(!state.token));
    describe(image, map, kept);
    root.drawn = { values: Array.from(map), kept };
  }

  let due = false; // at most one drawing a frame, however fast the pointer
  function change(changes) {
    Object.assign(state, changes);
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; draw(); });
  }

  // -- controls ----------------------------------------------------------------------------------

  function choice(parent, group, value, label, checked, content) {
    const box = document.createElement("label");
    const input = Object.assign(document.createElement("input"), {
      type: "radio", name: `explorer-${group}`, value, checked,
    });
    input.setAttribute("aria-label", label);
    const face = document.createElement("span");
    face.append(content);
    box.append(input, face);
    parent.append(box);
    return input;
  }

  data.images.forEach((image, index) => {
    const photo = Object.assign(new Image(), { src: image.photo, alt: "" });
    photo.classList.toggle("pixels", image.small);
    const input = choice(find("images"), "image", index, image.name, index === 0, photo);
    input.addEventListener("change", () => { change({ token: 0, pinned: 0, image: index }); show(); });
  });

  let tiles = []; // a map of every layer and head
  function show() {
    const image = data.images[state.image];
    for (const stage of stages) stage.style.setProperty("--ratio", `${image.columns} / ${image.rows}`);
    const photo = stages[0].querySelector("img");
    photo.src = image.photo;
    photo.classList.toggle("pixels", image.small);
    find("name").textContent = image.name;
    arrange();
  }

  // The table of small maps: a row a layer; a column a head, but for the cut, which reads them all.
  function arrange() {
    const image = data.images[state.image];
    const heads = state.view === "cut" ? [] : [...Array(image.heads).keys()];
    if (state.head >= heads.length) state.head = -1;
    const table = find("heads");
    const focused = table.contains(document.activeElement);
    table.replaceChildren();
    table.style.setProperty("--heads", image.heads + 1);
    table.style.setProperty("--ratio", `${image.columns} / ${image.rows}`);
    const cell = (name, text) => table.append(Object.assign(document.createElement("span"), { className: name, textContent: text }));
    cell("corner", "");
    for (const head of [-1, ...heads]) cell("head-name", head < 0 ? "all" : head);
    tiles = [];
    data.layers.forEach((number, layer) => {
      cell("layer-name", number);
      for (const head of [-1, ...heads]) {
        const canvas = document.createElement("canvas");
        const label = `layer ${number}, ${head < 0 ? "all heads" : `head ${head}`}`;
        const checked = layer === state.layer && head === state.head;
        const input = choice(table, "head", `${layer},${head}`, label, checked, canvas);
        input.addEventListener("change", () => change({ layer, head }));
        if (checked && focused) input.focus();
        tiles.push({ canvas, layer, head });
      }
    });
    find("mass-row").hidden = state.view !== "attention";
    find("tau-row").hidden = state.view === "attention";
    find("cls").hidden = state.view === "cut"; // which asks no token
    change({});
  }

  for (const input of root.querySelectorAll("[name=explorer-view]")) {
    input.addEventListener("change", () => { state.view = input.value; arrange(); });
  }
  const slide = (name, format, store) => {
    const slider = find(name);
    const update = () => {
      find(`${name}-value`).textContent = format(slider.valueAsNumber);
      slider.setAttribute("aria-valuetext", format(slider.valueAsNumber));
      change(store(slider.valueAsNumber));
    };
    slider.addEventListener("input", update);
    update();
  };
  find("mass").value = state.mass;
  find("tau").max = data.taus.length - 1;
  find("tau").value = state.tau;
  slide("mass", (x) => `${x}\u00a0%`, (mass) => ({ mass }));
  slide("tau", (x) => data.taus[x].toFixed(2), (tau) => ({ tau }));
  find("cls").addEventListener("click", () => change({ token: 0, pinned: 0 }));

  // -- pointing: hovering asks, a click or a finger stays, keys move ------------------------------

  function tokenAt(stage, event) {
    const image = data.images[state.image];
    const box = stage.getBoundingClientRect();
    const index = (offset, length, count) =>
      Math.min(count - 1, Math.max(0, Math.floor((offset / length) * count)));
    const row = index(event.clientY - box.top, box.height, image.rows);
    const column = index(event.clientX - box.left, box.width, image.columns);
    return 1 + row * image.columns + column;
  }

  function moved(key) {
    const { rows, columns } = data.images[state.image];
    if (!state.pinned) return 1 + Math.floor(rows / 2) * columns + Math.floor(columns / 2);
    const row = Math.floor((state.pinned - 1) / columns);
    const column = (state.pinned - 1) % columns;
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[key];
    const within = (x, count) => Math.min(count - 1, Math.max(0, x));
    return 1 + within(row + down, rows) * columns + within(column + right, columns);
  }

  for (const stage of stages) {
    stage.addEventListener("pointermove", (event) => {
      const token = tokenAt(stage, event);
      change(event.buttons ? { token, pinned: token } : { token });
    });
    stage.addEventListener("pointerdown", (event) => {
      const token = tokenAt(stage, event);
      change({ token, pinned: token });
    });
    stage.addEventListener("pointerleave", () => change({ token: state.pinned }));
    stage.addEventListener("keydown", (event) => {
      const arrow = event.key.startsWith("Arrow");
      if (!arrow && !["Home", "Escape"].includes(event.key)) return;
      event.preventDefault();
      const token = arrow ? moved(event.key) : 0;
      change({ token, pinned: token });
    });
  }

  root.hidden = false;
  show();
})();

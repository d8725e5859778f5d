// Canvases of the page: the cache as a bar that moves, sparklines, stages of a step. Knows no socket. Units: tokens, milliseconds.

export const COLOURS = { system: "#64748b", sink: "#f5b83d", window: "#f08a4b", user: "#38bdf8", vision: "#8b7cf6", reply: "#34d399" };
export const NAMES = { system: "instructions", sink: "first words", window: "last words", user: "times, questions", vision: "pictures", reply: "newest comments" };
const STAGES = { vision: "#8b7cf6", prefill: "#38bdf8", decode: "#34d399", other: "#64748b" };
const EVICTED = "#ff5d73", MOVE_MS = 450, FADE_MS = 800, BAR_MULTIPLE = 128;
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

// A colour of the page, light or dark; cached until that changes, for reading a style is slow.
const theme = matchMedia("(prefers-color-scheme: light)"), colours = new Map();
theme.addEventListener("change", () => colours.clear());
export function onTheme(repaint) { theme.addEventListener("change", repaint); }
export function colourOf(name) {
  if (!colours.has(name)) colours.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`));
  return colours.get(name);
}

// A context whose units are CSS pixels, cleared.
export function clearContext(canvas) {
  const { width, height } = canvas.getBoundingClientRect(), scale = devicePixelRatio || 1;
  const w = Math.max(1, Math.round(width * scale)), h = Math.max(1, Math.round(height * scale));
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  return [pen, width, height];
}

export class CacheBar {
  constructor(canvas, kinds) {
    this.canvas = canvas; this.kinds = kinds; this.clear();
    new ResizeObserver(() => this.paint()).observe(canvas);
    onTheme(() => this.paint());
    canvas.addEventListener("pointermove", (event) => this.describe(event));
  }

  clear() { this.blocks = new Map(); this.removed = []; this.capacity = this.maxUsed = 1; this.used = 0; this.frame = 0; this.paint(); }

  // Tokens that the bar is long: the most that this stream ever used, rounded up. Most of the cache would stay empty.
  get length() { return Math.min(this.capacity, Math.ceil(Math.max(1, this.maxUsed) / BAR_MULTIPLE) * BAR_MULTIPLE); }

  // retained, evicted: runs [kind, tokens, second of the turn or null] in cache order. Blocks move from where they were drawn to where
  // they are now; what was evicted flashes.
  show({ retained, evicted }, capacity) {
    const now = performance.now(), previous = this.blocks, shrunk = new Set(evicted.map(([kind, , second]) => this.key(kind, second)));
    const progress = this.progress(now);
    this.blocks = new Map(); this.removed = []; this.capacity = capacity; this.startTime = now;
    let start = 0;
    const counts = new Map(); // a turn may have several runs of a kind: the nth of them has the same key in every step
    for (const [kind, length, second] of retained) {
      const base = this.key(kind, second), nth = counts.get(base) || 0, key = `${base}/${nth}`;
      counts.set(base, nth + 1);
      const before = previous.get(key);
      const from = before ? [mix(before.from[0], before.start, progress), mix(before.from[1], before.length, progress)] : [start, 0];
      this.blocks.set(key, { kind: this.kinds[kind], second, start, length, from, isNew: !before });
      start += length;
    }
    this.used = start; this.maxUsed = Math.max(this.maxUsed, start);
    for (const [key, block] of previous) {
      if (!this.blocks.has(key)) this.removed.push(block);
      else if (shrunk.has(key.slice(0, key.lastIndexOf("/"))) && this.blocks.get(key).length < block.length) this.blocks.get(key).isCut = true;
    }
    this.animate();
  }

  key(kind, second) { return `${kind}@${second}`; }
  progress(now) { return reducedMotion.matches || !this.startTime ? 1 : ease(Math.min(1, (now - this.startTime) / MOVE_MS)); }

  animate() {
    cancelAnimationFrame(this.frame);
    const step = () => { this.paint(); if (performance.now() - this.startTime < FADE_MS) this.frame = requestAnimationFrame(step); else { this.removed = []; this.paint(); } };
    step();
  }

  paint() {
    const [pen, width, height] = clearContext(this.canvas), top = 16, barHeight = height - 34, scale = width / this.length;
    const now = performance.now(), progress = this.progress(now), fade = Math.max(0, 1 - (now - (this.startTime || -1e9)) / FADE_MS);
    pen.fillStyle = colourOf("canvas"); round(pen, 0, top, width, barHeight, 8); pen.fill();
    pen.save(); round(pen, 0, top, width, barHeight, 8); pen.clip();
    pen.strokeStyle = colourOf("hatch"); pen.lineWidth = 1;
    for (let x = -barHeight; x < width; x += 9) { pen.beginPath(); pen.moveTo(x, top + barHeight); pen.lineTo(x + barHeight, top); pen.stroke(); }
    const marks = new Map();
    for (const block of this.blocks.values()) {
      const x = mix(block.from[0], block.start, progress) * scale, w = mix(block.from[1], block.length, progress) * scale;
      const gap = w > 5 ? 1 : 0;
      pen.fillStyle = COLOURS[block.kind]; pen.fillRect(x, top, Math.max(0.6, w - gap), barHeight);
      if (block.isNew && fade > 0) { pen.fillStyle = `rgba(255,255,255,${0.5 * fade})`; pen.fillRect(x, top, w - gap, barHeight); }
      if (block.isCut && fade > 0) { pen.globalAlpha = fade; pen.fillStyle = EVICTED; pen.fillRect(x, top, Math.max(4, w * 0.12), barHeight); pen.globalAlpha = 1; }
      if (block.second !== null) { const mark = marks.get(block.second); marks.set(block.second, [mark ? mark[0] : x, x + w]); }
    }
    for (const block of reducedMotion.matches ? [] : this.removed) {
      const x = block.start * scale, w = Math.max(2, block.length * scale * fade);
      pen.globalAlpha = fade; pen.fillStyle = EVICTED; pen.fillRect(x, top - 4 * fade, w, barHeight + 8 * fade); pen.globalAlpha = 1;
    }
    pen.restore();
    pen.font = "11px system-ui, sans-serif"; pen.textAlign = "center"; pen.fillStyle = colourOf("quiet");
    let last = -99;
    for (const [second, [left, right]] of marks) {
      const middle = (left + right) / 2;
      pen.fillStyle = colourOf("tick"); pen.fillRect(left + 1, top + barHeight + 3, Math.max(1, right - left - 3), 2);
      if (middle - last > 34) { pen.fillStyle = colourOf("quiet"); pen.fillText(`${+second.toFixed(1)} s`, middle, height - 1); last = middle; }
    }
    if (this.used) {
      pen.textAlign = "right"; pen.fillStyle = colourOf("text");
      pen.fillText(`${this.used} of ${this.capacity}`, Math.max(80, Math.min(width, this.used * scale)), 10);
    }
  }

  describe(event) {
    const box = this.canvas.getBoundingClientRect(), token = (event.clientX - box.left) / box.width * this.length;
    const block = [...this.blocks.values()].find((item) => token >= item.start && token < item.start + item.length);
    this.canvas.title = block ? `${NAMES[block.kind]}: ${block.length} tokens${block.second === null ? "" : `, second ${block.second}`}` : "free";
  }
}

// The last values as a filled line.
export function sparkline(canvas, values, colour) {
  const [pen, width, height] = clearContext(canvas);
  if (values.length < 2) return;
  const max = Math.max(...values) * 1.15 || 1, step = width / (values.length - 1);
  pen.beginPath();
  values.forEach((value, n) => pen.lineTo(n * step, height - 2 - (height - 5) * value / max));
  pen.strokeStyle = colour; pen.lineWidth = 1.6; pen.lineJoin = "round"; pen.stroke();
  pen.lineTo(width, height); pen.lineTo(0, height); pen.closePath();
  const fill = pen.createLinearGradient(0, 0, 0, height);
  fill.addColorStop(0, colour + "55"); fill.addColorStop(1, colour + "05");
  pen.fillStyle = fill; pen.fill();
}

// Steps as stacked columns: [{vision, prefill, decode, ...}] in milliseconds.
export function columns(canvas, steps, maxSteps) {
  const [pen, width, height] = clearContext(canvas), w = width / maxSteps;
  const totals = steps.map((ms) => Object.values(ms).reduce((a, b) => a + b, 0)), max = Math.max(1, ...totals);
  steps.forEach((ms, n) => {
    const x = width - (steps.length - n) * w;
    let y = height;
    const stages = { vision: ms.vision || 0, prefill: ms.prefill || 0, decode: ms.decode || 0 };
    stages.other = totals[n] - stages.vision - stages.prefill - stages.decode;
    for (const [stage, value] of Object.entries(stages)) {
      const h = (height - 3) * value / max;
      pen.fillStyle = STAGES[stage]; y -= h; pen.fillRect(x, y, Math.max(1, w - 1.2), h);
    }
  });
}

function mix(a, b, progress) { return a + (b - a) * progress; }
function ease(t) { return 1 - (1 - t) ** 3; }
function round(pen, x, y, w, h, r) { pen.beginPath(); pen.roundRect(x, y, w, h, r); }

// Canvases of the page: the cache as a bar that moves, sparklines, stages of a step. Knows no socket. Units: tokens, milliseconds.

export const COLOURS = { system: "#64748b", sink: "#f5b83d", window: "#f08a4b", user: "#38bdf8", vision: "#8b7cf6", reply: "#34d399" };
export const NAMES = { system: "instructions", sink: "first words", window: "last words", user: "times, questions", vision: "pictures", reply: "newest comments" };
const STAGES = { vision: "#8b7cf6", prefill: "#38bdf8", decode: "#34d399", other: "#64748b" };
const FLASH = "#ff5d73", MOVE = 450, FADE = 800, ROUNDED = 128;
const still = matchMedia("(prefers-reduced-motion: reduce)");

// A colour of the page, light or dark; kept until that changes.
const theme = matchMedia("(prefers-color-scheme: light)"), inks = new Map();
theme.addEventListener("change", () => inks.clear());
function ink(name) {
  if (!inks.has(name)) inks.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`));
  return inks.get(name);
}

// A context whose units are CSS pixels, cleared.
function begin(canvas) {
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
    theme.addEventListener("change", () => this.paint());
    canvas.addEventListener("pointermove", (event) => this.tell(event));
  }

  clear() { this.blocks = new Map(); this.ghosts = []; this.capacity = this.most = 1; this.used = 0; this.frame = 0; this.paint(); }

  // Tokens that the bar is long: the most that were ever in use here, rounded up. The rest of the cache is never used.
  get length() { return Math.min(this.capacity, Math.ceil(Math.max(1, this.most) / ROUNDED) * ROUNDED); }

  // held, gone: [[kind, tokens, second or null], ...] in order.
  show({ held, gone }, capacity) {
    const now = performance.now(), old = this.blocks, lost = new Map(gone.map(([kind, length, second]) => [this.key(kind, second), length]));
    const share = this.share(now);
    this.blocks = new Map(); this.ghosts = []; this.capacity = capacity; this.started = now;
    let at = 0;
    const seen = new Map();
    for (const [kind, length, second] of held) {
      const base = this.key(kind, second), nth = seen.get(base) || 0, key = `${base}/${nth}`;
      seen.set(base, nth + 1);
      const was = old.get(key);
      const from = was ? [mix(was.from[0], was.at, share), mix(was.from[1], was.length, share)] : [at, 0];
      this.blocks.set(key, { kind: this.kinds[kind], second, at, length, from, fresh: !was });
      at += length;
    }
    this.used = at; this.most = Math.max(this.most, at);
    for (const [key, block] of old) {
      if (!this.blocks.has(key)) this.ghosts.push(block);
      else if (lost.has(key.slice(0, key.lastIndexOf("/"))) && this.blocks.get(key).length < block.length) this.blocks.get(key).cut = true;
    }
    this.run();
  }

  key(kind, second) { return `${kind}@${second}`; }
  share(now) { return still.matches || !this.started ? 1 : ease(Math.min(1, (now - this.started) / MOVE)); }

  run() {
    cancelAnimationFrame(this.frame);
    const step = () => { this.paint(); if (performance.now() - this.started < FADE) this.frame = requestAnimationFrame(step); else { this.ghosts = []; this.paint(); } };
    step();
  }

  paint() {
    const [pen, width, height] = begin(this.canvas), top = 16, tall = height - 34, scale = width / this.length;
    const now = performance.now(), share = this.share(now), fade = Math.max(0, 1 - (now - (this.started || -1e9)) / FADE);
    pen.fillStyle = ink("canvas"); round(pen, 0, top, width, tall, 8); pen.fill();
    pen.save(); round(pen, 0, top, width, tall, 8); pen.clip();
    pen.strokeStyle = ink("hatch"); pen.lineWidth = 1;
    for (let x = -tall; x < width; x += 9) { pen.beginPath(); pen.moveTo(x, top + tall); pen.lineTo(x + tall, top); pen.stroke(); }
    const marks = new Map();
    for (const block of this.blocks.values()) {
      const x = mix(block.from[0], block.at, share) * scale, w = mix(block.from[1], block.length, share) * scale;
      const gap = w > 5 ? 1 : 0;
      pen.fillStyle = COLOURS[block.kind]; pen.fillRect(x, top, Math.max(0.6, w - gap), tall);
      if (block.fresh && fade > 0) { pen.fillStyle = `rgba(255,255,255,${0.5 * fade})`; pen.fillRect(x, top, w - gap, tall); }
      if (block.cut && fade > 0) { pen.globalAlpha = fade; pen.fillStyle = FLASH; pen.fillRect(x, top, Math.max(4, w * 0.12), tall); pen.globalAlpha = 1; }
      if (block.second !== null) { const mark = marks.get(block.second); marks.set(block.second, [mark ? mark[0] : x, x + w]); }
    }
    for (const ghost of still.matches ? [] : this.ghosts) {
      const x = ghost.at * scale, w = Math.max(2, ghost.length * scale * fade);
      pen.globalAlpha = fade; pen.fillStyle = FLASH; pen.fillRect(x, top - 4 * fade, w, tall + 8 * fade); pen.globalAlpha = 1;
    }
    pen.restore();
    pen.font = "11px system-ui, sans-serif"; pen.textAlign = "center"; pen.fillStyle = ink("quiet");
    let last = -99;
    for (const [second, [left, right]] of marks) {
      const middle = (left + right) / 2;
      pen.fillStyle = ink("tick"); pen.fillRect(left + 1, top + tall + 3, Math.max(1, right - left - 3), 2);
      if (middle - last > 34) { pen.fillStyle = ink("quiet"); pen.fillText(`${+second.toFixed(1)} s`, middle, height - 1); last = middle; }
    }
    if (this.used) {
      pen.textAlign = "right"; pen.fillStyle = ink("text");
      pen.fillText(`${this.used} of ${this.capacity}`, Math.max(80, Math.min(width, this.used * scale)), 10);
    }
  }

  tell(event) {
    const box = this.canvas.getBoundingClientRect(), token = (event.clientX - box.left) / box.width * this.length;
    const block = [...this.blocks.values()].find((one) => token >= one.at && token < one.at + one.length);
    this.canvas.title = block ? `${NAMES[block.kind]}: ${block.length} tokens${block.second === null ? "" : `, second ${block.second}`}` : "free";
  }
}

// The last values as a filled line.
export function sparkline(canvas, values, colour) {
  const [pen, width, height] = begin(canvas);
  if (values.length < 2) return;
  const most = Math.max(...values) * 1.15 || 1, step = width / (values.length - 1);
  pen.beginPath();
  values.forEach((value, n) => pen.lineTo(n * step, height - 2 - (height - 5) * value / most));
  pen.strokeStyle = colour; pen.lineWidth = 1.6; pen.lineJoin = "round"; pen.stroke();
  pen.lineTo(width, height); pen.lineTo(0, height); pen.closePath();
  const fill = pen.createLinearGradient(0, 0, 0, height);
  fill.addColorStop(0, colour + "55"); fill.addColorStop(1, colour + "05");
  pen.fillStyle = fill; pen.fill();
}

// Steps as stacked columns: [{vision, prefill, decode, ...}] in milliseconds.
export function columns(canvas, steps, most) {
  const [pen, width, height] = begin(canvas), w = width / most;
  const totals = steps.map((ms) => Object.values(ms).reduce((a, b) => a + b, 0)), high = Math.max(1, ...totals);
  steps.forEach((ms, n) => {
    const x = width - (steps.length - n) * w;
    let y = height;
    const known = { vision: ms.vision || 0, prefill: ms.prefill || 0, decode: ms.decode || 0 };
    known.other = totals[n] - known.vision - known.prefill - known.decode;
    for (const [stage, value] of Object.entries(known)) {
      const h = (height - 3) * value / high;
      pen.fillStyle = STAGES[stage]; y -= h; pen.fillRect(x, y, Math.max(1, w - 1.2), h);
    }
  });
}

function mix(a, b, share) { return a + (b - a) * share; }
function ease(t) { return 1 - (1 - t) ** 3; }
function round(pen, x, y, w, h, r) { pen.beginPath(); pen.roundRect(x, y, w, h, r); }

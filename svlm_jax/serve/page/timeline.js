// A strip with a mark for every chunk of the stream: what was said when, what was not watched, alerts. Pointer and arrow keys show the
// caption of a second; a click looks it up in the log. Draws a History, on a canvas that is a slider to screen readers.

import { KINDS, clock, sentence } from "/history.js";
import { clearContext, colourOf, onTheme } from "/draw.js";

const MIN_SPAN = 60; // seconds that the strip is wide at least
const RECENT_SPAN = 300; // of the button "Last 5 min"
const TICK_SPACING_PX = 70, TICKS = [5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400];
const AXIS_PX = 15, MIN_MARK_PX = 1.5;
// Part of the height and colour of a mark. Heights differ too: the strip must read without colours.
const MARKS = {
  silent: [0.14, "tick"], spoken: [0.62, "accent"], answer: [1, "good"],
  dropped: [0.38, "bad"], gone: [0.38, "warn"], alert: [1, "warn"],
};

export class Timeline {
  // parts: canvas; tip, with an <img>, a <time> and a <p>; recent: the toggle for the last minutes. onpick: called with the second that
  // was chosen. thumbnails: pictures by second.
  constructor(history, { canvas, tip, recent }, thumbnails, onpick) {
    this.history = history;
    this.canvas = canvas;
    this.tip = tip;
    this.recent = recent;
    this.thumbnails = thumbnails;
    this.onpick = onpick;
    this.hasAlert = false; // the stream is in alert mode now
    this.index = -1; // of the entry that is pointed at
    this.frame = 0;
    new ResizeObserver(() => this.paint()).observe(canvas);
    onTheme(() => this.paint());
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerdown", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => { if (!canvas.matches(":focus-visible")) this.select(-1); });
    canvas.addEventListener("click", () => this.pick());
    canvas.addEventListener("keydown", (event) => this.onKey(event));
    canvas.addEventListener("blur", () => this.select(-1));
    recent.addEventListener("click", () => {
      recent.setAttribute("aria-pressed", recent.getAttribute("aria-pressed") !== "true");
      this.paint();
    });
  }

  clear() {
    this.recent.setAttribute("aria-pressed", "false");
    this.select(-1);
    this.update();
  }

  // The history has changed.
  update() {
    this.recent.hidden = this.history.end - this.history.start <= RECENT_SPAN;
    this.describe();
    if (!this.frame) this.frame = requestAnimationFrame(() => { this.frame = 0; this.paint(); });
  }

  // Seconds at the left edge and at the right one.
  get range() {
    const { start, end } = this.history;
    const from = this.recent.getAttribute("aria-pressed") === "true" ? Math.max(start, end - RECENT_SPAN) : start;
    return [from, Math.max(end, from + MIN_SPAN)];
  }

  // For each CSS pixel the index of the most notable entry in it, or -1, and the share of its entries that have words: a minute of talk
  // must not look like a minute with one word.
  bins(width, from, scale) {
    const size = Math.ceil(width), indexes = new Int32Array(size).fill(-1), counts = new Int32Array(size), spoken = new Int32Array(size);
    const { entries } = this.history;
    for (let n = Math.max(0, this.history.indexAt(from)); n < entries.length; n++) {
      const { start, end, kind } = entries[n], rank = KINDS.indexOf(kind);
      const first = Math.max(0, Math.floor((start - from) * scale));
      const last = Math.min(size - 1, Math.max(first, Math.ceil((end - from) * scale) - 1));
      for (let x = first; x <= last; x++) {
        counts[x]++;
        if (kind === "spoken" || kind === "answer") spoken[x]++;
        if (indexes[x] < 0 || KINDS.indexOf(entries[indexes[x]].kind) <= rank) indexes[x] = n;
      }
    }
    return { indexes, share: (x) => (counts[x] ? spoken[x] / counts[x] : 0) };
  }

  paint() {
    const [pen, width, height] = clearContext(this.canvas), [from, to] = this.range, scale = width / (to - from), base = height - AXIS_PX;
    pen.fillStyle = colourOf("canvas");
    pen.fillRect(0, 0, width, base);
    const { indexes, share } = this.bins(width, from, scale), { entries } = this.history;
    for (let x = 0; x < indexes.length;) {
      const n = indexes[x], start = x;
      let most = 0; // its edges share a pixel with its neighbours
      for (; x < indexes.length && indexes[x] === n; x++) most = Math.max(most, share(x));
      if (n >= 0) this.paintMark(pen, entries[n], most, start, x - start, base);
    }
    this.paintAlerts(pen, from, scale);
    this.paintAxis(pen, from, to, scale, base, width);
    const entry = entries[this.index];
    if (!entry) return;
    const x = Math.max(0, (entry.start - from) * scale), w = Math.max(2, (entry.end - entry.start) * scale);
    pen.strokeStyle = colourOf("text");
    pen.lineWidth = 1.5;
    pen.strokeRect(x, 0.75, Math.min(w, width - x - 0.75), base - 1.5);
  }

  // A line along the top while an alert is on.
  paintAlerts(pen, from, scale) {
    pen.fillStyle = colourOf("warn");
    for (const [start, end] of this.history.alertSpans) {
      const last = end < Infinity ? end : this.hasAlert ? this.history.end : start; // a rule that is gone tells no end
      pen.fillRect((start - from) * scale, 0, Math.max(0, last - start) * scale, 3);
    }
  }

  paintMark(pen, { kind, state }, share, x, width, base) {
    const [full, colour] = MARKS[kind], gap = width > 4 ? 1 : 0, low = MARKS.silent[0];
    const size = kind === "spoken" ? low + (full - low) * share : kind === "alert" && !state ? full / 2 : full;
    const h = Math.max(2, size * (base - 8));
    pen.fillStyle = colourOf(colour);
    const w = Math.max(MIN_MARK_PX, width - gap);
    if (kind !== "dropped" && kind !== "gone") { pen.fillRect(x, base - h, w, h); }
    else for (let y = base - h; y < base; y += 4) pen.fillRect(x, y, w, 2); // stripes: nothing was watched here
    if (kind !== "alert" || !state) return;
    pen.beginPath(); // a flag at the top
    pen.moveTo(x, 0); pen.lineTo(x + 8, 4); pen.lineTo(x, 8);
    pen.fill();
  }

  paintAxis(pen, from, to, scale, base, width) {
    const step = TICKS.find((seconds) => seconds * scale >= TICK_SPACING_PX) ?? TICKS.at(-1);
    pen.font = "11px system-ui, sans-serif";
    for (let second = Math.ceil(from / step) * step; second <= to; second += step) {
      const x = (second - from) * scale;
      pen.fillStyle = colourOf("tick");
      pen.fillRect(x, base, 1, 4);
      pen.fillStyle = colourOf("quiet");
      pen.textAlign = x < 14 ? "left" : x > width - 16 ? "right" : "center";
      pen.fillText(clock(second), x < 14 ? Math.max(0, x) : x, base + AXIS_PX - 2);
    }
  }

  // pointing

  point(event) {
    const box = this.canvas.getBoundingClientRect(), [from, to] = this.range, scale = box.width / (to - from);
    const x = Math.min(box.width - 1, Math.max(0, Math.floor(event.clientX - box.left)));
    const second = from + (x + 0.5) / scale, index = this.bins(box.width, from, scale).indexes[x];
    this.select(index >= 0 ? index : this.history.indexAt(second));
  }

  onKey(event) {
    const last = this.history.entries.length - 1, now = this.index < 0 ? last : this.index, { key } = event;
    const moves = {
      ArrowLeft: now - 1, ArrowDown: now - 1, PageDown: now - 10, Home: 0,
      ArrowRight: now + 1, ArrowUp: now + 1, PageUp: now + 10, End: last,
    };
    if (key === "Enter" || key === " ") this.pick();
    else if (key === "Escape") this.select(-1);
    else if (key in moves) this.select(Math.min(last, Math.max(0, moves[key])));
    else return;
    event.preventDefault();
  }

  pick() {
    const entry = this.history.entries[this.index];
    if (entry) this.onpick(entry.start);
  }

  select(index) {
    this.index = index;
    this.describe();
    this.paint();
    const entry = this.history.entries[index];
    this.tip.hidden = !entry;
    if (!entry) return;
    const [image, time, words] = ["img", "time", "p"].map((name) => this.tip.querySelector(name));
    time.textContent = clock(entry.start);
    words.textContent = (entry.question ? `Q ${entry.question}\n` : "") + (entry.answer ? "A " : "") + sentence(entry);
    this.tip.dataset.kind = entry.kind;
    const url = this.thumbnails.at(entry.start);
    image.hidden = !url;
    if (url) image.src = url;
    const [from, to] = this.range, { offsetWidth: width } = this.canvas, half = this.tip.offsetWidth / 2;
    const x = ((entry.start + entry.end) / 2 - from) / (to - from) * width;
    this.tip.style.left = `${Math.min(width - half - 4, Math.max(half + 4, x))}px`;
  }

  // For screen readers: the second, and what was said.
  describe() {
    const { history, canvas } = this, entry = history.entries[this.index] ?? history.entries.at(-1);
    canvas.setAttribute("aria-valuemin", Math.floor(history.start));
    canvas.setAttribute("aria-valuemax", Math.ceil(history.end));
    canvas.setAttribute("aria-valuenow", Math.floor(entry?.start ?? 0));
    canvas.setAttribute("aria-valuetext", entry ? `${clock(entry.start)}: ${sentence(entry)}` : "nothing yet");
  }
}

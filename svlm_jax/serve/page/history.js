// What happened in a stream, in order: its chunks, with their words or without, what was not watched, and alerts. For the timeline and
// downloads. No DOM, no socket. Units: seconds of the video.

// Kinds of entries, from the least to the most notable: where several share a pixel of the timeline, the most notable one is drawn.
export const KINDS = ["silent", "spoken", "gone", "dropped", "answer", "alert"];
const MAX_ENTRIES = 60_000; // 16 hours of chunks of a second

export class History {
  constructor() { this.clear(); }

  clear() {
    this.entries = []; // ascending start
    this.isTruncated = false; // there was more before the first entry
  }

  get isEmpty() { return !this.entries.length; }
  get start() { return this.isEmpty ? 0 : this.entries[0].start; }
  get end() { return this.isEmpty ? 0 : this.entries.at(-1).end; }

  // An event of the server that belongs to the history. Its entry: { kind, start, end, text, question, answer, ... }, or null.
  add(event) {
    const entry = entryOf(event);
    if (!entry) return null;
    this.entries.push(entry);
    for (let n = this.entries.length - 1; n > 0 && this.entries[n - 1].start > entry.start; n--) {
      [this.entries[n - 1], this.entries[n]] = [entry, this.entries[n - 1]]; // an alert is told after its chunk
    }
    if (this.entries.length > MAX_ENTRIES) {
      this.entries.splice(0, MAX_ENTRIES / 10);
      this.isTruncated = true;
    }
    return entry;
  }

  // What was said before the first entry, from the subtitles of the server: they reach back for hours. The entries that are new.
  prepend(vtt) {
    const first = this.isEmpty ? Infinity : this.start;
    const older = parseSubtitles(vtt).filter((entry) => entry.start < first);
    this.entries.unshift(...older);
    this.isTruncated = vtt.includes("\nNOTE ");
    return older;
  }

  // Spans in which an alert was on: [start, end]; the last one may go on, to Infinity.
  get alertSpans() {
    const spans = [];
    let isOn = false;
    for (const { kind, start, end, state } of this.entries) {
      if (kind !== "alert" || state === isOn) continue;
      if (state) spans.push([start, Infinity]); else spans.at(-1)[1] = end;
      isOn = state;
    }
    return spans;
  }

  // Index of the last entry that starts at `second` or before; -1: none.
  indexAt(second) {
    let low = 0, high = this.entries.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.entries[middle].start <= second) low = middle + 1; else high = middle;
    }
    return low - 1;
  }

  // The captions for people: a line each, with its time.
  toText() {
    const lines = this.entries.flatMap((entry) => {
      const question = entry.question ? [`${clock(entry.start)}  Q: ${entry.question}`] : [];
      const words = sentence(entry);
      return entry.kind === "silent" ? question : [...question, `${clock(entry.start)}  ${entry.answer ? "A: " : ""}${words}`];
    });
    return `${lines.join("\n")}\n`;
  }

  // All of it for programs; info: fields at the top.
  toJSON(info = {}) {
    return JSON.stringify({ ...info, is_truncated: this.isTruncated, entries: this.entries }, null, 1);
  }
}

function entryOf(event) {
  const { start = 0, end = start } = event;
  switch (event.type) {
    case "svlm.chunk.done": {
      const { text = "", question = "", answer = "" } = event; // those that were missed have no empty ones
      return { kind: answer ? "answer" : text ? "spoken" : "silent", start, end, text, question, answer };
    }
    case "svlm.chunk.dropped": return { kind: "dropped", start, end, text: "" };
    case "svlm.source.back": return end > start ? { kind: "gone", start, end, text: "" } : null;
    case "svlm.alert": {
      const { name, state, probability, text = "", data = null, error = "" } = event;
      return { kind: "alert", start, end, text, name, state, probability, data, error };
    }
    default: return null;
  }
}

// Captions of a WebVTT file of the server: a question stands in a line of its own, "Q: ...", before its answer.
export function parseSubtitles(vtt) {
  const entries = [];
  for (const block of vtt.split("\n\n")) {
    const [times, ...lines] = block.split("\n"), [start, end] = times.split(" --> ").map(secondOf);
    if (!(start < end)) continue; // the header, a note
    const question = lines[0]?.startsWith("Q: ") ? unescaped(lines.shift().slice(3)) : "", text = unescaped(lines.join(" "));
    const answer = question ? text : "";
    entries.push({ kind: answer ? "answer" : text ? "spoken" : "silent", start, end, text, question, answer });
  }
  return entries;
}

function secondOf(stamp) { return stamp.split(":").reduce((total, part) => 60 * total + Number(part), 0); }
function unescaped(text) { return text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&"); }

// An entry in words.
export function sentence(entry) {
  const seconds = `${+(entry.end - entry.start).toFixed(1)} s`;
  switch (entry.kind) {
    case "silent": return "nothing said";
    case "dropped": return `${seconds} skipped: too late to be watched`;
    case "gone": return `${seconds} without a picture: the source was gone`;
    case "alert": {
      const share = Number.isFinite(entry.probability) ? ` (${Math.round(100 * entry.probability)}\u202f%)` : "";
      return `${entry.state ? "" : "no longer: "}${entry.name || "alert"}${share}`;
    }
    default: return entry.text;
  }
}

export function clock(second) {
  const s = Math.floor(second), pad = (n) => String(n).padStart(2, "0");
  if (s >= 3600) return `${Math.floor(s / 3600)}:${pad(Math.floor(s / 60) % 60)}:${pad(s % 60)}`;
  return `${Math.floor(s / 60)}:${pad(s % 60)}`;
}

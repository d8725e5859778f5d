// How fast it goes and what the model remembers: the tiles and the picture of the KV cache, after each chunk. Knows no socket.

import { CacheBar, COLOURS, NAMES, columns, sparkline } from "/draw.js";

const MAX_SAMPLES = 60;
const STAGES = [["looking", "vision"], ["reading", "prefill"], ["writing", "decode"]];
const $ = (id) => document.getElementById(id);
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

export class Measurements {
  // server: of `session.created`: cache_kinds, chunk_seconds.
  start(server) {
    this.kinds = server.cache_kinds;
    this.chunkSeconds = server.chunk_seconds;
    if (this.bar) return;
    this.bar = new CacheBar($("cache"), this.kinds);
    $("legend").replaceChildren(...this.kinds.map((kind) => {
      const item = document.createElement("li"), dot = document.createElement("i"), count = document.createElement("b");
      item.dataset.kind = kind;
      dot.style.setProperty("--is", COLOURS[kind]);
      count.textContent = "0";
      item.append(dot, NAMES[kind], count);
      return item;
    }));
    this.clear();
  }

  clear() {
    this.latencies = [];
    this.factors = [];
    this.stageTimes = [];
    this.bar?.clear();
    for (const id of ["latency", "speed", "step"]) $(id).textContent = "–";
    $("dropped").textContent = "0";
    $("chunks").textContent = "of 0 steps";
    $("pace").textContent = "the video's speed";
  }

  // chunk: a `svlm.chunk.done` with measurements; one from before this page joined has none.
  show(chunk) {
    if (!chunk.cache) return;
    this.showSpeed(chunk);
    this.showCache(chunk);
  }

  showDropped(total) { $("dropped").textContent = total; }

  showSpeed(chunk) {
    const latency = 1000 * chunk.latency_seconds, factor = chunk.realtime_factor, times = chunk.stage_ms;
    const shown = factor >= 10 ? Math.round(factor) : factor.toFixed(1);
    this.latencies = [...this.latencies, latency].slice(-MAX_SAMPLES);
    this.factors = [...this.factors, factor].slice(-MAX_SAMPLES);
    this.stageTimes = [...this.stageTimes, times].slice(-MAX_SAMPLES);
    $("latency").textContent = Math.round(latency);
    $("speed").textContent = shown;
    $("pace").textContent = shown >= 1 ? "the video's speed: keeps up" : "the video's speed: too slow";
    $("step").textContent = Math.round(sum(Object.values(times)));
    const ofStage = (stage) => Math.round((times[stage] ?? 0) + (times[`${stage} dispatch`] ?? 0));
    $("stages").textContent = STAGES.map(([word, stage]) => `${word} ${ofStage(stage)}`).join(" · ");
    this.showDropped(chunk.dropped_total);
    $("chunks").textContent = `of ${Math.round(chunk.end / this.chunkSeconds)} steps`;
    sparkline($("latencyline"), this.latencies, "#f5b83d");
    sparkline($("speedline"), this.factors, "#34d399");
    columns($("stageline"), this.stageTimes, MAX_SAMPLES);
  }

  showCache({ cache, capacity, number }) {
    this.bar.show(cache, capacity);
    const tokens = {};
    for (const [kind, length] of cache.retained) tokens[this.kinds[kind]] = (tokens[this.kinds[kind]] || 0) + length;
    for (const kind of this.kinds) $("legend").querySelector(`[data-kind=${kind}] b`).textContent = tokens[kind] || 0;
    const [evicted, retained] = [cache.evicted, cache.retained].map((runs) => sum(runs.map(([, length]) => length)));
    $("retained").textContent = `${retained} tokens, oldest first`;
    $("evicted").textContent = `− ${evicted} forgotten`;
    $("evicted").classList.toggle("active", evicted > 0);
    if (number % 10) return; // a screen reader need not hear every second
    const kinds = this.kinds.map((kind) => `${NAMES[kind]} ${tokens[kind] || 0}`).join(", ");
    $("cache").setAttribute("aria-label", `What the model remembers: ${retained} tokens of ${capacity}; ${kinds}`);
  }
}

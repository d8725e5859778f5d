// The page: one socket, what it tells, what is asked of it. A socket that drops comes back by itself, to the same stream, and gets
// the captions that were missed.

import { Capture } from "/capture.js";
import { CacheBar, COLOURS, NAMES, columns, sparkline } from "/draw.js";

const $ = (id) => document.getElementById(id);
const LOGGED = 400, RECENT = 60, SHOWN = 4000, SLOWEST = 10000;
const OVERALL = 1500; // ms that the last pictures of a file are given before its stream is stopped
const memory = { get: (key) => { try { return sessionStorage.getItem(key); } catch { return null; } }, set: (key, value) => { try { sessionStorage.setItem(key, value); } catch { /* private mode */ } } };

let socket, tries = 0, hello, bar, stream = null, last = -1, owner = false, waiting = null, over = false;
let latencies = [], speeds = [], steps = [], answering = 0, hiding, decoding = false, capture = null, resting, full = false, voice = false;

// the socket

function connect() {
  clearTimeout(resting);
  link("connecting", tries ? "reconnecting" : "connecting");
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => typeof data === "string" ? told[JSON.parse(data).type]?.(JSON.parse(data)) : picture(data);
  socket.onclose = ({ reason }) => {
    const wait = Math.min(SLOWEST, 500 * 2 ** tries++) * (0.7 + 0.6 * Math.random());
    link("lost", reason || `connection lost; again in ${Math.ceil(wait / 1000)} s`);
    resting = setTimeout(connect, wait);
    $("ask").querySelectorAll("input, button").forEach((one) => { one.disabled = true; });
  };
}

function send(message) { if (socket.readyState === 1) socket.send(JSON.stringify(message)); else toast("not connected; trying again"); }
function link(state, text) { $("link").dataset.state = state; $("link").lastElementChild.textContent = text; }

function toast(text) {
  $("toast").textContent = text; $("toast").hidden = false;
  clearTimeout(toast.timer); toast.timer = setTimeout(() => { $("toast").hidden = true; }, 7000);
}

const told = {
  hello(message) {
    hello = message; tries = 0; link("open", "connected");
    $("model").textContent = hello.model || ""; $("about").hidden = !hello.model;
    settings();
    bar ||= new CacheBar($("cache"), hello.kinds);
    if (!$("legend").children.length) legend();
    sources();
    $("question").maxLength = $("query").maxLength = hello.question; $("query").placeholder = hello.query || "";
    const wanted = stream || location.hash.slice(1);
    if (/^[a-z0-9]{8}$/.test(wanted)) { waiting = "join"; send({ type: "join", stream: wanted, after: stream ? last : -1, key: memory.get(wanted) || "" }); }
    else { leave(); send({ type: "leave" }); } // a socket that says nothing is closed
  },

  streams(message) {
    $("crowd").textContent = `${message.viewers} ${message.viewers === 1 ? "viewer" : "viewers"}`;
    full = message.streams.length >= message.rows;
    $("rows").textContent = `${message.streams.length} running, room for ${message.rows}`;
    const shown = message.streams.map((one) => {
      const item = document.createElement("li"), button = document.createElement("button");
      button.type = "button"; button.dataset.stream = one.stream; button.textContent = one.title;
      const more = document.createElement("span");
      more.textContent = `${clock(one.seconds)} · ${one.viewers} watching`;
      button.append(more);
      if (one.stream === stream) { button.setAttribute("aria-current", "true"); subtitle(one); }
      item.append(button);
      return item;
    });
    const focus = document.activeElement?.dataset?.stream;
    $("streams").replaceChildren(...shown);
    if (focus) $("streams").querySelector(`[data-stream="${focus}"]`)?.focus();
  },

  started({ stream: name, key }) { memory.set(name, key); waiting = "join"; },

  joined(message) {
    const again = stream === message.stream;
    waiting = null; stream = message.stream; owner = message.owner; over = false; document.body.classList.remove("idle", "over");
    history.replaceState(null, "", `#${stream}`);
    if (!again) { last = -1; clear(); }
    $("empty").hidden = true; $("live").hidden = $("clock").hidden = false; $("speak").hidden = !window.speechSynthesis;
    $("gameonly").textContent = `${hello.model} knows only the generated game; start with --model Qwen/Qwen2.5-VL-3B-Instruct for your video`;
    $("gameonly").hidden = !hello.game || message.game;
    $("live").classList.remove("over"); $("live").textContent = "Live";
    const mine = owner && message.source === "webcam" && !message.over;
    $("title").textContent = (mine && capture?.title) || message.title; subtitle(message);
    $("vtt").href = `/streams/${stream}.vtt`; $("vtt").hidden = $("leave").hidden = $("stop").hidden = false;
    $("ask").querySelectorAll("input, button").forEach((one) => { one.disabled = false; });
    if (message.cut) notice(message.missed[0]?.start ?? 0, again ? "some captions before this were missed" : "the stream began before this");
    for (const one of message.missed) entry(one, again);
    if (message.last) numbers(message.last);
    $("starter").open = false;
    if (mine && capture?.kind === "file") memory.set(`${stream}/file`, "1");
    if (mine && !capture && !memory.get(`${stream}/file`)) Capture.camera(hello.camera, picked).then((one) => { capture = one; shown(true); one.start(); }).catch(() => {});
    if (mine) capture?.start(); else close();
    shown(mine && capture);
    if (message.over) told.ended({ reason: message.over });
  },

  caption(message) { if (message.stream === stream && message.number > last) { entry(message, true); numbers(message); } },
  dropped(message) { if (message.stream === stream && message.number > last) { entry(message, true); $("dropped").textContent = message.dropped; } },
  asked({ question, waiting: before }) { notice(null, before ? `asked, after ${before} other${before > 1 ? "s" : ""}: ${question}` : `asked: ${question}`, "pending"); },
  unasked({ error }) { notice(null, `not asked: ${error}`); },

  ended({ reason }) {
    if (capture?.over) reason = "the video is over";
    over = true; owner = false; document.body.classList.add("over"); close(); shown(false); unanswered();
    notice(null, `the stream has ended: ${reason}`);
    $("live").textContent = "Ended"; $("live").classList.add("over"); $("gameonly").hidden = true; $("overlay").replaceChildren();
    $("stop").hidden = $("leave").hidden = true; $("subtitle").textContent = "has ended";
    $("empty").hidden = false; $("emptyline").textContent = "This stream has ended."; $("starter").open = true;
    $("ask").querySelectorAll("input, button").forEach((one) => { one.disabled = true; });
  },

  error({ error }) {
    toast(waiting === "start" && full ? "There is no room for another stream: join one that runs, or wait until one ends." : error);
    if (waiting === "join" && /^stream:/.test(error)) { leave(); $("emptyline").textContent = "That stream has ended."; }
    if (waiting === "start") { close(); if (!stream || over) shown(false); }
    waiting = null;
  },
};

// what is shown

function clock(second) {
  const s = Math.floor(second), pad = (n) => String(n).padStart(2, "0");
  return s >= 3600 ? `${Math.floor(s / 3600)}:${pad(Math.floor(s / 60) % 60)}:${pad(s % 60)}` : `${Math.floor(s / 60)}:${pad(s % 60)}`;
}

function subtitle(one) { $("subtitle").textContent = `${one.viewers} watching${owner ? " · yours" : ""}`; }

// The video of this browser, or the pictures that come.
function shown(own) { $("camera").hidden = !own; $("picture").hidden = !!own; }

function settings() {
  $("settings").replaceChildren(...(hello.settings || []).flatMap(([name, value]) => {
    const term = document.createElement("dt"), told = document.createElement("dd");
    term.textContent = name; told.textContent = value;
    return [term, told];
  }));
  $("volumefield").hidden = !window.speechSynthesis;
}

function clear() {
  $("log").replaceChildren(); latencies = []; speeds = []; steps = []; answering = 0;
  bar?.clear(); $("overlay").replaceChildren(); $("dropped").textContent = "0"; $("chunks").textContent = "of 0 steps"; $("pace").textContent = "the video's speed";
  for (const id of ["latency", "speed", "step"]) $(id).textContent = "–";
  const screen = $("picture"); screen.getContext("2d").clearRect(0, 0, screen.width, screen.height);
}

function leave() {
  stream = null; last = -1; owner = false; close(); clear(); document.body.classList.add("idle"); document.body.classList.remove("over");
  history.replaceState(null, "", location.pathname);
  $("empty").hidden = false; $("emptyline").textContent = "Nothing is playing here.";
  for (const id of ["live", "clock", "vtt", "leave", "stop", "speak", "gameonly"]) $(id).hidden = true;
  shown(false); $("title").textContent = "No stream"; $("subtitle").textContent = "";
  $("ask").querySelectorAll("input, button").forEach((one) => { one.disabled = true; });
}

// A line of the log; it scrolls along unless somebody reads further up.
function line(second, text, kind, fresh) {
  const log = $("log"), below = log.scrollHeight - log.scrollTop - log.clientHeight < 48;
  const item = document.createElement("li"), time = document.createElement("time"), words = document.createElement("p");
  item.className = `${kind} ${fresh ? "new" : ""}`; time.textContent = second === null ? "" : clock(second); words.textContent = text;
  item.append(time, words); log.append(item);
  while (log.children.length > LOGGED) log.firstChild.remove();
  if (below) log.scrollTop = log.scrollHeight; else $("newest").hidden = false;
  return item;
}
const notice = (second, text, more = "") => line(second, text, `notice ${more}`, true);

function entry(message, fresh) {
  last = message.number;
  if (message.type === "dropped") { line(message.start, `${+(message.chunks * hello.chunk).toFixed(1)} s skipped: too late to be watched`, "notice", fresh); return; }
  if (message.note) notice(message.start, message.note);
  if (message.question) {
    unanswered();
    $("log").querySelectorAll("li.pending").forEach((one) => { if (one.textContent.endsWith(message.question)) one.remove(); });
    line(message.start, message.question, "question", fresh); answering = 2;
  }
  const answer = answering > 0 && message.text;
  if (!message.text && answering === 1) unanswered(message.start, fresh);
  answering = answer ? 0 : Math.max(0, answering - 1);
  if (!message.text) return;
  line(message.start, message.text, answer ? "answer" : "", fresh);
  if (!fresh || over) return; // the last step of a stream may end after it
  const words = document.createElement("span");
  words.textContent = message.text; words.className = answer ? "answer" : "";
  $("overlay").replaceChildren(words); $("overlay").classList.remove("old"); $("spoken").textContent = message.text;
  clearTimeout(hiding); hiding = setTimeout(() => $("overlay").classList.add("old"), SHOWN);
  speak(message.text);
}

// A question that was put to the model, and to which it said nothing.
function unanswered(second = null, fresh = true) {
  if (answering) line(second, "(nothing)", "answer none", fresh);
  answering = 0;
}

function speak(text) {
  if (!voice || !window.speechSynthesis) return;
  if (speechSynthesis.pending) speechSynthesis.cancel(); // the newest counts: a voice must not fall behind
  const words = new SpeechSynthesisUtterance(text);
  words.lang = "en"; words.volume = Number($("volume").value); words.rate = 1.1;
  speechSynthesis.speak(words);
}

function numbers(message) {
  latencies = [...latencies, 1000 * message.latency].slice(-RECENT); speeds = [...speeds, message.speed].slice(-RECENT); steps = [...steps, message.ms].slice(-RECENT);
  $("clock").textContent = clock(message.end);
  $("latency").textContent = Math.round(1000 * message.latency);
  const speed = message.speed >= 10 ? Math.round(message.speed) : message.speed.toFixed(1);
  $("speed").textContent = speed;
  $("step").textContent = Math.round(Object.values(message.ms).reduce((a, b) => a + b, 0));
  $("pace").textContent = speed >= 1 ? "the video's speed: keeps up" : "the video's speed: too slow";
  $("stages").textContent = [["looking", "vision"], ["reading", "prefill"], ["writing", "decode"]].map(([word, stage]) => `${word} ${Math.round(message.ms[stage] ?? 0)}`).join(" · ");
  $("dropped").textContent = message.dropped; $("chunks").textContent = `of ${Math.round(message.end / hello.chunk)} steps`;
  sparkline($("latencyline"), latencies, "#f5b83d"); sparkline($("speedline"), speeds, "#34d399"); columns($("stageline"), steps, RECENT);
  bar.show(message.cache, message.capacity);
  const sums = {};
  for (const [kind, length] of message.cache.held) sums[hello.kinds[kind]] = (sums[hello.kinds[kind]] || 0) + length;
  for (const kind of hello.kinds) $("legend").querySelector(`[data-kind=${kind}] b`).textContent = sums[kind] || 0;
  const lost = message.cache.gone.reduce((sum, [, length]) => sum + length, 0), held = message.cache.held.reduce((sum, [, length]) => sum + length, 0);
  $("held").textContent = `${held} tokens, oldest first`;
  $("gone").textContent = `− ${lost} forgotten`; $("gone").classList.toggle("now", lost > 0);
  if (message.number % 10 === 0) $("cache").setAttribute("aria-label", `What the model remembers: ${held} tokens of ${message.capacity}; ` + hello.kinds.map((kind) => `${NAMES[kind]} ${sums[kind] || 0}`).join(", "));
}

function legend() {
  $("legend").replaceChildren(...hello.kinds.map((kind) => {
    const item = document.createElement("li"), dot = document.createElement("i"), count = document.createElement("b");
    item.dataset.kind = kind; dot.style.setProperty("--is", COLOURS[kind]); count.textContent = "0";
    item.append(dot, NAMES[kind], count);
    return item;
  }));
}

// Only the newest picture is decoded: 8 bytes of its second, then JPEG.
async function picture(data) {
  if (decoding || !stream) return;
  decoding = true;
  try {
    const image = await createImageBitmap(new Blob([new Uint8Array(data, 8)], { type: "image/jpeg" })), screen = $("picture");
    if (screen.width !== image.width || screen.height !== image.height) { screen.width = image.width; screen.height = image.height; }
    screen.getContext("2d").drawImage(image, 0, 0);
    image.close();
  } catch { /* a torn picture: the next one comes */ } finally { decoding = false; }
}

// pictures of this browser

function picked(blob) { if (owner && !over && socket.readyState === 1) socket.send(blob); }
function close() { capture?.stop(); capture = null; }

async function begin(message, file) {
  close();
  if (message.source === "webcam") {
    if (!file && !navigator.mediaDevices) { toast("this browser gives cameras to https:// and localhost only"); return; }
    try { capture = file ? await Capture.file(file, hello.camera, picked) : await Capture.camera(hello.camera, picked); }
    catch (error) { toast(file ? error.message : `camera: ${error.message}`); return; }
    const one = capture;
    one.ended = () => setTimeout(() => { one.over = true; if (capture === one) send({ type: "stop", key: memory.get(stream) || "" }); }, OVERALL);
  }
  if (message.source !== "listed") { $("source").value = file ? "file" : message.source; fields(); } // for the next time
  waiting = "start"; send(message);
}

// what is asked

const picker = Object.assign(document.createElement("input"), { type: "file", accept: $("file").accept });

function sources() {
  const chosen = $("source").value, choices = [["match", "Generated match"], ...hello.sources.map((name, n) => [`listed:${n}`, name]), ["webcam", "My camera"], ["file", "A video file of mine"]];
  if (hello.addresses) choices.push(["address", "A file or address on the server"]);
  $("source").replaceChildren(...choices.map(([value, text]) => new Option(text, value, false, value === chosen)));
  fields();
}

function fields() {
  $("seedfield").hidden = $("source").value !== "match"; $("addressfield").hidden = $("source").value !== "address";
  $("filefield").hidden = $("source").value !== "file";
}

$("start").addEventListener("submit", (event) => {
  event.preventDefault();
  const [source, number] = $("source").value.split(":"), message = { type: "start", source: source === "file" ? "webcam" : source };
  const file = source === "file" ? $("file").files[0] : null;
  if (source === "file" && !file) { toast("choose a video file first"); return; }
  if (source === "listed") message.number = Number(number);
  if (source === "match" && /^\d+$/.test($("seed").value.trim())) message.seed = Number($("seed").value);
  if (source === "address") message.address = $("address").value.trim();
  if ($("query").value.trim()) message.query = $("query").value.trim();
  begin(message, file);
});
$("source").addEventListener("change", fields);
$("quick").addEventListener("click", () => begin({ type: "start", source: "match" }));
$("quickcamera").addEventListener("click", () => begin({ type: "start", source: "webcam" }));
$("quickfile").addEventListener("click", () => { picker.value = ""; picker.click(); });
picker.addEventListener("change", () => { if (picker.files[0]) begin({ type: "start", source: "webcam" }, picker.files[0]); });
$("speak").addEventListener("click", () => {
  voice = !voice; $("speak").setAttribute("aria-pressed", voice); $("speak").textContent = voice ? "Voice on" : "Voice off";
  if (!voice) speechSynthesis.cancel();
});
$("streams").addEventListener("click", (event) => {
  const name = event.target.closest("button")?.dataset.stream;
  if (name && name !== stream) { waiting = "join"; send({ type: "join", stream: name, after: -1, key: memory.get(name) || "" }); }
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (question) { send({ type: "ask", question }); $("question").value = ""; }
});
$("stop").addEventListener("click", () => send({ type: "stop", key: memory.get(stream) || "" }));
$("leave").addEventListener("click", () => { send({ type: "leave" }); leave(); });
$("newest").addEventListener("click", () => { $("log").scrollTop = $("log").scrollHeight; });
$("log").addEventListener("scroll", () => { const log = $("log"); if (log.scrollHeight - log.scrollTop - log.clientHeight < 48) $("newest").hidden = true; });
addEventListener("online", () => { tries = 0; if (socket.readyState > 1) connect(); });
connect();

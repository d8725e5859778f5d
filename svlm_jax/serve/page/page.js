// The page: one socket, a handler for each message of the server, and the controls. A socket that drops reconnects by itself, to the
// same stream, and gets the captions that were missed.

import { Capture } from "/capture.js";
import { CacheBar, COLOURS, NAMES, columns, sparkline } from "/draw.js";

const $ = (id) => document.getElementById(id);
const MAX_LOG_LINES = 400, MAX_SAMPLES = 60, OVERLAY_MS = 4000, MAX_RECONNECT_MS = 10000;
const LAST_IMAGES_MS = 1500; // from the end of a video file to the stop of its stream: its last images are still processed
const storage = { get: (key) => { try { return sessionStorage.getItem(key); } catch { return null; } }, set: (key, value) => { try { sessionStorage.setItem(key, value); } catch { /* private mode */ } } };

// pendingRequest: "start" or "join" until the server answers; questionAge: captions left in which the answer to a question may come
let socket, attempts = 0, hello, bar, stream = null, lastNumber = -1, isOwner = false, pendingRequest = null, hasEnded = false;
let latencies = [], factors = [], stageTimes = [], questionAge = 0, overlayTimer, reconnectTimer, isDecoding = false, capture = null, isFull = false, voiceOn = false;

// the socket

function connect() {
  clearTimeout(reconnectTimer);
  showLink("connecting", attempts ? "reconnecting" : "connecting");
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => {
    if (typeof data !== "string") { showFrame(data); return; }
    const message = JSON.parse(data);
    handlers[message.type]?.(message);
  };
  socket.onclose = ({ reason }) => {
    const delay = Math.min(MAX_RECONNECT_MS, 500 * 2 ** attempts++) * (0.7 + 0.6 * Math.random()); // not all viewers at once
    showLink("lost", reason || `connection lost; again in ${Math.ceil(delay / 1000)} s`);
    reconnectTimer = setTimeout(connect, delay);
    enableQuestions(false);
  };
}

function send(message) { if (socket.readyState === 1) socket.send(JSON.stringify(message)); else toast("not connected; trying again"); }
function showLink(state, text) { $("link").dataset.state = state; $("link").lastElementChild.textContent = text; }
function enableQuestions(enabled) { $("ask").querySelectorAll("input, button").forEach((control) => { control.disabled = !enabled; }); }

function toast(text) {
  $("toast").textContent = text; $("toast").hidden = false;
  clearTimeout(toast.timer); toast.timer = setTimeout(() => { $("toast").hidden = true; }, 7000);
}

const handlers = {
  hello(message) {
    hello = message; attempts = 0; showLink("open", "connected");
    $("model").textContent = hello.model || ""; $("about").hidden = !hello.model;
    showSettings();
    bar ||= new CacheBar($("cache"), hello.cache_kinds);
    if (!$("legend").children.length) showLegend();
    showSources();
    $("question").maxLength = $("query").maxLength = hello.max_question_chars; $("query").placeholder = hello.default_query || "";
    const name = stream || location.hash.slice(1);
    if (/^[a-z0-9]{8}$/.test(name)) { pendingRequest = "join"; send({ type: "join", stream: name, after: stream ? lastNumber : -1, key: storage.get(name) || "" }); }
    else { leave(); send({ type: "leave" }); } // the server closes a socket without a first message
  },

  streams(message) {
    $("viewers").textContent = `${message.num_viewers} ${message.num_viewers === 1 ? "viewer" : "viewers"}`;
    isFull = message.streams.length >= message.num_streams;
    $("streamcount").textContent = `${message.streams.length} running, room for ${message.num_streams}`;
    const items = message.streams.map((summary) => {
      const item = document.createElement("li"), button = document.createElement("button"), details = document.createElement("span");
      button.type = "button"; button.dataset.stream = summary.stream; button.textContent = summary.title;
      details.textContent = `${clock(summary.seconds)} · ${summary.num_viewers} watching`;
      button.append(details);
      if (summary.stream === stream) { button.setAttribute("aria-current", "true"); showSubtitle(summary); }
      item.append(button);
      return item;
    });
    const focus = document.activeElement?.dataset?.stream;
    $("streams").replaceChildren(...items);
    if (focus) $("streams").querySelector(`[data-stream="${focus}"]`)?.focus();
  },

  started({ stream: name, key }) { storage.set(name, key); pendingRequest = "join"; },

  joined(message) {
    const isReconnect = stream === message.stream;
    pendingRequest = null; stream = message.stream; isOwner = message.is_owner; hasEnded = false; document.body.classList.remove("idle", "ended");
    history.replaceState(null, "", `#${stream}`);
    if (!isReconnect) { lastNumber = -1; clear(); }
    $("empty").hidden = true; $("live").hidden = $("clock").hidden = false; $("speak").hidden = !window.speechSynthesis;
    $("gameonly").textContent = `${hello.model} knows only the generated game; start with --model Qwen/Qwen2.5-VL-3B-Instruct for your video`;
    $("gameonly").hidden = !hello.is_game_model || message.is_game;
    $("live").classList.remove("ended"); $("live").textContent = "Live";
    const ownCamera = isOwner && message.source === "camera" && !message.end_reason;
    $("title").textContent = (ownCamera && capture?.title) || message.title; showSubtitle(message);
    $("vtt").href = `/streams/${stream}.vtt`; $("vtt").hidden = $("leave").hidden = $("stop").hidden = false;
    enableQuestions(true);
    if (message.is_truncated) addNotice(message.missed[0]?.start ?? 0, isReconnect ? "some captions before this were missed" : "the stream began before this");
    for (const entry of message.missed) addEntry(entry, isReconnect);
    if (message.last_caption) showMeasurements(message.last_caption);
    $("starter").open = false;
    if (ownCamera) resumeCapture(); else stopCapture();
    showCamera(ownCamera && capture);
    if (message.end_reason) handlers.ended({ reason: message.end_reason });
  },

  caption(message) { if (isNew(message)) { addEntry(message, true); showMeasurements(message); } },
  dropped(message) { if (isNew(message)) { addEntry(message, true); $("dropped").textContent = message.dropped_total; } },
  question_queued({ question, num_before: before }) { addNotice(null, before ? `asked, after ${before} other${before > 1 ? "s" : ""}: ${question}` : `asked: ${question}`, "pending"); },
  question_refused({ error }) { addNotice(null, `not asked: ${error}`); },

  ended({ reason }) {
    if (capture?.isOver) reason = "the video is over";
    hasEnded = true; isOwner = false; document.body.classList.add("ended"); stopCapture(); showCamera(false); closeQuestion();
    addNotice(null, `the stream has ended: ${reason}`);
    $("live").textContent = "Ended"; $("live").classList.add("ended"); $("gameonly").hidden = true; $("overlay").replaceChildren();
    $("stop").hidden = $("leave").hidden = true; $("subtitle").textContent = "has ended";
    $("empty").hidden = false; $("emptyline").textContent = "This stream has ended."; $("starter").open = true;
    enableQuestions(false);
  },

  error({ error }) {
    toast(pendingRequest === "start" && isFull ? "There is no room for another stream: join one that runs, or wait until one ends." : error);
    if (pendingRequest === "join" && /^stream:/.test(error)) { leave(); $("emptyline").textContent = "That stream has ended."; }
    if (pendingRequest === "start") { stopCapture(); if (!stream || hasEnded) showCamera(false); }
    pendingRequest = null;
  },
};

// `joined` may have brought a caption already that the server also sends to all viewers.
function isNew(message) { return message.stream === stream && message.number > lastNumber; }

// what is shown

function clock(second) {
  const s = Math.floor(second), pad = (n) => String(n).padStart(2, "0");
  return s >= 3600 ? `${Math.floor(s / 3600)}:${pad(Math.floor(s / 60) % 60)}:${pad(s % 60)}` : `${Math.floor(s / 60)}:${pad(s % 60)}`;
}

function showSubtitle(summary) { $("subtitle").textContent = `${summary.num_viewers} watching${isOwner ? " · yours" : ""}`; }

// The video of this browser instead of the frames that the server sends.
function showCamera(enabled) { $("camera").hidden = !enabled; $("picture").hidden = !!enabled; }

function showSettings() {
  $("settings").replaceChildren(...(hello.settings || []).flatMap(([name, value]) => {
    const term = document.createElement("dt"), description = document.createElement("dd");
    term.textContent = name; description.textContent = value;
    return [term, description];
  }));
  $("volumefield").hidden = !window.speechSynthesis;
}

function clear() {
  $("log").replaceChildren(); latencies = []; factors = []; stageTimes = []; questionAge = 0;
  bar?.clear(); $("overlay").replaceChildren(); $("dropped").textContent = "0"; $("chunks").textContent = "of 0 steps"; $("pace").textContent = "the video's speed";
  for (const id of ["latency", "speed", "step"]) $(id).textContent = "–";
  const screen = $("picture"); screen.getContext("2d").clearRect(0, 0, screen.width, screen.height);
}

function leave() {
  stream = null; lastNumber = -1; isOwner = false; stopCapture(); clear(); document.body.classList.add("idle"); document.body.classList.remove("ended");
  history.replaceState(null, "", location.pathname);
  $("empty").hidden = false; $("emptyline").textContent = "Nothing is playing here.";
  for (const id of ["live", "clock", "vtt", "leave", "stop", "speak", "gameonly"]) $(id).hidden = true;
  showCamera(false); $("title").textContent = "No stream"; $("subtitle").textContent = "";
  enableQuestions(false);
}

// A line of the log, which scrolls along unless somebody reads further up. isLive: it is new to this viewer, not from before.
function addLine(second, text, kind, isLive) {
  const log = $("log"), atBottom = log.scrollHeight - log.scrollTop - log.clientHeight < 48;
  const item = document.createElement("li"), time = document.createElement("time"), words = document.createElement("p");
  item.className = `${kind} ${isLive ? "new" : ""}`; time.textContent = second === null ? "" : clock(second); words.textContent = text;
  item.append(time, words); log.append(item);
  while (log.children.length > MAX_LOG_LINES) log.firstChild.remove();
  if (atBottom) log.scrollTop = log.scrollHeight; else $("newest").hidden = false;
}
const addNotice = (second, text, kind = "") => addLine(second, text, `notice ${kind}`, true);

// A caption or dropped chunks. The model answers a question in the caption of the same chunk or in the next one.
function addEntry(message, isLive) {
  lastNumber = message.number;
  if (message.type === "dropped") { addLine(message.start, `${+(message.chunks * hello.chunk_seconds).toFixed(1)} s skipped: too late to be watched`, "notice", isLive); return; }
  if (message.note) addNotice(message.start, message.note);
  if (message.question) {
    closeQuestion();
    $("log").querySelectorAll("li.pending").forEach((item) => { if (item.textContent.endsWith(message.question)) item.remove(); });
    addLine(message.start, message.question, "question", isLive); questionAge = 2;
  }
  const isAnswer = questionAge > 0 && message.text;
  if (!message.text && questionAge === 1) closeQuestion(message.start, isLive);
  questionAge = isAnswer ? 0 : Math.max(0, questionAge - 1);
  if (!message.text) return;
  addLine(message.start, message.text, isAnswer ? "answer" : "", isLive);
  if (!isLive || hasEnded) return; // the last step of a stream may finish after its end
  const words = document.createElement("span");
  words.textContent = message.text; words.className = isAnswer ? "answer" : "";
  $("overlay").replaceChildren(words); $("overlay").classList.remove("old"); $("spoken").textContent = message.text;
  clearTimeout(overlayTimer); overlayTimer = setTimeout(() => $("overlay").classList.add("old"), OVERLAY_MS);
  speak(message.text);
}

// A question that the model answered with silence gets a line that says so.
function closeQuestion(second = null, isLive = true) {
  if (questionAge) addLine(second, "(nothing)", "answer silent", isLive);
  questionAge = 0;
}

function speak(text) {
  if (!voiceOn || !window.speechSynthesis) return;
  if (speechSynthesis.pending) speechSynthesis.cancel(); // the newest caption counts: the voice must not fall behind
  const words = new SpeechSynthesisUtterance(text);
  words.lang = "en"; words.volume = Number($("volume").value); words.rate = 1.1;
  speechSynthesis.speak(words);
}

function showMeasurements(caption) {
  const latency = 1000 * caption.latency_seconds, total = (runs) => runs.reduce((sum, [, length]) => sum + length, 0);
  latencies = [...latencies, latency].slice(-MAX_SAMPLES); factors = [...factors, caption.realtime_factor].slice(-MAX_SAMPLES); stageTimes = [...stageTimes, caption.stage_ms].slice(-MAX_SAMPLES);
  $("clock").textContent = clock(caption.end);
  $("latency").textContent = Math.round(latency);
  const factor = caption.realtime_factor >= 10 ? Math.round(caption.realtime_factor) : caption.realtime_factor.toFixed(1);
  $("speed").textContent = factor;
  $("step").textContent = Math.round(Object.values(caption.stage_ms).reduce((a, b) => a + b, 0));
  $("pace").textContent = factor >= 1 ? "the video's speed: keeps up" : "the video's speed: too slow";
  $("stages").textContent = [["looking", "vision"], ["reading", "prefill"], ["writing", "decode"]].map(([word, stage]) => `${word} ${Math.round((caption.stage_ms[stage] ?? 0) + (caption.stage_ms[`${stage} dispatch`] ?? 0))}`).join(" · ");
  $("dropped").textContent = caption.dropped_total; $("chunks").textContent = `of ${Math.round(caption.end / hello.chunk_seconds)} steps`;
  sparkline($("latencyline"), latencies, "#f5b83d"); sparkline($("speedline"), factors, "#34d399"); columns($("stageline"), stageTimes, MAX_SAMPLES);
  bar.show(caption.cache, caption.capacity);
  const tokens = {};
  for (const [kind, length] of caption.cache.retained) tokens[hello.cache_kinds[kind]] = (tokens[hello.cache_kinds[kind]] || 0) + length;
  for (const kind of hello.cache_kinds) $("legend").querySelector(`[data-kind=${kind}] b`).textContent = tokens[kind] || 0;
  const evicted = total(caption.cache.evicted), retained = total(caption.cache.retained);
  $("retained").textContent = `${retained} tokens, oldest first`;
  $("evicted").textContent = `− ${evicted} forgotten`; $("evicted").classList.toggle("active", evicted > 0);
  if (caption.number % 10 === 0) $("cache").setAttribute("aria-label", `What the model remembers: ${retained} tokens of ${caption.capacity}; ` + hello.cache_kinds.map((kind) => `${NAMES[kind]} ${tokens[kind] || 0}`).join(", "));
}

function showLegend() {
  $("legend").replaceChildren(...hello.cache_kinds.map((kind) => {
    const item = document.createElement("li"), dot = document.createElement("i"), count = document.createElement("b");
    item.dataset.kind = kind; dot.style.setProperty("--is", COLOURS[kind]); count.textContent = "0";
    item.append(dot, NAMES[kind], count);
    return item;
  }));
}

// A frame of the server: 8 bytes with its second, then JPEG. Frames that come while one is decoded are skipped.
async function showFrame(data) {
  if (isDecoding || !stream) return;
  isDecoding = true;
  try {
    const image = await createImageBitmap(new Blob([new Uint8Array(data, 8)], { type: "image/jpeg" })), screen = $("picture");
    if (screen.width !== image.width || screen.height !== image.height) { screen.width = image.width; screen.height = image.height; }
    screen.getContext("2d").drawImage(image, 0, 0);
    image.close();
  } catch { /* a damaged frame: the next one comes */ } finally { isDecoding = false; }
}

// images of this browser

function sendImage(blob) { if (isOwner && !hasEnded && socket.readyState === 1) socket.send(blob); }
function stopCapture() { capture?.stop(); capture = null; }

// The camera or file of the stream that this page owns. After a reload the camera is opened again; a file would have to be chosen again.
function resumeCapture() {
  if (capture?.kind === "file") storage.set(`${stream}/file`, "1");
  if (!capture && !storage.get(`${stream}/file`)) Capture.camera(hello.camera, sendImage).then((camera) => { capture = camera; showCamera(true); camera.start(); }).catch(() => {});
  capture?.start();
}

async function startStream(message, file) {
  stopCapture();
  if (message.source === "camera") {
    if (!file && !navigator.mediaDevices) { toast("this browser gives cameras to https:// and localhost only"); return; }
    try { capture = file ? await Capture.file(file, hello.camera, sendImage) : await Capture.camera(hello.camera, sendImage); }
    catch (error) { toast(file ? error.message : `camera: ${error.message}`); return; }
    const started = capture;
    started.onended = () => setTimeout(() => { started.isOver = true; if (capture === started) send({ type: "stop", key: storage.get(stream) || "" }); }, LAST_IMAGES_MS);
  }
  if (message.source !== "listed") { $("source").value = file ? "file" : message.source; showFields(); } // for the next time
  pendingRequest = "start"; send(message);
}

// controls

const picker = Object.assign(document.createElement("input"), { type: "file", accept: $("file").accept });

function showSources() {
  const selected = $("source").value, choices = [["match", "Generated match"], ...hello.sources.map((name, n) => [`listed:${n}`, name]), ["camera", "My camera"], ["file", "A video file of mine"]];
  if (hello.allow_addresses) choices.push(["address", "A file or address on the server"]);
  $("source").replaceChildren(...choices.map(([value, text]) => new Option(text, value, false, value === selected)));
  showFields();
}

function showFields() {
  $("seedfield").hidden = $("source").value !== "match"; $("addressfield").hidden = $("source").value !== "address";
  $("filefield").hidden = $("source").value !== "file";
}

$("start").addEventListener("submit", (event) => {
  event.preventDefault();
  const [source, index] = $("source").value.split(":"), message = { type: "start", source: source === "file" ? "camera" : source };
  const file = source === "file" ? $("file").files[0] : null;
  if (source === "file" && !file) { toast("choose a video file first"); return; }
  if (source === "listed") message.index = Number(index);
  if (source === "match" && /^\d+$/.test($("seed").value.trim())) message.seed = Number($("seed").value);
  if (source === "address") message.address = $("address").value.trim();
  if ($("query").value.trim()) message.query = $("query").value.trim();
  startStream(message, file);
});
$("source").addEventListener("change", showFields);
$("quick").addEventListener("click", () => startStream({ type: "start", source: "match" }));
$("quickcamera").addEventListener("click", () => startStream({ type: "start", source: "camera" }));
$("quickfile").addEventListener("click", () => { picker.value = ""; picker.click(); });
picker.addEventListener("change", () => { if (picker.files[0]) startStream({ type: "start", source: "camera" }, picker.files[0]); });
$("speak").addEventListener("click", () => {
  voiceOn = !voiceOn; $("speak").setAttribute("aria-pressed", voiceOn); $("speak").textContent = voiceOn ? "Voice on" : "Voice off";
  if (!voiceOn) speechSynthesis.cancel();
});
$("streams").addEventListener("click", (event) => {
  const name = event.target.closest("button")?.dataset.stream;
  if (name && name !== stream) { pendingRequest = "join"; send({ type: "join", stream: name, after: -1, key: storage.get(name) || "" }); }
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (question) { send({ type: "ask", question }); $("question").value = ""; }
});
$("stop").addEventListener("click", () => send({ type: "stop", key: storage.get(stream) || "" }));
$("leave").addEventListener("click", () => { send({ type: "leave" }); leave(); });
$("newest").addEventListener("click", () => { $("log").scrollTop = $("log").scrollHeight; });
$("log").addEventListener("scroll", () => { const log = $("log"); if (log.scrollHeight - log.scrollTop - log.clientHeight < 48) $("newest").hidden = true; });
addEventListener("online", () => { attempts = 0; if (socket.readyState > 1) connect(); });
connect();

// The page: one socket, what it tells, what is asked of it. A socket that drops comes back by itself, to the same stream, and gets
// the captions that were missed.

import { CacheBar, COLOURS, NAMES, columns, sparkline } from "/draw.js";

const $ = (id) => document.getElementById(id);
const LOGGED = 400, RECENT = 60, SHOWN = 4000, SLOWEST = 10000;
const memory = { get: (key) => { try { return sessionStorage.getItem(key); } catch { return null; } }, set: (key, value) => { try { sessionStorage.setItem(key, value); } catch { /* private mode */ } } };

let socket, tries = 0, hello, bar, stream = null, last = -1, owner = false, waiting = null, over = false;
let latencies = [], speeds = [], steps = [], answering = 0, hiding, decoding = false, camera = null, resting;

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
    $("model").textContent = hello.model || "";
    bar ||= new CacheBar($("cache"), hello.kinds);
    if (!$("legend").children.length) legend();
    sources();
    $("question").maxLength = $("query").maxLength = hello.question;
    const wanted = stream || location.hash.slice(1);
    if (/^[a-z0-9]{8}$/.test(wanted)) { waiting = "join"; send({ type: "join", stream: wanted, after: stream ? last : -1, key: memory.get(wanted) || "" }); }
    else leave();
  },

  streams(message) {
    $("crowd").textContent = `${message.viewers} ${message.viewers === 1 ? "viewer" : "viewers"}`;
    $("rows").textContent = `${message.streams.length} of ${message.rows} rows`;
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
    waiting = null; stream = message.stream; owner = message.owner; over = false;
    history.replaceState(null, "", `#${stream}`);
    if (!again) { last = -1; clear(); }
    $("empty").hidden = true; $("live").hidden = $("clock").hidden = false;
    $("live").classList.remove("over"); $("live").textContent = "Live";
    $("title").textContent = message.title; subtitle(message);
    $("vtt").href = `/streams/${stream}.vtt`; $("vtt").hidden = $("leave").hidden = $("stop").hidden = false;
    $("ask").querySelectorAll("input, button").forEach((one) => { one.disabled = false; });
    if (message.cut) notice(message.missed[0]?.start ?? 0, again ? "some captions before this were missed" : "the stream began before this");
    for (const one of message.missed) entry(one, again);
    if (message.last) numbers(message.last);
    $("starter").open = false;
    const mine = owner && message.source === "webcam";
    $("camera").hidden = !mine; $("picture").hidden = mine;
    if (mine && !camera) openCamera().catch(() => {});
    if (!mine) closeCamera();
    if (message.over) told.ended({ reason: message.over });
  },

  caption(message) { if (message.stream === stream && message.number > last) { entry(message, true); numbers(message); } },
  dropped(message) { if (message.stream === stream && message.number > last) { entry(message, true); $("dropped").textContent = message.dropped; } },
  asked({ question, waiting: before }) { notice(null, before ? `asked, after ${before} other${before > 1 ? "s" : ""}: ${question}` : `asked: ${question}`, "pending"); },
  unasked({ error }) { notice(null, `not asked: ${error}`); },

  ended({ reason }) {
    over = true; owner = false; closeCamera();
    notice(null, `the stream has ended: ${reason}`);
    $("live").textContent = "Ended"; $("live").classList.add("over");
    $("stop").hidden = true;
    $("ask").querySelectorAll("input, button").forEach((one) => { one.disabled = true; });
  },

  error({ error }) {
    toast(error);
    if (waiting === "join" && /^stream:/.test(error)) { leave(); $("emptyline").textContent = "That stream has ended."; }
    if (waiting === "start") closeCamera();
    waiting = null;
  },
};

// what is shown

function clock(second) {
  const s = Math.floor(second), pad = (n) => String(n).padStart(2, "0");
  return s >= 3600 ? `${Math.floor(s / 3600)}:${pad(Math.floor(s / 60) % 60)}:${pad(s % 60)}` : `${Math.floor(s / 60)}:${pad(s % 60)}`;
}

function subtitle(one) { $("subtitle").textContent = `${one.viewers} watching${owner ? " · yours" : ""}`; }

function clear() {
  $("log").replaceChildren(); latencies = []; speeds = []; steps = []; answering = 0;
  bar?.clear(); $("overlay").replaceChildren(); $("dropped").textContent = "0"; $("chunks").textContent = "of 0, too late to watch";
  for (const id of ["latency", "speed", "step"]) $(id).textContent = "–";
  const screen = $("picture"); screen.getContext("2d").clearRect(0, 0, screen.width, screen.height);
}

function leave() {
  stream = null; last = -1; owner = false; closeCamera(); clear();
  history.replaceState(null, "", location.pathname);
  $("empty").hidden = false; $("emptyline").textContent = "Nothing is playing here.";
  for (const id of ["live", "clock", "vtt", "leave", "stop", "camera"]) $(id).hidden = true;
  $("picture").hidden = false; $("title").textContent = "No stream"; $("subtitle").textContent = "";
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
  if (message.type === "dropped") { line(message.start, `${message.chunks} chunk${message.chunks > 1 ? "s" : ""} dropped: too late`, "notice", fresh); return; }
  if (message.note) notice(message.start, message.note);
  if (message.question) {
    $("log").querySelectorAll("li.pending").forEach((one) => { if (one.textContent.endsWith(message.question)) one.remove(); });
    line(message.start, message.question, "question", fresh); answering = 2;
  }
  const answer = answering > 0 && message.text;
  answering = answer ? 0 : Math.max(0, answering - 1);
  if (!message.text) return;
  line(message.start, message.text, answer ? "answer" : "", fresh);
  if (!fresh) return;
  const words = document.createElement("span");
  words.textContent = message.text; words.className = answer ? "answer" : "";
  $("overlay").replaceChildren(words); $("overlay").classList.remove("old"); $("spoken").textContent = message.text;
  clearTimeout(hiding); hiding = setTimeout(() => $("overlay").classList.add("old"), SHOWN);
}

function numbers(message) {
  latencies = [...latencies, 1000 * message.latency].slice(-RECENT); speeds = [...speeds, message.speed].slice(-RECENT); steps = [...steps, message.ms].slice(-RECENT);
  $("clock").textContent = clock(message.end);
  $("latency").textContent = Math.round(1000 * message.latency);
  $("speed").textContent = message.speed >= 10 ? Math.round(message.speed) : message.speed.toFixed(1);
  $("step").textContent = Math.round(Object.values(message.ms).reduce((a, b) => a + b, 0));
  $("stages").textContent = ["vision", "prefill", "decode"].map((stage) => `${stage} ${Math.round(message.ms[stage] ?? 0)}`).join(" · ");
  $("dropped").textContent = message.dropped; $("chunks").textContent = `of ${Math.round(message.end / hello.chunk)}, too late to watch`;
  sparkline($("latencyline"), latencies, "#f5b83d"); sparkline($("speedline"), speeds, "#34d399"); columns($("stageline"), steps, RECENT);
  bar.show(message.cache, message.capacity);
  const sums = {};
  for (const [kind, length] of message.cache.held) sums[hello.kinds[kind]] = (sums[hello.kinds[kind]] || 0) + length;
  for (const kind of hello.kinds) $("legend").querySelector(`[data-kind=${kind}] b`).textContent = sums[kind] || 0;
  const lost = message.cache.gone.reduce((sum, [, length]) => sum + length, 0), held = message.cache.held.reduce((sum, [, length]) => sum + length, 0);
  $("held").textContent = `${held} tokens, oldest first`;
  $("gone").textContent = `− ${lost} evicted`; $("gone").classList.toggle("now", lost > 0);
  if (message.number % 10 === 0) $("cache").setAttribute("aria-label", `The cache: ${held} of ${message.capacity} slots in use; ` + hello.kinds.map((kind) => `${NAMES[kind]} ${sums[kind] || 0}`).join(", "));
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

// the camera

async function openCamera() {
  const media = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: hello.camera.width }, height: { ideal: hello.camera.height } }, audio: false });
  const video = $("camera"), small = document.createElement("canvas");
  video.srcObject = media;
  await video.play();
  const timer = setInterval(() => {
    if (!owner || socket.readyState !== 1 || !video.videoWidth) return;
    const scale = Math.min(1, hello.camera.width / video.videoWidth, hello.camera.height / video.videoHeight);
    small.width = Math.round(video.videoWidth * scale); small.height = Math.round(video.videoHeight * scale);
    small.getContext("2d").drawImage(video, 0, 0, small.width, small.height);
    small.toBlob((blob) => { if (blob && blob.size <= hello.camera.bytes && owner && socket.readyState === 1) socket.send(blob); }, "image/jpeg", 0.8);
  }, 1000 / hello.camera.fps);
  camera = { media, timer };
}

function closeCamera() {
  if (!camera) return;
  clearInterval(camera.timer); camera.media.getTracks().forEach((track) => track.stop()); camera = null;
}

// what is asked

function sources() {
  const chosen = $("source").value, choices = [["match", "Generated match"], ...hello.sources.map((name, n) => [`listed:${n}`, name]), ["webcam", "My camera"]];
  if (hello.addresses) choices.push(["address", "File or URL…"]);
  $("source").replaceChildren(...choices.map(([value, text]) => new Option(text, value, false, value === chosen)));
  fields();
}

function fields() {
  $("seedfield").hidden = $("source").value !== "match"; $("addressfield").hidden = $("source").value !== "address";
}

async function start(message) {
  closeCamera();
  if (message.source === "webcam") {
    if (!navigator.mediaDevices) { toast("this browser gives cameras to https:// and localhost only"); return; }
    try { await openCamera(); } catch (error) { toast(`camera: ${error.message}`); return; }
  }
  waiting = "start"; send(message);
}

$("start").addEventListener("submit", (event) => {
  event.preventDefault();
  const [source, number] = $("source").value.split(":"), message = { type: "start", source };
  if (source === "listed") message.number = Number(number);
  if (source === "match" && /^\d+$/.test($("seed").value.trim())) message.seed = Number($("seed").value);
  if (source === "address") message.address = $("address").value.trim();
  if ($("query").value.trim()) message.query = $("query").value.trim();
  start(message);
});
$("source").addEventListener("change", fields);
$("quick").addEventListener("click", () => start({ type: "start", source: "match" }));
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

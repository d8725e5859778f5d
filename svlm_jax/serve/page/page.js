// The page: what it does with each event of the server, and with each control. The socket is `client`, the words are `captions`, the
// rest are the views around them.

import { Captions } from "/captions.js";
import { RealtimeClient } from "/client.js";
import { History, clock } from "/history.js";
import { CaptionLog } from "/log.js";
import { Measurements } from "/measurements.js";
import { SettingsPanel } from "/settings.js";
import { Sources } from "/sources.js";
import { Thumbnails } from "/thumbnails.js";
import { Timeline } from "/timeline.js";
import { storage } from "/storage.js";
import { Voice } from "/voice.js";

const $ = (id) => document.getElementById(id);

const scheme = location.protocol === "https:" ? "wss" : "ws";
const client = new RealtimeClient(`${scheme}://${location.host}/v1/realtime`, { subscribe: ["streams", "video", "chunks"] });
const history = new History(), thumbnails = new Thumbnails(), measurements = new Measurements(), voice = new Voice($("volume"));
const log = new CaptionLog($("log"), $("newest"));
const captions = new Captions({ history, log, voice, overlay: $("overlay"), announcer: $("spoken") });
captions.onWaiting = (isWaiting) => { $("cancel").hidden = !isWaiting; };
const timelineParts = { canvas: $("timeline"), tip: $("tip"), recent: $("recent") };
const timeline = new Timeline(history, timelineParts, thumbnails, (second) => log.showSecond(second));
const settingsParts = {
  fields: $("fields"), slider: $("silence"), own: $("ownsilence"), level: $("level"), watch: $("watch"), unwatch: $("unwatch"),
  note: $("settingsnote"), error: $("settingserror"),
};
const settings = new SettingsPanel(settingsParts, (changes) => {
  if (!client.updateSettings(changes)) toast("not connected; trying again");
});
const sources = new Sources(client, toast);

let server = null; // of `session.created`
let isFull = false; // all streams are in use
let isDecoding = false; // a frame
const isPlaying = () => !!client.stream && !client.stream.hasEnded;

function toast(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => { $("toast").hidden = true; }, 7000);
}

// connection and session

client.on("connection", ({ state, isReconnect, reason, delay }) => {
  const lost = reason || `connection lost; again in ${Math.ceil(delay / 1000)} s`;
  const words = { open: "connected", connecting: isReconnect ? "reconnecting" : "connecting", lost };
  $("link").dataset.state = state;
  $("link").lastElementChild.textContent = words[state];
  if (state === "lost") captions.forgetWaiting();
  if (state !== "open") enableQuestions(false);
});

client.on("session.created", ({ session }) => {
  server = session.svlm.server;
  $("model").textContent = server.model || "";
  $("about").hidden = !server.model;
  showServerSettings();
  measurements.start(server);
  sources.show(server);
  $("question").maxLength = $("query").maxLength = server.max_question_chars;
  $("query").placeholder = server.default_query || "";
  if (client.stream) return; // the client joins it again
  showSessionSettings();
  const name = location.hash.slice(1);
  if (/^[\w-]{1,64}$/.test(name)) client.joinStream(name, { key: storage.get(name) || "" });
  else showIdle();
});

client.on("session.updated", showSessionSettings);
client.on("svlm.stream.updated", ({ settings: ofStream }) => showSettings(ofStream));

function showSessionSettings() { showSettings(client.session.svlm); }

function showSettings(values) {
  timeline.hasAlert = !!values.alert;
  if (!values.alert) $("alert").hidden = true;
  settings.show(values, { canChange: !isPlaying() || client.stream.isOwner, isPlaying: isPlaying() });
}

client.on("svlm.streams", ({ streams, num_streams: numStreams, num_viewers: numViewers }) => {
  $("viewers").textContent = `${numViewers} ${numViewers === 1 ? "viewer" : "viewers"}`;
  isFull = streams.length >= numStreams;
  $("streamcount").textContent = `${streams.length} running, room for ${numStreams}`;
  const focus = document.activeElement?.dataset?.stream;
  $("streams").replaceChildren(...streams.map(streamItem));
  if (focus) $("streams").querySelector(`[data-stream="${focus}"]`)?.focus();
});

function streamItem(summary) {
  const item = document.createElement("li"), button = document.createElement("button"), details = document.createElement("span");
  button.type = "button";
  button.dataset.stream = summary.stream;
  button.textContent = summary.title;
  details.textContent = `${clock(summary.seconds)} · ${summary.num_viewers} watching`;
  button.append(details);
  if (summary.stream === client.stream?.name) {
    button.setAttribute("aria-current", "true");
    showSubtitle(summary);
  }
  item.append(button);
  return item;
}

client.on("error", ({ error, request }) => {
  switch (request?.type) {
    case "session.update":
      settings.refuse(request.session.svlm, error.message.replace(/^session\.svlm\./, ""));
      $("tune").open = true;
      return;
    case "svlm.stream.start":
      sources.stop();
      toast(isFull ? "There is no room for another stream: join one that runs, or wait until one ends." : error.message);
      return;
    case "svlm.stream.join":
      if (!client.stream) {
        showIdle();
        $("emptyline").textContent = "That stream has ended.";
      }
      break;
    default:
  }
  toast(error.message);
});

// a stream

client.on("svlm.stream.started", ({ stream, key }) => storage.set(stream, key));

client.on("svlm.stream.joined", (joined) => {
  window.history.replaceState(null, "", `#${joined.stream}`);
  if (!joined.isReconnect) clear();
  document.body.classList.remove("idle", "ended");
  $("empty").hidden = true;
  $("live").hidden = $("clock").hidden = $("strip").hidden = $("bar").hidden = false;
  $("speak").hidden = !voice.isAvailable;
  showLive("Live");
  const remedy = "start with --model Qwen/Qwen2.5-VL-3B-Instruct for your video";
  $("gameonly").textContent = `${server.model} knows only the generated game; ${remedy}`;
  $("gameonly").hidden = !server.is_game_model || joined.is_game;
  const isPushed = joined.is_owner && joined.source === "push" && !joined.end_reason; // images of this page
  $("title").textContent = (isPushed && sources.title) || joined.title;
  showSubtitle(joined);
  $("vtt").href = `/streams/${joined.stream}.vtt`;
  $("leave").hidden = $("stop").hidden = false;
  enableQuestions(true);
  showSettings(joined.settings ?? client.session.svlm);
  if (joined.is_truncated) {
    history.isTruncated = true;
    if (joined.isReconnect) captions.notice(null, "some captions before this were missed");
    else showEarlier(joined.stream);
  }
  if (joined.last_chunk) {
    measurements.show(joined.last_chunk);
    $("clock").textContent = clock(joined.last_chunk.end);
  }
  $("starter").open = false;
  if (isPushed) sources.resume(); else sources.stop();
});

// The server tells those who join the last captions only; its subtitles have those of hours.
async function showEarlier(stream) {
  const response = await fetch(`/streams/${stream}.vtt`).catch(() => null);
  const vtt = response?.ok ? await response.text() : "";
  if (client.stream?.name !== stream) return;
  captions.prepend(vtt);
  timeline.update();
}

client.on("svlm.stream.ended", ({ reason }) => {
  captions.onEnded(sources.isOver ? "the video is over" : reason);
  document.body.classList.add("ended");
  sources.stop();
  showLive("Ended");
  $("gameonly").hidden = $("stop").hidden = $("leave").hidden = true;
  $("subtitle").textContent = "has ended";
  $("empty").hidden = false;
  $("emptyline").textContent = "This stream has ended.";
  $("starter").open = true;
  enableQuestions(false);
  showSessionSettings();
});

client.on("response.created", (event) => captions.onCreated(event));
client.on("response.output_text.delta", (event) => captions.onDelta(event));
client.on("response.done", (event) => captions.onDone(event));
client.on("svlm.question.queued", (event) => captions.onQueued(event));
client.on("svlm.note", ({ start, text }) => captions.notice(start, text));

client.on("svlm.chunk.done", (chunk) => {
  captions.onChunk(chunk);
  measurements.show(chunk);
  $("clock").textContent = clock(chunk.end);
  if (!chunk.isMissed) thumbnails.add(chunk.start, sources.isShown ? $("camera") : $("picture"));
  timeline.update();
});

client.on("svlm.chunk.dropped", (event) => {
  captions.onDropped(event);
  if (event.dropped_total !== undefined) measurements.showDropped(event.dropped_total);
  timeline.update();
});

client.on("svlm.alert", (event) => {
  const { name, state } = captions.onAlert(event);
  $("alert").hidden = !state;
  $("alert").textContent = name;
  timeline.update();
});

for (const type of ["svlm.source.lost", "svlm.source.back"]) {
  client.on(type, (event) => {
    captions.onSource(event);
    showLive(type === "svlm.source.lost" ? "Source lost" : "Live");
    timeline.update();
  });
}

// A frame; those that come while one is decoded are skipped.
client.on("frame", async ({ jpeg }) => {
  if (isDecoding) return;
  isDecoding = true;
  try {
    const image = await createImageBitmap(jpeg), screen = $("picture");
    const { width, height } = image;
    if (screen.width !== width || screen.height !== height) Object.assign(screen, { width, height }); // which clears it
    screen.getContext("2d").drawImage(image, 0, 0);
    image.close();
  } catch { /* a damaged frame: the next one comes */ } finally { isDecoding = false; }
});

// what is shown

function showSubtitle(summary) { $("subtitle").textContent = `${summary.num_viewers} watching${client.stream?.isOwner ? " · yours" : ""}`; }
function enableQuestions(enabled) { for (const control of $("ask").elements) control.disabled = !enabled; }

function showLive(text) {
  $("live").textContent = text;
  $("live").dataset.state = text;
}

function showServerSettings() {
  $("settings").replaceChildren(...(server.settings || []).flatMap(([name, value]) => {
    const term = document.createElement("dt"), description = document.createElement("dd");
    term.textContent = name;
    description.textContent = value;
    return [term, description];
  }));
  $("volumefield").hidden = !voice.isAvailable;
}

function clear() {
  captions.clear();
  thumbnails.clear();
  timeline.clear();
  measurements.clear();
  $("alert").hidden = true;
  const screen = $("picture");
  screen.getContext("2d").clearRect(0, 0, screen.width, screen.height);
}

function showIdle() {
  sources.stop();
  clear();
  document.body.classList.add("idle");
  document.body.classList.remove("ended");
  window.history.replaceState(null, "", location.pathname);
  $("empty").hidden = false;
  $("emptyline").textContent = "Nothing is playing here.";
  for (const id of ["live", "clock", "strip", "leave", "stop", "speak", "gameonly"]) $(id).hidden = true;
  $("title").textContent = "No stream";
  $("subtitle").textContent = "";
  enableQuestions(false);
  showSessionSettings();
}

// controls

$("speak").addEventListener("click", () => {
  const isOn = voice.toggle();
  $("speak").setAttribute("aria-pressed", isOn);
  $("speak").textContent = isOn ? "Voice on" : "Voice off";
});
$("streams").addEventListener("click", (event) => {
  const name = event.target.closest("button")?.dataset.stream;
  if (name && name !== client.stream?.name) client.joinStream(name, { key: storage.get(name) || "" });
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim(), id = question && client.ask(question);
  if (!id) return;
  captions.onAsked(id, question);
  $("question").value = "";
});
$("cancel").addEventListener("click", () => {
  client.cancel();
  captions.forgetWaiting();
});
$("stop").addEventListener("click", () => client.stopStream());
$("leave").addEventListener("click", () => {
  client.leaveStream();
  showIdle();
});

function save(name, type, text) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
const fileName = (ending) => `${client.stream?.name || "captions"}.${ending}`;
$("text").addEventListener("click", () => save(fileName("txt"), "text/plain", history.toText()));
$("json").addEventListener("click", () => {
  save(fileName("json"), "application/json", history.toJSON({ stream: client.stream?.name, title: $("title").textContent }));
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(history.toText());
    $("copy").textContent = "Copied";
  } catch { toast("this browser lets pages of https:// and localhost copy only"); }
  setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
});
for (const type of ["click", "keydown"]) {
  addEventListener(type, (event) => { // menus close by a click elsewhere, and by Escape
    for (const menu of document.querySelectorAll("details.menu[open]")) {
      if (event.key === "Escape" || (type === "click" && !menu.contains(event.target))) menu.open = false;
    }
  });
}
addEventListener("online", () => client.reconnect());
client.connect();

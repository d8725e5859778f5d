// A client of /v1/realtime: one WebSocket that comes back by itself, to the same stream, with what it missed.
//
//   const client = new RealtimeClient("wss://host/v1/realtime", { subscribe: ["chunks"] });
//   client.on("session.created", () => client.startStream({ type: "push" }, { silence: 0.5 }));
//   client.on("response.output_text.delta", ({ text }) => console.log(text)); // the reply so far
//   client.connect();
//   client.sendFrame(blob); client.ask("What is on the table?"); client.updateSettings({ temperature: 0 });
//
// The protocol is the text subset of OpenAI's Realtime API with events of its own, `svlm.*`: docs/realtime.md lists them. Handlers
// get the server's events as they are, and these fields more:
//
//   connection                  not of the server: { state: "connecting" | "open" | "lost", isReconnect, reason, delay (ms) }
//   frame                       not of the server: { second, jpeg: Blob }, an image of the video that is watched
//   error                       request: the event that this answers, if it was one of this client
//   svlm.stream.joined          isReconnect: the same stream as before; its missed events follow one by one, with isMissed
//   response.output_text.delta  text: of the reply so far; response: as in `response.created`
//
// Events of a stream that is not watched any more, and chunks that came twice, are not handed on. No DOM: browser, worker or Node 22.

const FIRST_DELAY_MS = 500, MAX_DELAY_MS = 10_000; // between two attempts to connect, doubling
const MAX_BUFFERED_BYTES = 500_000; // on a slow uplink frames are skipped rather than sent late
const MAX_REQUESTS = 64, MAX_RESPONSES = 32; // that are remembered
const MISSED_TYPES = { dropped: "svlm.chunk.dropped", alert: "svlm.alert", lost: "svlm.source.lost", back: "svlm.source.back" }; // by kind
const FRAME_HEADER_BYTES = 8; // before the JPEG of a frame: its second, a little-endian float64

export class RealtimeClient {
  // subscribe: what is sent beside replies: "streams" (the list), "video" (frames), "chunks" (every chunk with its measurements).
  constructor(url, { subscribe = [] } = {}) {
    this.url = url;
    this.subscribe = subscribe;
    this.settings = {}; // what `updateSettings` asked for: a new connection asks again
    this.session = null; // as in `session.created` and `session.updated`
    this.stream = null; // the one that is watched: { name, key, isOwner, hasEnded, lastNumber of its history }
    this.handlers = new Map();
    this.keys = new Map(); // of streams, by name: for their owner
    this.requests = new Map(); // event_id -> event
    this.responses = new Map(); // id -> { response, text }: replies that are being written
    this.attempts = this.numEvents = this.timer = 0;
  }

  // Call handler with each event of a type; "*": with every event.
  on(type, handler) {
    if (!this.handlers.has(type)) this.handlers.set(type, []);
    this.handlers.get(type).push(handler);
    return this;
  }

  // connection

  get isOpen() { return this.socket?.readyState === 1; }

  connect() {
    clearTimeout(this.timer);
    this.isClosed = false;
    this.emit({ type: "connection", state: "connecting", isReconnect: this.attempts > 0 });
    const socket = this.socket = new WebSocket(this.url);
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => {
      if (socket !== this.socket) return;
      if (typeof data === "string") this.receive(JSON.parse(data)); else this.receiveFrame(data);
    };
    socket.onclose = ({ reason }) => { if (socket === this.socket) this.reconnectLater(reason); };
  }

  // Try again now, not when the delay is over: the network is back.
  reconnect() {
    if (this.isClosed || (this.socket?.readyState ?? 3) < 2) return;
    this.attempts = 0;
    this.connect();
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.timer);
    this.socket?.close();
  }

  reconnectLater(reason) {
    this.responses.clear(); // what they said comes again as missed chunks
    this.requests.clear();
    if (this.isClosed) return;
    const delay = Math.min(MAX_DELAY_MS, FIRST_DELAY_MS * 2 ** this.attempts++) * (0.7 + 0.6 * Math.random()); // not all at once
    this.timer = setTimeout(() => this.connect(), delay);
    this.emit({ type: "connection", state: "lost", reason, delay });
  }

  // to the server

  // Send an event. Its event_id, or null: not connected.
  send(type, fields = {}) {
    if (!this.isOpen) return null;
    const event = { type, event_id: `client_${++this.numEvents}`, ...fields };
    remember(this.requests, event.event_id, event, MAX_REQUESTS);
    this.socket.send(JSON.stringify(event));
    return event.event_id;
  }

  // settings: fields of `session.svlm`, only those to change. They hold for the stream that this client owns, and for the next one that
  // it starts.
  updateSettings(settings) {
    Object.assign(this.settings, settings);
    return this.sendSettings(settings);
  }

  sendSettings(settings) { return this.send("session.update", { session: { type: "realtime", svlm: settings } }); }

  // source: { type: "push" } for frames of this client, or "match", "listed", "address" with their fields. settings: as above, for this
  // stream alone.
  startStream(source, settings = {}) { return this.send("svlm.stream.start", { source, svlm: settings }); }

  // key: of `svlm.stream.started`, for its owner.
  joinStream(stream, { key = "", after = -1 } = {}) {
    this.keys.set(stream, key);
    return this.send("svlm.stream.join", { stream, after, key });
  }

  leaveStream() {
    this.stream = null;
    this.responses.clear();
    return this.send("svlm.stream.leave");
  }

  stopStream() { return this.send("svlm.stream.stop", { key: this.stream?.key ?? "" }); }

  // An encoded image (JPEG, PNG or WebP) of the own stream. Whether it was sent.
  sendFrame(image) {
    if (!this.isOpen || !this.stream?.isOwner || this.stream.hasEnded || this.socket.bufferedAmount > MAX_BUFFERED_BYTES) return false;
    this.socket.send(image);
    return true;
  }

  // Ask about the video. The id of the question, which its response has as metadata.question_id; null: not connected.
  ask(question) {
    const questionId = `question_${randomId()}`, content = [{ type: "input_text", text: question }];
    if (!this.send("conversation.item.create", { item: { type: "message", role: "user", content } })) return null;
    this.send("response.create", { response: { metadata: { question_id: questionId } } });
    return questionId;
  }

  // Stop a reply while it is written; without an id the one that is being written, and own questions that wait.
  cancel(responseId) { return this.send("response.cancel", responseId ? { response_id: responseId } : {}); }

  // from the server

  emit(event) {
    for (const type of [event.type, "*"]) for (const handler of this.handlers.get(type) ?? []) handler(event);
  }

  receiveFrame(data) {
    if (!this.stream || data.byteLength <= FRAME_HEADER_BYTES) return;
    const jpeg = new Blob([new Uint8Array(data, FRAME_HEADER_BYTES)], { type: "image/jpeg" });
    this.emit({ type: "frame", second: new DataView(data).getFloat64(0, true), jpeg });
  }

  receive(event) {
    if (event.stream && event.type !== "svlm.stream.started" && event.type !== "svlm.stream.joined") {
      if (event.stream !== this.stream?.name || !this.isNew(event)) return;
    }
    const own = OWN_HANDLING[event.type];
    if (own) own.call(this, event); else this.emit(event);
  }

  isWatched({ svlm }) { return !svlm?.stream || svlm.stream === this.stream?.name; }

  // What belongs to the history is numbered without gaps; `missed` may hold an event that is also sent to everybody.
  isNew({ number }) {
    if (number === undefined) return true;
    if (number <= this.stream.lastNumber) return false;
    this.stream.lastNumber = number;
    return true;
  }
}

function randomId() { return Math.random().toString(36).slice(2, 12); }

function remember(map, key, value, max) {
  map.set(key, value);
  if (map.size > max) map.delete(map.keys().next().value);
}

// Events that change the state of the client.
const OWN_HANDLING = {
  "session.created"(event) {
    const isReconnect = this.attempts > 0;
    this.attempts = 0;
    this.session = event.session;
    this.sendSettings({ ...this.settings, subscribe: this.subscribe }); // the server waits for a first message
    if (this.stream) this.joinStream(this.stream.name, { key: this.stream.key, after: this.stream.lastNumber });
    this.emit({ type: "connection", state: "open", isReconnect });
    this.emit(event);
  },

  "session.updated"(event) {
    this.session = event.session;
    this.emit(event);
  },

  "svlm.stream.started"(event) {
    this.keys.set(event.stream, event.key);
    this.emit(event);
  },

  "svlm.stream.joined"(event) {
    const isReconnect = this.stream?.name === event.stream, { missed = [], ...joined } = event;
    if (!isReconnect) this.responses.clear();
    const key = this.keys.get(event.stream) ?? "";
    const lastNumber = isReconnect ? this.stream.lastNumber : -1;
    this.stream = { name: event.stream, key, isOwner: event.is_owner, hasEnded: false, lastNumber };
    this.emit({ ...joined, isReconnect });
    for (const item of missed) {
      const type = MISSED_TYPES[item.kind] ?? "svlm.chunk.done";
      this.receive({ type, ...item, stream: event.stream, isMissed: true });
    }
    if (event.end_reason) this.receive({ type: "svlm.stream.ended", stream: event.stream, reason: event.end_reason });
  },

  "svlm.stream.ended"(event) {
    if (this.stream.hasEnded) return;
    this.stream.hasEnded = true;
    this.stream.isOwner = false;
    this.responses.clear();
    this.emit(event);
  },

  "response.created"(event) {
    if (!this.isWatched(event.response)) return;
    remember(this.responses, event.response.id, { response: event.response, text: "" }, MAX_RESPONSES);
    this.emit(event);
  },

  "response.output_text.delta"(event) {
    const reply = this.responses.get(event.response_id);
    if (!reply) return;
    reply.text += event.delta;
    this.emit({ ...event, text: reply.text, response: reply.response });
  },

  "response.done"(event) {
    this.responses.delete(event.response.id);
    if (this.isWatched(event.response)) this.emit(event);
  },

  error(event) {
    const request = this.requests.get(event.error.event_id);
    if (request?.type === "svlm.stream.join" && request.stream === this.stream?.name) this.stream = null; // it is gone
    if (request?.type === "session.update") {
      for (const name of Object.keys(request.session.svlm)) delete this.settings[name];
    }
    this.emit({ ...event, request });
  },
};

// From events of the server to what is read: lines of the log, the overlay on the video, announcements, the history.
//
// A reply is written token by token (`response.*`) and is complete with its chunk (`svlm.chunk.done`), which has the last word: both
// know the chunk's number. A viewer who joins gets chunks only.

import { sentence } from "/history.js";

const OVERLAY_MS = 4000;

export class Captions {
  // parts: history, log, voice, overlay, announcer (a live region).
  constructor(parts) {
    Object.assign(this, parts);
    this.onWaiting = () => {}; // called with whether a question of this page waits, or is being answered
    this.clear();
  }

  clear() {
    this.history.clear();
    this.log.clear();
    this.hideOverlay();
    this.writing = new Map(); // number of a chunk -> { line, hasQuestion, hasAnswer }: what the log has of it so far
    this.waiting = new Map(); // id of a question of this page -> its line
    this.answering = null; // id of the response to one of them
    this.onWaiting(false);
    this.lastNumber = -1;
  }

  notice(second, text, kind = "") { return this.log.add(second, text, `notice ${kind}`); }

  // replies, as they are written

  onCreated({ response }) {
    const { number, start, kind, question } = response.svlm ?? {};
    this.endWaiting(response, response.id);
    if (number !== undefined && number > this.lastNumber && kind === "answer") this.showQuestion(number, start, question);
  }

  onDelta({ response, text }) {
    const { number, start, kind } = response.svlm ?? {};
    if (number === undefined || number <= this.lastNumber || !text.trim()) return;
    this.showReply(number, start, text.trim(), kind === "answer" ? "answer writing" : "writing");
    this.showOverlay(text.trim(), kind === "answer");
  }

  onDone({ response }) {
    const { number, start, kind } = response.svlm ?? {};
    this.endWaiting(response, null);
    const { error } = response.status_details ?? {};
    if (response.status === "failed") this.notice(start ?? null, `not answered: ${error?.message ?? "it failed"}`);
    if (number === undefined || number <= this.lastNumber) return;
    const state = this.writing.get(number);
    const isSilent = response.status === "completed" && !response.output?.length;
    if (!state?.line && kind === "answer" && isSilent) this.showNothing(number, start);
    if (!state?.line) return;
    const isCut = response.status === "cancelled";
    this.log.set(state.line, isCut ? `${state.line.text} …` : state.line.text, `${kind === "answer" ? kind : ""} ${isCut ? "cut" : ""}`);
  }

  // chunks

  onChunk(chunk) {
    const { number, start } = chunk, isNew = !chunk.isMissed;
    const { text, question, answer } = this.history.add(chunk), state = this.stateOf(number);
    if (question) this.showQuestion(number, start, question, isNew);
    const rest = answer && text.includes(answer) ? text.replace(answer, "").trim() : "";
    if (answer) this.showReply(number, start, rest ? answer : text, "answer", isNew);
    else if (text) this.showReply(number, start, text, "", isNew);
    if (question && !answer && !state.hasAnswer) this.showNothing(number, start, isNew);
    if (rest) this.log.add(start, rest, "", isNew);
    if (!text && state.line) this.log.remove(state.line);
    this.writing.delete(number);
    this.lastNumber = number;
    if (!text || !isNew) return;
    this.showOverlay(text, !!answer);
    this.announcer.textContent = text;
    this.voice.speak(text);
  }

  // What was said before this page came, from the server's subtitles.
  prepend(vtt) {
    this.log.prepend(this.history.prepend(vtt).flatMap(({ start, text, question, answer }) => [
      ...(question ? [[start, question, "question"]] : []),
      ...(text ? [[start, text, answer ? "answer" : ""]] : []),
    ]));
  }

  onDropped(event) {
    const entry = this.history.add(event);
    this.log.add(entry.start, sentence(entry), "notice", !event.isMissed);
    this.lastNumber = event.number;
  }

  onAlert(event) {
    const entry = this.history.add(event), isNew = !event.isMissed;
    this.lastNumber = event.number ?? this.lastNumber;
    if (entry.data || entry.error) { // a second event, with what the model says of the first
      this.log.add(null, entry.error || JSON.stringify(entry.data), "alert data", isNew);
      return entry;
    }
    this.log.add(entry.start, sentence(entry), entry.state ? "alert" : "alert over", isNew);
    if (isNew) this.announcer.textContent = `Alert. ${sentence(entry)}`;
    return entry;
  }

  onSource(event) {
    const { type, start, seconds, reason } = event, isBack = type === "svlm.source.back";
    const entry = this.history.add(event), gap = seconds ? ` after ${Math.round(seconds)} s` : "";
    this.lastNumber = event.number ?? this.lastNumber;
    const words = isBack ? `the source is back${gap}` : `the source is gone: ${reason || "no picture comes"}`;
    this.log.add(start ?? null, words, "notice", !event.isMissed);
    if (entry) this.log.add(null, sentence(entry), "notice", !event.isMissed);
  }

  onEnded(reason) {
    for (const { line } of this.writing.values()) if (line) this.log.set(line, line.text, line.kind.replace("writing", ""));
    this.writing.clear();
    this.forgetWaiting();
    this.hideOverlay();
    this.notice(null, `the stream has ended: ${reason}`);
  }

  // questions of this page

  onAsked(questionId, question) {
    this.waiting.set(questionId, this.notice(null, `asked: ${question}`, "pending"));
    this.onWaiting(true);
  }

  onQueued({ question, num_before: before }) {
    const line = [...this.waiting.values()].find((item) => item.text.endsWith(question));
    if (line && before) this.log.set(line, `asked, after ${before} other${before > 1 ? "s" : ""}: ${question}`);
  }

  // No question of this page waits any more: the connection was lost, or they were cancelled.
  forgetWaiting() {
    for (const line of this.waiting.values()) this.log.remove(line);
    this.waiting.clear();
    this.answering = null;
    this.onWaiting(false);
  }

  // The response to a question of this page has begun (answering: its id) or is done (null).
  endWaiting(response, answering) {
    const id = response.metadata?.question_id;
    const line = this.waiting.get(id);
    if (line) this.log.remove(line);
    this.waiting.delete(id);
    if (line || this.answering === response.id) this.answering = answering;
    this.onWaiting(this.waiting.size > 0 || this.answering !== null);
  }

  // lines

  stateOf(number) {
    if (!this.writing.has(number)) this.writing.set(number, { line: null, hasQuestion: false, hasAnswer: false });
    return this.writing.get(number);
  }

  showQuestion(number, start, question, isNew = true) {
    const state = this.stateOf(number);
    if (!state.hasQuestion && question) this.log.add(start, question, "question", isNew);
    state.hasQuestion = true;
  }

  showReply(number, start, text, kind, isNew = true) {
    const state = this.stateOf(number);
    if (state.line) this.log.set(state.line, text, state.line.kind.includes("cut") ? `${kind} cut` : kind);
    else state.line = this.log.add(start, text, kind, isNew);
    state.hasAnswer ||= kind.startsWith("answer") && !kind.includes("writing");
  }

  showNothing(number, start, isNew = true) {
    const state = this.stateOf(number);
    this.log.add(start, "(nothing)", "answer silent", isNew);
    state.hasAnswer = true;
  }

  showOverlay(text, isAnswer) {
    const words = document.createElement("span");
    words.textContent = text;
    words.className = isAnswer ? "answer" : "";
    this.overlay.replaceChildren(words);
    this.overlay.classList.remove("old");
    clearTimeout(this.overlayTimer);
    this.overlayTimer = setTimeout(() => this.overlay.classList.add("old"), OVERLAY_MS);
  }

  hideOverlay() { this.overlay.replaceChildren(); }
}

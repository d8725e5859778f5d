// The captions so far as a list that scrolls along, and back to any second. Knows no socket.
//
// Lines are kept for hours, but only MAX_SHOWN of them are in the document: the newest, or those around a second that was looked up.

import { clock } from "/history.js";

const MAX_SHOWN = 400, MAX_LINES = 30_000, NEAR_BOTTOM_PX = 48;

class Line {
  constructor(second, text, kind) {
    this.second = second;
    this.item = document.createElement("li");
    this.words = document.createElement("p");
    const time = document.createElement("time");
    time.textContent = second === null ? "" : clock(second);
    this.item.append(time, this.words);
    this.set(text, kind);
  }

  set(text, kind = this.kind) {
    this.kind = kind;
    this.item.className = kind;
    this.words.textContent = text;
  }

  get text() { return this.words.textContent; }
}

export class CaptionLog {
  // list: an <ol>; newest: the button that leads to the newest line.
  constructor(list, newest) {
    this.list = list;
    this.newest = newest;
    this.clear();
    newest.addEventListener("click", () => this.showNewest());
    list.addEventListener("scroll", () => this.onScroll());
  }

  clear() {
    this.lines = [];
    this.isLive = true; // the newest lines are in the document
    this.follows = true; // and in view: the list scrolls along
    this.frame = 0;
    this.list.replaceChildren();
    this.newest.hidden = true;
  }

  get isAtBottom() { return this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < NEAR_BOTTOM_PX; }

  // A new line at the end: seconds of the video or null, text, class. isNew: it is new to this viewer, not from before.
  add(second, text, kind = "", isNew = true) {
    const line = new Line(second, text, kind);
    if (isNew) line.item.classList.add("new");
    this.lines.push(line);
    if (this.lines.length > MAX_LINES) this.lines.splice(0, MAX_LINES / 10);
    if (!this.isLive) return line;
    this.list.append(line.item);
    while (this.list.children.length > MAX_SHOWN) this.list.firstChild.remove();
    this.follow();
    return line;
  }

  // Older lines, before all others: [second, text, class], as for `add`.
  prepend(older) {
    const lines = older.map((line) => new Line(...line));
    this.lines.unshift(...lines);
    if (!this.isLive || this.list.children.length >= MAX_SHOWN) return;
    const height = this.list.scrollHeight;
    this.list.prepend(...lines.slice(this.list.children.length - MAX_SHOWN).map((line) => line.item));
    if (!this.follows) this.list.scrollTop += this.list.scrollHeight - height; // what is read stays where it is
    this.follow();
  }

  // Other words in a line that is being written.
  set(line, text, kind) {
    line.set(text, kind);
    this.follow();
  }

  remove(line) {
    const index = this.lines.lastIndexOf(line);
    if (index >= 0) this.lines.splice(index, 1);
    line.item.remove();
  }

  // Scroll along, once for all lines of a frame: each look at the layout costs one.
  follow() {
    if (!this.isLive) return;
    if (!this.follows) this.newest.hidden = false;
    else if (!this.frame) {
      this.frame = requestAnimationFrame(() => {
        this.frame = 0;
        if (this.isLive && this.follows) this.list.scrollTop = this.list.scrollHeight;
      });
    }
  }

  onScroll() {
    if (this.frame) return; // the list has grown and will scroll along
    this.follows = this.isLive && this.isAtBottom;
    if (this.follows) this.newest.hidden = true;
  }

  showNewest() {
    this.isLive = this.follows = true;
    this.list.replaceChildren(...this.lines.slice(-MAX_SHOWN).map((line) => line.item));
    this.list.scrollTop = this.list.scrollHeight;
    this.newest.hidden = true;
  }

  // Bring the last line of `second` or before into view, and mark it for a moment.
  showSecond(second) {
    const index = this.lines.findLastIndex((line) => line.second !== null && line.second <= second);
    const line = this.lines[index];
    if (!line) return;
    if (!line.item.isConnected) {
      const start = Math.max(0, index - MAX_SHOWN / 2), end = start + MAX_SHOWN;
      this.isLive = end >= this.lines.length;
      this.list.replaceChildren(...this.lines.slice(start, end).map((other) => other.item));
    }
    this.list.scrollTop = line.item.offsetTop - this.list.offsetTop - (this.list.clientHeight - line.item.offsetHeight) / 2;
    this.follows = this.isLive && this.isAtBottom;
    this.newest.hidden = this.follows;
    for (const marked of this.list.querySelectorAll(".found")) marked.classList.remove("found");
    line.item.classList.add("found");
  }
}

// Small pictures of the stream, by second, that this page has seen: never more than MAX, evenly over the time.
const MAX_THUMBNAILS = 600, THUMBNAIL_WIDTH = 144;

export class Thumbnails {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.clear();
  }

  clear() {
    for (const { url } of this.items ?? []) URL.revokeObjectURL(url);
    this.items = []; // ascending second
    this.interval = 1;
  }

  // source: a canvas or video that shows the picture of `second`.
  add(second, source) {
    const width = source.videoWidth || source.width, height = source.videoHeight || source.height;
    if (!width || !height || second < (this.items.at(-1)?.second ?? -Infinity) + this.interval) return;
    const item = { second, url: "" }, { items } = this;
    items.push(item);
    this.canvas.width = THUMBNAIL_WIDTH;
    this.canvas.height = Math.round(THUMBNAIL_WIDTH * height / width);
    this.canvas.getContext("2d").drawImage(source, 0, 0, this.canvas.width, this.canvas.height);
    this.canvas.toBlob((blob) => { if (blob && this.items === items) item.url = URL.createObjectURL(blob); }, "image/jpeg", 0.6);
    if (items.length > MAX_THUMBNAILS) this.thin();
  }

  thin() {
    this.interval *= 2;
    this.items.forEach(({ url }, n) => { if (n % 2) URL.revokeObjectURL(url); });
    this.items = this.items.filter((_, n) => n % 2 === 0);
  }

  // The picture nearest to a second, if there is one of about then.
  at(second) {
    const distance = (item) => Math.abs(item.second - second), none = { second: -Infinity, url: "" };
    const nearest = this.items.reduce((best, item) => (distance(item) < distance(best) ? item : best), none);
    return distance(nearest) <= 2 * this.interval ? nearest.url : "";
  }
}

// Starting a stream: the form, the three big buttons, and images of this browser: its camera, or a video file that it plays.

import { Capture, cameras } from "/capture.js";
import { storage } from "/storage.js";

const LAST_IMAGES_MS = 1500; // from the end of a video file to the stop of its stream: its last images are still processed
const $ = (id) => document.getElementById(id);

export class Sources {
  // toast: shows a line of text.
  constructor(client, toast) {
    this.client = client;
    this.toast = toast;
    this.capture = null; // images of this browser
    this.picker = Object.assign(document.createElement("input"), { type: "file", accept: $("file").accept });
    this.listen();
  }

  listen() {
    $("start").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    $("source").addEventListener("change", () => this.showFields());
    $("device").addEventListener("change", ({ target }) => storage.set("camera", target.value));
    $("switchdevice").addEventListener("change", ({ target }) => this.switchCamera(target.value));
    navigator.mediaDevices?.addEventListener("devicechange", () => this.showCameras());
    $("quick").addEventListener("click", () => this.start({ type: "match" }));
    $("quickcamera").addEventListener("click", () => this.start({ type: "camera" }));
    $("quickfile").addEventListener("click", () => {
      this.picker.value = "";
      this.picker.click();
    });
    this.picker.addEventListener("change", () => {
      if (this.picker.files[0]) this.start({ type: "file", file: this.picker.files[0] });
    });
  }

  // Title of what this browser sends; whether its video file is over; whether it is shown instead of frames of the server.
  get title() { return this.capture?.title; }
  get isOver() { return !!this.capture?.isOver; }
  get isShown() { return !$("camera").hidden; }

  // server: of `session.created`.
  show(server) {
    this.server = server;
    const listed = server.sources.map((name, n) => [`listed:${n}`, name]), selected = $("source").value;
    const choices = [["match", "Generated match"], ...listed, ["camera", "My camera"], ["file", "A video file of mine"]];
    if (server.allow_addresses) choices.push(["address", "A file or address on the server"]);
    $("source").replaceChildren(...choices.map(([value, text]) => new Option(text, value, false, value === selected)));
    this.showFields();
  }

  showFields() {
    const { value } = $("source");
    $("seedfield").hidden = value !== "match";
    $("addressfield").hidden = value !== "address";
    $("filefield").hidden = value !== "file";
    this.showCameras();
  }

  submit() {
    const [type, index] = $("source").value.split(":"), source = { type };
    if (type === "file" && !$("file").files[0]) {
      this.toast("choose a video file first");
      return;
    }
    if (type === "file") source.file = $("file").files[0];
    if (type === "listed") source.index = Number(index);
    if (type === "match" && /^\d+$/.test($("seed").value.trim())) source.seed = Number($("seed").value);
    if (type === "address") source.address = $("address").value.trim();
    this.start(source);
  }

  // source: of `svlm.stream.start`, or { type: "camera" } or { type: "file", file }: images of this browser.
  async start(source) {
    const isOwn = source.type === "camera" || source.type === "file";
    this.stop();
    try {
      if (source.type === "camera") this.use(await this.openCamera());
      if (source.type === "file") this.use(await Capture.file(source.file, this.server.camera, (image) => this.client.sendFrame(image)));
    } catch (error) {
      this.toast(source.type === "file" ? error.message : `camera: ${error.message}`);
      return;
    }
    if (source.type !== "listed") { // for the next time
      $("source").value = source.type;
      this.showFields();
    }
    const query = $("query").value.trim();
    if (!this.client.startStream(isOwn ? { type: "push" } : source, query ? { query } : {})) this.toast("not connected; trying again");
  }

  // The stream of this page's images has been joined: send them from now on. After a reload the camera is opened again; a file would have
  // to be chosen again.
  async resume() {
    const { name } = this.client.stream, fileKey = `${name}/file`;
    if (this.capture?.kind === "file") storage.set(fileKey, "1");
    if (!this.capture && !storage.get(fileKey)) {
      const capture = await this.openCamera().catch(() => null); // without images the stream ends, and says so
      if (this.client.stream?.name !== name || this.client.stream.hasEnded) {
        capture?.stop();
        return;
      }
      if (capture) this.use(capture);
    }
    this.capture?.start();
    this.showVideo(!!this.capture);
  }

  stop() {
    this.capture?.stop();
    this.capture = null;
    this.showVideo(false);
  }

  use(capture) {
    this.capture = capture;
    capture.onended = () => setTimeout(() => {
      if (this.capture !== capture) return;
      capture.isOver = capture.kind === "file";
      this.client.stopStream();
    }, LAST_IMAGES_MS);
  }

  // The video of this browser instead of the frames that the server sends.
  showVideo(enabled) {
    $("camera").hidden = !enabled;
    $("picture").hidden = enabled;
    this.showCameras();
  }

  // cameras

  async openCamera() {
    if (!navigator.mediaDevices) throw new Error("this browser gives cameras to https:// and localhost only");
    const send = (image) => this.client.sendFrame(image), chosen = storage.get("camera") || "";
    try {
      return await Capture.camera(this.server.camera, send, chosen);
    } catch (error) {
      if (!chosen || error.name !== "OverconstrainedError") throw error;
      storage.set("camera", ""); // it was unplugged
      return Capture.camera(this.server.camera, send);
    }
  }

  // Cameras to choose from, once there is a choice: in the form, and beside the video of an own camera.
  async showCameras() {
    const found = await cameras(), chosen = this.capture?.deviceId || storage.get("camera") || "";
    for (const id of ["device", "switchdevice"]) {
      $(id).replaceChildren(...found.map((camera) => new Option(camera.label, camera.id, false, camera.id === chosen)));
    }
    $("devicefield").hidden = found.length < 2 || $("source").value !== "camera";
    $("switchdevice").hidden = found.length < 2 || !this.isShown || this.capture?.kind !== "camera";
  }

  async switchCamera(deviceId) {
    storage.set("camera", deviceId);
    try { await this.capture?.open(deviceId); } catch (error) { this.toast(`camera: ${error.message}`); }
    this.showCameras();
  }
}

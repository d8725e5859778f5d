// Images from this browser: its camera, or a video file that it plays. A file never leaves the device: only images of it do, as they
// are shown. Knows no socket.

const VIDEO = document.getElementById("camera"), scaled = document.createElement("canvas");

export class Capture {
  // kind: "camera" or "file"; title: its name on the page; config: largest width and height, fps, max_bytes; send: takes a JPEG blob.
  constructor(kind, title, config, send) { this.kind = kind; this.title = title; this.config = config; this.send = send; this.onended = () => {}; }

  static async camera(config, send) {
    const capture = new Capture("camera", "My camera", config, send);
    capture.media = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: config.width }, height: { ideal: config.height } }, audio: false });
    VIDEO.srcObject = capture.media; VIDEO.muted = true; VIDEO.controls = false; VIDEO.classList.add("mirror");
    await VIDEO.play();
    return capture;
  }

  static async file(file, config, send) {
    const capture = new Capture("file", file.name, config, send);
    capture.url = URL.createObjectURL(file);
    VIDEO.srcObject = null; VIDEO.muted = false; VIDEO.controls = true; VIDEO.classList.remove("mirror");
    try {
      await new Promise((resolve, reject) => { VIDEO.onloadeddata = resolve; VIDEO.onerror = reject; VIDEO.src = capture.url; });
      if (!VIDEO.videoWidth) throw new Error("no video track");
    } catch {
      capture.stop();
      throw new Error(`this browser does not play ${file.name}`);
    } finally { VIDEO.onloadeddata = VIDEO.onerror = null; }
    return capture;
  }

  // Send images from now on; a file is played. Without a click the browser may only play it muted.
  async start() {
    if (this.timer) return;
    this.timer = setInterval(() => this.sendImage(), 1000 / this.config.fps);
    if (this.kind === "camera") return;
    VIDEO.onended = () => this.onended();
    try { await VIDEO.play(); } catch { VIDEO.muted = true; await VIDEO.play().catch(() => {}); }
  }

  sendImage() {
    if (!VIDEO.videoWidth) return;
    const scale = Math.min(1, this.config.width / VIDEO.videoWidth, this.config.height / VIDEO.videoHeight);
    scaled.width = Math.max(1, Math.round(VIDEO.videoWidth * scale)); scaled.height = Math.max(1, Math.round(VIDEO.videoHeight * scale));
    scaled.getContext("2d").drawImage(VIDEO, 0, 0, scaled.width, scaled.height);
    scaled.toBlob((blob) => { if (blob && blob.size <= this.config.max_bytes && this.timer) this.send(blob); }, "image/jpeg", 0.8);
  }

  stop() {
    clearInterval(this.timer); this.timer = 0; VIDEO.onended = null;
    this.media?.getTracks().forEach((track) => track.stop());
    VIDEO.pause();
    if (this.url) { VIDEO.removeAttribute("src"); VIDEO.load(); URL.revokeObjectURL(this.url); }
  }
}

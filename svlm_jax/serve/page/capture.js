// Pictures from this browser: its camera, or a video file that it plays. A file never leaves the device: only pictures of it do,
// as they are shown. Knows no socket.

const VIDEO = document.getElementById("camera"), small = document.createElement("canvas");

export class Capture {
  // kind: "camera" or "file"; title: what the page calls it; send: takes a JPEG; form: width, height, fps, bytes.
  constructor(kind, title, form, send) { this.kind = kind; this.title = title; this.form = form; this.send = send; this.ended = () => {}; }

  static async camera(form, send) {
    const one = new Capture("camera", "My camera", form, send);
    one.media = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: form.width }, height: { ideal: form.height } }, audio: false });
    VIDEO.srcObject = one.media; VIDEO.muted = true; VIDEO.controls = false; VIDEO.classList.add("mirror");
    await VIDEO.play();
    return one;
  }

  static async file(file, form, send) {
    const one = new Capture("file", file.name, form, send);
    one.url = URL.createObjectURL(file);
    VIDEO.srcObject = null; VIDEO.muted = false; VIDEO.controls = true; VIDEO.classList.remove("mirror");
    try {
      await new Promise((done, failed) => { VIDEO.onloadeddata = done; VIDEO.onerror = failed; VIDEO.src = one.url; });
      if (!VIDEO.videoWidth) throw new Error("no picture");
    } catch {
      one.stop();
      throw new Error(`this browser does not play ${file.name}`);
    } finally { VIDEO.onloadeddata = VIDEO.onerror = null; }
    return one;
  }

  // Send pictures from now on; a file is played.
  async start() {
    if (this.timer) return;
    this.timer = setInterval(() => this.take(), 1000 / this.form.fps);
    if (this.kind === "camera") return;
    VIDEO.onended = () => this.ended();
    try { await VIDEO.play(); } catch { VIDEO.muted = true; await VIDEO.play().catch(() => {}); }
  }

  take() {
    if (!VIDEO.videoWidth) return;
    const scale = Math.min(1, this.form.width / VIDEO.videoWidth, this.form.height / VIDEO.videoHeight);
    small.width = Math.max(1, Math.round(VIDEO.videoWidth * scale)); small.height = Math.max(1, Math.round(VIDEO.videoHeight * scale));
    small.getContext("2d").drawImage(VIDEO, 0, 0, small.width, small.height);
    small.toBlob((blob) => { if (blob && blob.size <= this.form.bytes && this.timer) this.send(blob); }, "image/jpeg", 0.8);
  }

  stop() {
    clearInterval(this.timer); this.timer = 0; VIDEO.onended = null;
    this.media?.getTracks().forEach((track) => track.stop());
    VIDEO.pause();
    if (this.url) { VIDEO.removeAttribute("src"); VIDEO.load(); URL.revokeObjectURL(this.url); }
  }
}

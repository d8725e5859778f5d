// Images from this browser: one of its cameras, or a video file that it plays. A file never leaves the device: only images of it do,
// as they are shown. Knows no socket.

const VIDEO = document.getElementById("camera"), scaled = document.createElement("canvas");
const JPEG_QUALITY = 0.8;

// The cameras of this device: [{ id, label }]. Browsers tell labels only once a camera was allowed.
export async function cameras() {
  const devices = await navigator.mediaDevices?.enumerateDevices().catch(() => []) ?? [];
  const videos = devices.filter((device) => device.kind === "videoinput" && device.deviceId);
  return videos.map(({ deviceId, label }, n) => ({ id: deviceId, label: label || `Camera ${n + 1}` }));
}

export class Capture {
  // kind: "camera" or "file"; title: its name on the page; config: largest width and height, fps, max_bytes; send: takes a JPEG blob.
  constructor(kind, title, config, send) {
    this.kind = kind;
    this.title = title;
    this.config = config;
    this.send = send;
    this.onended = () => {}; // the file is over, or the camera was unplugged
  }

  // deviceId: one of `cameras`; "": the browser's choice.
  static async camera(config, send, deviceId = "") {
    const capture = new Capture("camera", "My camera", config, send);
    await capture.open(deviceId);
    return capture;
  }

  static async file(file, config, send) {
    const capture = new Capture("file", file.name, config, send);
    capture.url = URL.createObjectURL(file);
    Object.assign(VIDEO, { srcObject: null, muted: false, controls: true });
    VIDEO.classList.remove("mirror");
    try {
      await new Promise((resolve, reject) => { VIDEO.onloadeddata = resolve; VIDEO.onerror = reject; VIDEO.src = capture.url; });
      if (!VIDEO.videoWidth) throw new Error("no video track");
    } catch {
      capture.stop();
      throw new Error(`this browser does not play ${file.name}`);
    } finally {
      VIDEO.onloadeddata = VIDEO.onerror = null;
    }
    return capture;
  }

  // Open a camera, in place of one that is open: the stream goes on with its pictures.
  async open(deviceId) {
    const { width, height } = this.config, choice = deviceId ? { deviceId: { exact: deviceId } } : {};
    const isMobile = matchMedia("(pointer: coarse)").matches;
    if (isMobile) this.closeMedia(); // phones open one camera at a time
    const video = { ...choice, width: { ideal: width }, height: { ideal: height } };
    const media = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    this.closeMedia();
    this.media = media;
    const [track] = media.getVideoTracks(), { deviceId: id, facingMode } = track.getSettings();
    this.deviceId = id;
    track.onended = () => this.onended();
    Object.assign(VIDEO, { srcObject: media, muted: true, controls: false });
    VIDEO.classList.toggle("mirror", facingMode !== "environment"); // only who faces the screen expects a mirror
    await VIDEO.play();
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
    scaled.width = Math.max(1, Math.round(VIDEO.videoWidth * scale));
    scaled.height = Math.max(1, Math.round(VIDEO.videoHeight * scale));
    scaled.getContext("2d").drawImage(VIDEO, 0, 0, scaled.width, scaled.height);
    const send = (blob) => { if (blob && blob.size <= this.config.max_bytes && this.timer) this.send(blob); };
    scaled.toBlob(send, "image/jpeg", JPEG_QUALITY);
  }

  closeMedia() {
    for (const track of this.media?.getTracks() ?? []) {
      track.onended = null;
      track.stop();
    }
  }

  stop() {
    clearInterval(this.timer);
    this.timer = 0;
    VIDEO.onended = null;
    this.closeMedia();
    VIDEO.pause();
    if (this.url) {
      VIDEO.removeAttribute("src");
      VIDEO.load();
      URL.revokeObjectURL(this.url);
    }
  }
}

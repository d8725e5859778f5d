// Captions read aloud by the browser, if somebody wants that.

export class Voice {
  constructor(volume) {
    this.volume = volume; // an <input type=range>, 0 to 1
    this.isOn = false;
  }

  get isAvailable() { return !!window.speechSynthesis; }

  toggle() {
    this.isOn = !this.isOn;
    if (!this.isOn) speechSynthesis.cancel();
    return this.isOn;
  }

  speak(text) {
    if (!this.isOn || !this.isAvailable) return;
    if (speechSynthesis.pending) speechSynthesis.cancel(); // the newest caption counts: the voice must not fall behind
    const words = new SpeechSynthesisUtterance(text);
    words.lang = "en";
    words.volume = Number(this.volume.value);
    words.rate = 1.1;
    speechSynthesis.speak(words);
  }
}

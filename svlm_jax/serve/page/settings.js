// The panel with which the owner of a stream changes how it speaks and what it remembers, while it plays. Knows no socket: `onchange` gets
// the fields that change, under the names of `session.svlm`.

// min, max, step: of the input. empty: what no number means (null). fixed: cannot change while the stream plays.
const GROUPS = [
  ["When it speaks", [
    { name: "min_gap", label: "Pause between talks", unit: "s", min: 0, max: 3600, step: 0.5 },
    { name: "max_talk", label: "Longest talk", unit: "s", min: 1, max: 3600, step: 1, empty: "any" },
    { name: "max_new_tokens", label: "Longest comment", unit: "tokens", min: 1, max: 4096, step: 1 },
  ]],
  ["What it remembers", [
    { name: "vision_window", label: "Pictures of the last", unit: "steps", min: 1, max: 4096, step: 1 },
    { name: "text_rounds", label: "Comments of the last", unit: "steps", min: 1, max: 4096, step: 1 },
    { name: "sink", label: "First words kept", unit: "tokens", min: 0, max: 65536, step: 1, empty: "all" },
    { name: "text_window", label: "Last words kept", unit: "tokens", min: 1, max: 65536, step: 1, empty: "all" },
    { name: "fps", label: "Pictures a second", unit: "", min: 0.5, max: 60, step: 0.5, fixed: true },
  ]],
  ["How it chooses words", [
    { name: "temperature", label: "Temperature", unit: "0: greedy", min: 0, max: 5, step: 0.05 },
    { name: "top_p", label: "Top p", unit: "", min: 0.01, max: 1, step: 0.01 },
    { name: "top_k", label: "Top k", unit: "0: all", min: 0, max: 1000, step: 1 },
    { name: "repetition_penalty", label: "Repetition penalty", unit: "", min: 0.5, max: 3, step: 0.01 },
  ]],
];
const FIELDS = GROUPS.flatMap(([, fields]) => fields);
const SLIDER_DELAY_MS = 200; // after its last move
const STEEPNESS = 9.2; // of the slider: just before its ends it is at odds of e^9.2 = 10,000 to 1 for and against silence

// The slider is even in log odds, for probabilities of silence crowd near 0 and 1. Position -100 to 100; threshold 0 to 1: the model
// speaks where it gives silence at most this probability.
export function thresholdAt(position) {
  if (Math.abs(position) >= 100) return position > 0 ? 1 : 0;
  return Number((1 / (1 + Math.exp(-STEEPNESS * position / 100))).toFixed(5));
}

export function positionOf(threshold) {
  if (threshold <= 0 || threshold >= 1) return threshold > 0.5 ? 100 : -100;
  return Math.round(Math.min(99, Math.max(-99, 100 / STEEPNESS * Math.log(threshold / (1 - threshold)))));
}

export class SettingsPanel {
  // parts: form (with a place for the fields), slider, own (the button "Model's own"), level (an <output>), watch (the form of the alert),
  // note and error (lines of text). onchange: called with the fields to change.
  constructor({ fields, slider, own, level, watch, unwatch, note, error }, onchange) {
    Object.assign(this, { slider, own, level, watch, unwatch, note, error, onchange });
    this.inForce = {};
    fields.replaceChildren(...GROUPS.map(([title, group]) => this.fieldset(title, group)));
    this.inputs = new Map([...fields.querySelectorAll("input")].map((input) => [input.name, input]));
    fields.addEventListener("change", ({ target }) => this.changeField(target));
    slider.addEventListener("input", () => this.showLevel(thresholdAt(Number(slider.value))));
    slider.addEventListener("change", () => this.changeLevel());
    own.addEventListener("click", () => this.change({ silence: null }));
    watch.addEventListener("submit", (event) => { event.preventDefault(); this.changeAlert(); });
    unwatch.addEventListener("click", () => this.change({ alert: null }));
  }

  fieldset(title, group) {
    const set = document.createElement("fieldset"), legend = document.createElement("legend");
    legend.textContent = title;
    set.append(legend, ...group.map(({ name, label, unit, empty = "", ...limits }) => {
      const row = document.createElement("label"), words = document.createElement("span"), after = document.createElement("small");
      const input = Object.assign(document.createElement("input"), { type: "number", name, placeholder: empty, inputMode: "decimal" });
      for (const limit of ["min", "max", "step"]) input[limit] = limits[limit];
      words.textContent = label;
      after.textContent = unit;
      row.append(words, input, after);
      return row;
    }));
    return set;
  }

  // Show what is in force. settings: as `session.svlm`; canChange: by this viewer, isPlaying: now.
  show(settings, { canChange, isPlaying }) {
    this.inForce = { ...this.inForce, ...settings };
    for (const field of FIELDS) {
      const input = this.inputs.get(field.name), value = this.inForce[field.name];
      input.closest("label").hidden = value === undefined;
      input.disabled = !canChange || (!!field.fixed && isPlaying);
      if (document.activeElement !== input || input.classList.contains("pending")) input.value = value ?? "";
      input.classList.remove("pending");
    }
    this.slider.disabled = this.own.disabled = !canChange;
    if (!this.slider.matches(":active")) this.moveSlider();
    this.showAlert(canChange);
    const ofOwner = isPlaying ? "take effect with the next step" : "of the next stream";
    this.note.textContent = canChange ? ofOwner : "chosen by whoever started it";
  }

  moveSlider() {
    const { silence } = this.inForce;
    this.slider.value = silence == null ? 0 : positionOf(silence);
    this.showLevel(silence ?? null);
  }

  showLevel(threshold) {
    const isOwn = threshold === null, decimals = threshold < 0.01 || threshold > 0.99 ? 2 : 0;
    const percent = isOwn ? "" : `${+(100 * threshold).toFixed(decimals)} %`;
    this.level.textContent = isOwn ? "" : percent;
    this.own.setAttribute("aria-pressed", isOwn);
    this.slider.classList.toggle("own", isOwn);
    this.slider.setAttribute("aria-valuetext", isOwn ? "as the model was made" : `speaks where silence is at most ${percent} likely`);
  }

  showAlert(canChange) {
    const { alert } = this.inForce, { elements } = this.watch;
    for (const control of elements) control.disabled = !canChange || alert === undefined;
    this.unwatch.hidden = !alert;
    if (!alert) return;
    elements.question.value = alert.question ?? "";
    elements.yes.value = (alert.yes ?? []).join(", ");
    elements.no.value = (alert.no ?? []).join(", ");
  }

  changeLevel() { // an arrow key that is held down is one change
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.change({ silence: thresholdAt(Number(this.slider.value)) }), SLIDER_DELAY_MS);
  }

  changeField(input) {
    const field = FIELDS.find(({ name }) => name === input.name), text = input.value.trim();
    if (!input.checkValidity() || (!text && !field.empty)) {
      this.refuse({ [field.name]: 0 }, input.validationMessage || "a number is needed");
      return;
    }
    input.classList.add("pending");
    this.change({ [field.name]: text ? Number(text) : null });
  }

  changeAlert() {
    const { question, yes, no } = this.watch.elements, answers = ({ value }) => value.split(",").map((part) => part.trim()).filter(Boolean);
    const words = question.value.trim();
    if (!words) return;
    if (!answers(yes).length || !answers(no).length) this.change({ alert: { condition: words, name: words } });
    else this.change({ alert: { question: words, yes: answers(yes), no: answers(no), name: `${words} ${answers(yes).join(" ")}` } });
  }

  change(settings) {
    this.error.textContent = "";
    this.onchange(settings);
  }

  // A change was refused: say why, and show what is in force.
  refuse(settings, message) {
    for (const name of Object.keys(settings)) {
      const input = this.inputs.get(name);
      if (!input) continue;
      input.value = this.inForce[name] ?? "";
      input.classList.remove("pending");
    }
    this.moveSlider();
    this.error.textContent = message;
  }
}

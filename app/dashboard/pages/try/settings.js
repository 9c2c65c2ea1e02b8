// How the models answer. The settings are kept in the storage of the tab.

import { html } from "../../lib/html.js";
import { settingField } from "../new/field.js";
import { parse } from "../new/schema.js";

const STORED = "tunery.try.settings";

/** Texts at first. Without chance, the answers differ by the models alone. */
const AT_FIRST = { temperature: "0", max_tokens: "512" };

/** `preset` is what the service takes if the field is empty. */
const FIELDS = [
  {
    name: "temperature",
    title: "Temperature",
    kind: "number",
    range: { least: 0, most: 2 },
    preset: "1",
    description: "At 0, each token is the most likely one.",
  },
  {
    name: "top_p",
    title: "Top p",
    kind: "number",
    range: { above: 0, most: 1 },
    preset: "1",
    description: "Only the most likely tokens are drawn, whose probabilities add up to this.",
  },
  {
    name: "max_tokens",
    title: "Maximum tokens",
    kind: "integer",
    range: { least: 1 },
    description:
      "An answer is cut off after so many. If this is empty, it may fill the model's window.",
  },
  {
    name: "seed",
    title: "Seed",
    kind: "integer",
    range: {},
    description: "The same seed gives the same answer.",
  },
  {
    name: "stop",
    title: "Stop",
    kind: "list",
    range: {},
    description:
      "Up to four texts at which an answer ends, between commas. `\\n` is the end of a line.",
  },
].map((field) => ({ words: [], shortcuts: [], preset: "", ...field }));

export class Settings {
  /** @type {Record<string, string>} texts by field */
  #texts = JSON.parse(sessionStorage.getItem(STORED) ?? "null") ?? { ...AT_FIRST };
  #onChange;

  /** @param {() => void} onChange */
  constructor(onChange) {
    this.#onChange = onChange;
  }

  /** What a request says, by the name of the field. */
  get values() {
    const read = FIELDS.map((field) => [field.name, this.#read(field).value]);
    const given = Object.fromEntries(read.filter(([, value]) => value !== undefined));
    if (given.stop) given.stop = given.stop.map((text) => text.replaceAll("\\n", "\n"));
    return given;
  }

  get areValid() {
    return FIELDS.every((field) => !this.#read(field).problem);
  }

  view() {
    return html`<h2>Settings</h2>
      <div class="stack">
        ${FIELDS.map((field) =>
          settingField(field, {
            text: this.#texts[field.name] ?? "",
            preset: field.preset,
            problem: this.#read(field).problem,
            onText: (text) => this.#set(field.name, text),
          }),
        )}
      </div>`;
  }

  #read(field) {
    return parse(field, this.#texts[field.name]);
  }

  #set(name, text) {
    this.#texts[name] = text;
    sessionStorage.setItem(STORED, JSON.stringify(this.#texts));
    this.#onChange();
  }
}

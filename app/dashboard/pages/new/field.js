// One setting of the form: label, control, range, description, and what is wrong with it.

import { html, live, nothing } from "../../lib/html.js";
import { wrongNote } from "../../lib/problems.js";
import { layersMeant } from "./layers.js";
import { isNumber, rangeOf } from "./schema.js";

/**
 * @param {object} field as `readForms` gives it
 * @param {{text: string, preset: string, problem?: string, onText: (text: string) => void}} state
 *   `preset` is the value that an empty field gets, if it is known
 */
export function settingField(field, state) {
  const id = `field-${field.name}`;
  return html`<div class="field ${state.problem ? "invalid" : ""}">
    <label for=${id}>${field.title} <code class="muted small">${field.name}</code></label>
    ${control(field, state, id)}
    <div id="${id}-about" class="hint">
      ${wrongNote(state.problem)} ${field.hasNumbers ? html`<p class="meant">${layersMeant(state.text)}</p>` : nothing}
      ${prose(field.description)}
      ${rangeOf(field) ? html`<span class="range">${capital(rangeOf(field))}.</span>` : nothing}
    </div>
  </div>`;
}

function control(field, state, id) {
  if (field.kind === "boolean")
    return choice(
      [
        ["true", "Yes"],
        ["false", "No"],
      ],
      state,
      id,
    );
  if (field.kind !== "list" && field.words.length) {
    return choice(
      field.words.map((word) => [word, word]),
      state,
      id,
    );
  }
  return html`<input
      id=${id}
      type=${field.isDate ? "date" : "text"}
      inputmode=${isNumber(field) ? (field.kind === "integer" ? "numeric" : "decimal") : "text"}
      autocomplete="off"
      spellcheck="false"
      placeholder=${state.preset}
      list=${field.kind === "list" && field.words.length ? `${id}-words` : nothing}
      aria-describedby="${id}-about"
      aria-invalid=${state.problem ? "true" : nothing}
      .value=${live(state.text)}
      @input=${(event) => state.onText(event.target.value)}
    />
    ${
      field.kind === "list"
        ? html`<datalist id="${id}-words">
            ${field.words.map((word) => html`<option value=${word}></option>`)}
          </datalist>`
        : nothing
    }`;
}

function choice(options, state, id) {
  const preset = options.find(([value]) => value === state.preset)?.[1] ?? state.preset;
  return html`<select
    id=${id}
    aria-describedby="${id}-about"
    @change=${(event) => state.onText(event.target.value)}
  >
    <option value="" ?selected=${state.text === ""}>Default${preset ? `: ${preset}` : ""}</option>
    ${options.map(
      ([value, label]) =>
        html`<option value=${value} ?selected=${state.text === value}>${label}</option>`,
    )}
  </select>`;
}

/** Text of the API, whose names stand in backticks. */
export function prose(text) {
  return text.split("`").map((part, index) => (index % 2 ? html`<code>${part}</code>` : part));
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

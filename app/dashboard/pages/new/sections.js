// Sections of the form below the data.

import { count } from "../../lib/format.js";
import { html, live, nothing } from "../../lib/html.js";
import { wrongNote } from "../../lib/problems.js";
import { prose, settingField } from "./field.js";

export function modelSection({ draft, models, problems, change }) {
  const chosen = models.find(({ id }) => id === draft.model);
  return html`<section class="card stack">
    <h2>Base model</h2>
    ${
      models.length
        ? html`<label>
            <span class="visually-hidden">Base model</span>
            <select name="model" @change=${(event) => change({ model: event.target.value })}>
              ${models.map(
                ({ id }) =>
                  html`<option value=${id} ?selected=${id === draft.model}>${id}</option>`,
              )}
            </select>
          </label>`
        : html`<p>
            No base model is installed. On the machine of the service, run
            <code>tunery models install smollm2-135m-instruct</code>.
          </p>`
    }
    ${wrongNote(problems.model)}
    ${
      chosen
        ? html`<p class="hint">
            Up to ${count(chosen.limits?.context_length)} tokens an example. Licence:
            ${chosen.licence ?? "not recorded"}.
          </p>`
        : nothing
    }
  </section>`;
}

export function validationSection({ draft, fields, problems, change }, data) {
  const choose = (validation) => change({ validation });
  return html`<section class="card stack">
    <h2>Validation</h2>
    <p class="hint">
      Examples that are only measured show whether the model learns something general or only learns
      by heart.
    </p>
    <div class="stack tight" role="radiogroup" aria-label="Validation data">
      ${option("none", "None", draft.validation, choose)}
      ${option("split", "Hold out a part of the file", draft.validation, choose)}
      ${option("file", "A file of its own", draft.validation, choose)}
    </div>
    ${
      draft.validation === "split"
        ? settingField(
            { ...fields.get("validation_split"), title: "Part to hold out" },
            {
              text: draft.split,
              preset: "",
              problem: problems.validation_split,
              onText: (split) => change({ split }),
            },
          )
        : nothing
    }
    ${
      draft.validation === "file"
        ? data.fileSelect(
            "validation_file",
            "Validation file",
            draft.validationFile,
            (validationFile) => change({ validationFile }),
          )
        : nothing
    }
    ${wrongNote(problems.validation_file)}
  </section>`;
}

function option(value, label, chosen, onChoose) {
  return html`<label class="inline">
    <input
      type="radio"
      name="validation"
      value=${value}
      .checked=${live(value === chosen)}
      @change=${() => onChoose(value)}
    />
    ${label}
  </label>`;
}

export function settingsSection(form) {
  const { draft, arranged, fields, method, change } = form;
  const set = Object.keys(draft.settings).filter((name) => fields.has(name)).length;
  return html`<section class="card stack">
    <h2>Settings</h2>
    ${
      method === "dpo"
        ? html`<p class="notice">
            The file has preferences, so the method of the job is <code>dpo</code>: the model learns
            to prefer the first answer of each pair.
          </p>`
        : nothing
    }
    <div class="field">
      <label for="recipe">Recipe <code class="muted small">recipe</code></label>
      <select
        id="recipe"
        aria-describedby="recipe-about"
        @change=${(event) => change({ recipe: event.target.value })}
      >
        ${fields
          .get("recipe")
          .words.map(
            (recipe) =>
              html`<option value=${recipe} ?selected=${recipe === draft.recipe}>${recipe}</option>`,
          )}
      </select>
      <div id="recipe-about" class="hint">${prose(fields.get("recipe").description)}</div>
    </div>
    <p class="hint">
      Several numbers in a field, such as <code>1e-4, 2e-4</code>, make a sweep: a job for each
      combination, compared by validation loss.
    </p>
    <div class="grid">${arranged.basic.map((field) => setting(field, form))}</div>
    <details class="all">
      <summary>
        All settings${set ? html` <span class="muted">(${set} set)</span>` : nothing}
      </summary>
      ${arranged.groups.map(
        (group) =>
          html`<fieldset>
            <legend>${group.title}</legend>
            <div class="grid">${group.fields.map((field) => setting(field, form))}</div>
          </fieldset>`,
      )}
    </details>
  </section>`;
}

function setting(field, { draft, problems, presetOf, setSetting }) {
  return settingField(field, {
    text: draft.settings[field.name] ?? "",
    preset: presetOf(field.name),
    problem: problems[field.name],
    onText: (text) => setSetting(field.name, text),
  });
}

export function promptsSection({ draft, fields, problems, change }) {
  const name = "eval_prompts";
  return html`<section class="card stack">
    <h2>Before and after</h2>
    <div class="field ${problems[name] ? "invalid" : ""}">
      <label for="field-${name}">
        Prompts for both models, one a line <code class="muted small">${name}</code>
      </label>
      <textarea
        id="field-${name}"
        rows="3"
        aria-describedby="field-${name}-about"
        aria-invalid=${problems[name] ? "true" : nothing}
        .value=${live(draft.prompts)}
        @input=${(event) => change({ prompts: event.target.value })}
      ></textarea>
      <div id="field-${name}-about" class="hint">
        ${wrongNote(problems[name])} ${prose(fields.get(name).description)}
      </div>
    </div>
  </section>`;
}

export function nameSection({ draft, fields, problems, change }) {
  const field = (name, title, property) =>
    settingField(
      { ...fields.get(name), title },
      {
        text: draft[property],
        preset: "",
        problem: problems[name],
        onText: (text) => change({ [property]: text }),
      },
    );
  return html`<section class="card stack">
    <h2>Name and queue</h2>
    <div class="grid">
      ${field("suffix", "Name", "suffix")} ${field("seed", "Seed", "seed")}
      ${field("priority", "Priority", "priority")}
      ${settingField(
        { ...fields.get("metadata"), title: "Labels", kind: "string" },
        {
          text: draft.labels,
          preset: "team=search, purpose=test",
          problem: problems.metadata,
          onText: (labels) => change({ labels }),
        },
      )}
    </div>
    <label class="inline">
      <input
        type="checkbox"
        .checked=${live(draft.startsPaused)}
        @change=${(event) => change({ startsPaused: event.target.checked })}
      />
      Check the data now, and wait until I resume the job
    </label>
  </section>`;
}

// The settings that a job really has, as a table and as a call that makes a job like it.

import { curlOf, pythonOf } from "../../lib/calls.js";
import { copyButton } from "../../lib/copy.js";
import { listed, UNKNOWN } from "../../lib/format.js";
import { html, nothing } from "../../lib/html.js";

// Other hyperparameters of the same job imply these.
const IMPLIED = new Set(["learning_rate_multiplier", "train_on_inputs"]);

// What a job is made of; such values are too long for half a line.
const IDENTITY = new Set(["model", "training_file", "validation_file", "suffix"]);
const LONG = 18;

const FORMS = { table: "Table", curl: "curl", python: "Python", yaml: "YAML" };

/** The body of `POST /v1/fine_tuning/jobs` for a job with the same settings. */
export function requestOf(job) {
  const hyperparameters = Object.fromEntries(
    Object.entries(job.hyperparameters).filter(
      ([name, value]) => value !== null && !IMPLIED.has(name),
    ),
  );
  const body = {
    model: job.model,
    training_file: job.training_file,
    validation_file: job.validation_file,
    suffix: job.user_provided_suffix,
    seed: job.seed,
    metadata: job.metadata,
    recipe: job.recipe,
    priority: job.priority || null,
    method: { type: job.method.type, [job.method.type]: { hyperparameters } },
  };
  return Object.fromEntries(Object.entries(body).filter(([, value]) => value !== null));
}

/** Settings by their names, in the order in which they are shown. */
export function settingsOf(job) {
  const { method, metadata, ...rest } = requestOf(job);
  return { ...rest, method: method.type, ...method[method.type].hyperparameters };
}

/**
 * @param {object} job
 * @param {object} session
 * @param {string} form one of `FORMS`
 * @param {(form: string) => void} onForm
 */
export function settings(job, session, form, onForm) {
  const text = textOf(job, session, form);
  return html`
    <div class="row">
      <h2>Settings</h2>
      <span class="row end" role="group" aria-label="Show the settings as">
        ${Object.entries(FORMS).map(
          ([name, label]) =>
            html`<button
              class="quiet"
              aria-pressed=${String(name === form)}
              @click=${() => onForm(name)}
            >
              ${label}
            </button>`,
        )}
        ${text === null ? nothing : copyButton(text)}
      </span>
    </div>
    ${text === null ? table(job) : html`<pre tabindex="0" aria-label=${FORMS[form]}>${text}</pre>`}
  `;
}

function textOf(job, session, form) {
  const body = requestOf(job);
  if (form === "curl") return curlOf("fine_tuning/jobs", body, session);
  if (form === "python") return pythonOf(body, session);
  return form === "yaml" ? yamlOf(body) : null;
}

function table(job) {
  const all = Object.entries(settingsOf(job));
  const isLong = ([name, value]) => IDENTITY.has(name) || shown(value).length > LONG;
  return html`${list(all.filter(isLong), "settings long")}
  ${list(
    all.filter((each) => !isLong(each)),
    "settings",
  )}`;
}

function list(entries, kind) {
  return html`<dl class=${kind}>
    ${entries.map(
      ([name, value]) =>
        html`<div>
          <dt>${name}</dt>
          <dd>${shown(value)}</dd>
        </div>`,
    )}
  </dl>`;
}

/** A setting as text. */
export function shown(value) {
  const text = Array.isArray(value) ? listed(value) : String(value ?? "");
  return text || UNKNOWN;
}

/** A job file for `tunery submit`. */
function yamlOf({ method, ...rest }) {
  const job = { ...rest, ...(method.type === "supervised" ? method.supervised : { method }) };
  return `${yamlLines(job, "").join("\n")}\n`;
}

function yamlLines(values, indent) {
  return Object.entries(values).flatMap(([name, value]) => {
    const key = /^[a-z_]+$/.test(name) ? name : JSON.stringify(name);
    const isMap = typeof value === "object" && !Array.isArray(value);
    if (isMap) return [`${indent}${key}:`, ...yamlLines(value, `${indent}  `)];
    return [`${indent}${key}: ${yamlValue(value)}`];
  });
}

function yamlValue(value) {
  // YAML reads JSON, but takes 1e-7 for a text: its numbers have a point.
  return JSON.stringify(value).replace(/^(-?\d+)e/, "$1.0e");
}

// A new job, or a sweep: data, base model, settings, estimate, start. It is one call of the API.

import { get, post } from "../lib/api.js";
import { curlOf, pythonOf } from "../lib/calls.js";
import { callView } from "../lib/call-view.js";
import { count } from "../lib/format.js";
import { html, nothing, render } from "../lib/html.js";
import { problemNote, wrongNote } from "../lib/problems.js";
import { uploadSample } from "../lib/sample.js";
import { can, openPage, tell } from "../lib/shell.js";
import { debounce } from "../lib/timing.js";
import { Data } from "./new/data.js";
import {
  countJobs,
  forgetDraft,
  keyOf,
  loadDraft,
  pathOf,
  read,
  saveDraft,
} from "./new/draft.js";
import { Estimator } from "./new/estimate.js";
import {
  modelSection,
  nameSection,
  promptsSection,
  settingsSection,
  validationSection,
} from "./new/sections.js";
import { readForms } from "./new/schema.js";

const TYPING_MS = 600;

const { session, main } = await openPage("new");

const draft = loadDraft();
const estimator = new Estimator(draw);
const data = new Data(draft, draw, (file) => change({ file: file.id }));

let models = null;
let forms = null; // of each method
let refusal = null; // the API's answer to "Start", as an ApiError
let wasTried = false;
let isStarting = false;
let isUploadingSample = false;
let openTab = "curl";

async function start() {
  render(
    html`<h1>New job</h1>
      <p class="muted">Loading…</p>`,
    main,
  );
  try {
    const [openapi, list] = await Promise.all([
      fetch("assets/openapi.json").then((answer) => answer.json()),
      get("models"),
      data.fetch(),
    ]);
    forms = readForms(openapi);
    models = list.data.filter((model) => !model.base_model);
    if (!models.some(({ id }) => id === draft.model)) draft.model = models[0]?.id ?? "";
    refreshNow();
  } catch (error) {
    render(problemNote(error.message), main);
    return;
  }
  draw();
}

function draw() {
  if (forms) render(view(), main);
}

function view() {
  const { body, problems } = readDraft();
  const { fields, arranged } = forms[method()];
  const shown = { ...problemsToShow(problems), ...problemOf(refusal ?? estimator.error) };
  const form = {
    ...{ draft, fields, arranged, models, problems: shown, method: method() },
    ...{ presetOf, change, setSetting },
  };
  return html`<h1>New job</h1>
    <form class="columns" @submit=${(event) => event.preventDefault()}>
      <div class="stack">
        ${dataSection(shown)} ${modelSection(form)} ${validationSection(form, data)}
        ${settingsSection(form)} ${promptsSection(form)} ${nameSection(form)}
      </div>
      <aside class="stack sticky">
        ${estimator.view(Boolean(draft.file && draft.model))} ${startSection(body, problems)} ${callSection(body)}
      </aside>
    </form>`;
}

function dataSection(problems) {
  return html`<section class="card stack">
    <h2>Data</h2>
    ${data.uploader.view("JSONL, CSV or Parquet, also packed with gzip. Every line is checked.")}
    <div class="stack">
      ${
        data.files.length
          ? data.fileSelect(
              "training_file",
              "Or a file that is uploaded already",
              draft.file,
              (file) => change({ file }),
            )
          : html`<button type="button" ?disabled=${isUploadingSample} @click=${trySample}>
              ${isUploadingSample ? "Uploading the sample…" : "Use a sample"}
            </button>`
      }
    </div>
    ${wrongNote(problems.training_file)} ${data.report()}
    ${data.preview(hyperparametersOf(readDraft().body))}
  </section>`;
}

function startSection(body, problems) {
  const wrong = Object.keys(problems).filter((name) => !["training_file", "model"].includes(name));
  return html`<section class="card stack">
    ${problemNote(refusal?.message)} ${body.sweep ? sweepNote(body.sweep) : nothing}
    <button
      type="button"
      class="primary big"
      ?disabled=${isStarting}
      @click=${() => startJob(body, problems)}
    >
      ${startLabel(countJobs(body))}
    </button>
    ${
      wrong.length && wasTried
        ? html`<p class="wrong">Some fields need a look: ${wrong.join(", ")}.</p>`
        : nothing
    }
  </section>`;
}

function sweepNote({ grid }) {
  const each = Object.entries(grid).map(
    ([name, values]) => html`<code>${name}</code> ${values.join(", ")}<br />`,
  );
  return html`<p class="hint">A sweep, compared by validation loss:<br />${each}</p>`;
}

function startLabel(jobs) {
  if (isStarting) return "Starting…";
  const what = jobs > 1 ? `${count(jobs)} jobs` : "the job";
  return draft.startsPaused ? `Create ${what}, paused` : `Start ${what}`;
}

function callSection(body) {
  const texts = {
    curl: curlOf(pathOf(body), body, session),
    Python: pythonOf(body, session),
  };
  const open = (label) => {
    openTab = label;
    draw();
  };
  return html`<section class="card stack">${callView(texts, openTab, open)}</section>`;
}

function cannotWrite() {
  return html`<h1>New job</h1>
    <p class="card empty">A new job needs a key with the scope <code>write</code>.</p>`;
}

const hyperparametersOf = ({ method }) => method?.[method.type].hyperparameters ?? {};

/** Preferences can only be tuned on with `dpo`, and all other files only supervised. */
const method = () => (data.chosen?.format === "preference" ? "dpo" : "supervised");

const readDraft = () => read(draft, forms[method()].fields, method());

function presetOf(name) {
  return estimator.presetOf(name);
}

/** What is missing is told once "Start" was pressed; what is wrong, at once. */
function problemsToShow(problems) {
  if (wasTried) return problems;
  const { training_file, model, validation_file, ...wrong } = problems;
  return wrong;
}

/** The error of the API at the field that it names. */
function problemOf(error) {
  const { fields } = forms[method()];
  const name = error?.param
    ?.split(/[.[]/)
    .find((part) => fields.has(part) && part !== "method" && part !== "hyperparameters");
  return name ? { [name]: error.message } : {};
}

function change(changed) {
  Object.assign(draft, changed);
  saveDraft(draft);
  refusal = null;
  draw();
  refresh();
}

function setSetting(name, text) {
  const settings = { ...draft.settings, [name]: text };
  if (text === "") delete settings[name];
  change({ settings });
}

function refreshNow() {
  const { body, problems } = readDraft();
  if (Object.keys(problems).length) {
    estimator.forget(estimator.answer);
    if (!draft.file || !draft.model) estimator.forget();
    draw();
  } else {
    estimator.refresh(body);
  }
  data.refreshPreview(hyperparametersOf(body));
}

const refresh = debounce(refreshNow, TYPING_MS);

async function startJob(body, problems) {
  if (isStarting) return;
  wasTried = true;
  refusal = null;
  if (Object.keys(problems).length) {
    draw();
    focusProblem();
    return;
  }
  isStarting = true;
  draw();
  try {
    const headers = { "idempotency-key": keyOf(body) };
    const { id } = await post(pathOf(body), body, { headers });
    forgetDraft();
    location.assign(`${body.sweep ? "sweep" : "job"}?id=${encodeURIComponent(id)}`);
  } catch (error) {
    refusal = error;
    isStarting = false;
    draw();
    focusProblem();
  }
}

function focusProblem() {
  const wrong = main.querySelector("[aria-invalid=true]") ?? main.querySelector(".wrong, .problem");
  wrong?.closest("details:not([open])")?.setAttribute("open", "");
  wrong?.focus();
  wrong?.scrollIntoView({ block: "center" });
}

async function trySample() {
  isUploadingSample = true;
  draw();
  try {
    const file = await uploadSample();
    data.files = [file, ...data.files];
    change({ file: file.id });
  } catch (error) {
    tell(error.message, "problem");
  }
  isUploadingSample = false;
  draw();
}

if (can(session, "write")) await start();
else render(cannotWrite(), main);

// Base models that can be tuned here, and what the jobs have made of them.

import { get, remove, url } from "../lib/api.js";
import { copyButton } from "../lib/copy.js";
import { ago, count, moment, UNKNOWN } from "../lib/format.js";
import { html, nothing, render, repeat } from "../lib/html.js";
import { problemNote } from "../lib/problems.js";
import { can, confirm, openPage, tell } from "../lib/shell.js";
import { tryAddress } from "../lib/try-link.js";

const SHOWN_AT_FIRST = 100;

const { session, main } = await openPage("models");
const canWrite = can(session, "write");
const canAsk = can(session, "sample");

let models = null;
let problem = null;
let search = "";
let showsAll = false;

draw();
await fetchModels();

async function fetchModels() {
  try {
    models = (await get("models")).data;
    problem = null;
  } catch (error) {
    problem = error.message;
  }
  draw();
}

function draw() {
  render(view(), main);
}

function view() {
  return html`<h1>Models</h1>
    ${problemNote(problem)}
    ${
      models
        ? html`${tunedModels(models.filter((model) => model.base_model))}
          ${baseModels(models.filter((model) => !model.base_model))}`
        : problem
          ? nothing
          : html`<p class="muted">Loading…</p>`
    }`;
}

function tunedModels(tuned) {
  const wanted = search.toLowerCase();
  const found = tuned.filter(({ id }) => id.toLowerCase().includes(wanted));
  const shown = showsAll ? found : found.slice(0, SHOWN_AT_FIRST);
  return html`<section class="stack" aria-labelledby="tuned">
    <div class="row">
      <h2 id="tuned">Tuned models</h2>
      ${
        tuned.length
          ? html`<label class="end">
              <span class="visually-hidden">Search the tuned models</span>
              <input
                type="search"
                placeholder="Search"
                @input=${(event) => {
                  search = event.target.value.trim();
                  draw();
                }}
              />
            </label>`
          : nothing
      }
    </div>
    ${tuned.length ? tunedTable(shown) : noneYet()}
    ${
      shown.length < found.length
        ? html`<div>
            <button
              @click=${() => {
                showsAll = true;
                draw();
              }}
            >
              Show all ${count(found.length)}
            </button>
          </div>`
        : nothing
    }
  </section>`;
}

function noneYet() {
  return html`<div class="card empty">
    <p>A job that has succeeded leaves its model here.</p>
    ${canWrite ? html`<a class="button primary" href="new">New job</a>` : nothing}
  </div>`;
}

function tunedTable(tuned) {
  return html`<div class="card flush">
    <table class="stackable">
      <caption class="visually-hidden">
        Tuned models, newest first
      </caption>
      <thead>
        <tr>
          <th>Model</th>
          <th>Base model</th>
          <th>Job</th>
          <th class="number">Created</th>
          <th><span class="visually-hidden">Actions</span></th>
        </tr>
      </thead>
      <tbody>
        ${repeat(tuned, (model) => model.id, tunedRow)}
      </tbody>
    </table>
  </div>`;
}

function tunedRow(model) {
  const job = encodeURIComponent(model.fine_tuning_job_id);
  const adapter = url(`fine_tuning/jobs/${job}/adapter`, { checkpoint: model.checkpoint_id });
  return html`<tr>
    <td class="name mono">${model.id}</td>
    <td data-label="Base model">${model.base_model}</td>
    <td data-label="Job"><a class="mono" href="job?id=${job}">${model.fine_tuning_job_id}</a></td>
    <td class="number" data-label="Created" title=${moment(model.created)}>
      ${ago(model.created)}
    </td>
    <td class="actions">
      ${tryLink(model.id, model.base_model, model.id)}
      ${copyButton(model.id, "Copy the name")}
      <a class="button" href=${adapter} download
        >Adapter<span class="visually-hidden"> of ${model.id}</span></a
      >
      ${
        canWrite
          ? html`<button class="danger" @click=${(event) => deleteModel(event.target, model)}>
              Delete<span class="visually-hidden"> ${model.id}</span>
            </button>`
          : nothing
      }
    </td>
  </tr>`;
}

function tryLink(id, ...asked) {
  return canAsk
    ? html`<a class="button" href=${tryAddress(...asked)}
        >Try<span class="visually-hidden"> ${id}</span></a
      >`
    : nothing;
}

function baseModels(base) {
  return html`<section class="stack" aria-labelledby="base">
    <h2 id="base">Base models</h2>
    ${
      base.length
        ? html`<div class="card flush">
            <table class="stackable">
              <caption class="visually-hidden">
                Installed base models
              </caption>
              <thead>
                <tr>
                  <th>Model</th>
                  <th class="number">Context</th>
                  <th class="number">Highest LoRA rank</th>
                  <th>Tools</th>
                  <th>Licence</th>
                  <th><span class="visually-hidden">Actions</span></th>
                </tr>
              </thead>
              <tbody>
                ${repeat(base, (model) => model.id, baseRow)}
              </tbody>
            </table>
          </div>`
        : html`<p class="card empty">No base model is installed yet.</p>`
    }
    <div class="card stack">
      <p>
        The operator of the service installs more, on its machine. The first command lists the
        models that the service knows, the second installs one.
      </p>
      <pre>
tunery models list
tunery models install qwen2.5-0.5b-instruct</pre>
    </div>
  </section>`;
}

function baseRow({ id, repo, licence, limits }) {
  return html`<tr>
    <td class="name">
      ${id}
      <div class="muted small">${repo ?? UNKNOWN}</div>
    </td>
    <td class="number" data-label="Context">${count(limits?.context_length)}</td>
    <td class="number" data-label="Highest LoRA rank">${count(limits?.max_lora_rank)}</td>
    <td data-label="Tools">${limits?.supports_tools ? "yes" : "no"}</td>
    <td data-label="Licence">${licence ?? UNKNOWN}</td>
    <td class="actions">
      ${tryLink(id, id)}
      ${
        canWrite
          ? html`<a class="button" href="new?model=${encodeURIComponent(id)}"
              >Tune<span class="visually-hidden"> ${id}</span></a
            >`
          : nothing
      }
    </td>
  </tr>`;
}

async function deleteModel(button, model) {
  const question =
    `Delete ${model.id} and its adapter? This cannot be undone. ` + "The job and its log stay.";
  if (!(await confirm(question, "Delete the model"))) return;
  button.disabled = true;
  try {
    await remove(`models/${encodeURIComponent(model.id)}`);
    models = models.filter(({ id }) => id !== model.id);
    tell(`${model.id} is deleted.`);
    draw();
    main.focus();
  } catch (error) {
    tell(error.message, "problem");
  }
  button.disabled = false;
}

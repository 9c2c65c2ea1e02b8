// The files of the project: upload, look into, download and delete.

import { get, remove, url } from "../lib/api.js";
import { ago, bytes, count, moment, UNKNOWN } from "../lib/format.js";
import { html, nothing, render, repeat } from "../lib/html.js";
import { problemNote } from "../lib/problems.js";
import { previewRows } from "../lib/preview.js";
import { can, confirm, openPage, tell } from "../lib/shell.js";
import { Uploader } from "../lib/uploads.js";

const PAGE_SIZE = 50;
const JOBS_SEARCHED = 200;
const PURPOSES = { "": "All", "fine-tune": "Datasets", "fine-tune-results": "Loss logs" };

const { session, main } = await openPage("files");
const canWrite = can(session, "write");

let files = null;
let hasMore = false;
let isBusy = false;
let problem = null;
let jobsOf = new Map(); // by the id of the file
let models = [];
let purpose = ""; // of the files that are shown; empty for all
let opened = null; // {file, model, answer, problem}

const uploader = new Uploader(draw, (file) => {
  files = [file, ...(files ?? [])];
  tell(`${file.filename} is uploaded: ${count(file.examples)} examples.`);
});

draw();
await Promise.all([fetchMore(), fetchUses(), fetchModels()]);

function draw() {
  render(view(), main);
}

function view() {
  return html`<h1>Files</h1>
    ${
      canWrite
        ? html`<section class="card stack" aria-label="Upload">
            ${uploader.view("JSONL, CSV or Parquet, also packed with gzip. Every line is checked.")}
          </section>`
        : nothing
    }
    <div class="chips" role="group" aria-label="Show">
      ${Object.entries(PURPOSES).map(
        ([name, label]) =>
          html`<button
            class="chip"
            aria-pressed=${String(name === purpose)}
            ?disabled=${isBusy}
            @click=${() => choosePurpose(name)}
          >
            ${label}
          </button>`,
      )}
    </div>
    ${problemNote(problem)}
    ${files === null ? (problem ? nothing : html`<p class="muted">Loading…</p>`) : list()}
    ${previewDialog()}`;
}

function list() {
  if (!files.length) {
    const kind = purpose === "fine-tune-results" ? "loss log" : "file";
    return html`<p class="card empty">There is no ${kind} yet.</p>`;
  }
  return html`<div class="card flush">
      <table class="stackable files">
        <caption class="visually-hidden">
          Files, newest first
        </caption>
        <thead>
          <tr>
            <th>File</th>
            <th>Format</th>
            <th class="number">Examples</th>
            <th class="number">Size</th>
            <th>Used by</th>
            <th class="number">Created</th>
            <th><span class="visually-hidden">Actions</span></th>
          </tr>
        </thead>
        <tbody>
          ${repeat(files, (file) => file.id, row)}
        </tbody>
      </table>
    </div>
    ${
      hasMore
        ? html`<div><button ?disabled=${isBusy} @click=${fetchMore}>Older files</button></div>`
        : nothing
    }`;
}

function row(file) {
  const isDataset = file.purpose === "fine-tune";
  const content = url(`files/${encodeURIComponent(file.id)}/content`, { encoding: "plain" });
  return html`<tr>
    <td class="name">
      ${file.filename}
      <div class="muted small mono">${file.id}</div>
    </td>
    <td class="word" data-label="Format">
      ${isDataset ? (file.format?.replaceAll("_", ", ") ?? UNKNOWN) : "loss log"}
    </td>
    <td class="number" data-label="Examples">${count(file.examples)}</td>
    <td class="number" data-label="Size">${bytes(file.bytes)}</td>
    <td data-label="Used by">${usedBy(file)}</td>
    <td class="number" data-label="Created" title=${moment(file.created_at)}>
      ${ago(file.created_at)}
    </td>
    <td class="actions">
      ${
        isDataset
          ? html`<button @click=${() => open(file)}>
              Preview<span class="visually-hidden"> ${file.filename}</span>
            </button>`
          : nothing
      }
      ${
        isDataset && canWrite
          ? html`<a class="button" href="new?file=${encodeURIComponent(file.id)}"
              >Tune<span class="visually-hidden"> on ${file.filename}</span></a
            >`
          : nothing
      }
      <a class="button" href=${content} download=${file.filename}
        >Download<span class="visually-hidden"> ${file.filename}</span></a
      >
      ${
        canWrite
          ? html`<button class="danger" @click=${(event) => deleteFile(event.target, file)}>
              Delete<span class="visually-hidden"> ${file.filename}</span>
            </button>`
          : nothing
      }
    </td>
  </tr>`;
}

function usedBy(file) {
  const jobs = jobsOf.get(file.id) ?? [];
  if (!jobs.length) return UNKNOWN;
  const [newest] = jobs;
  return html`<a href="job?id=${encodeURIComponent(newest.id)}"
      >${newest.user_provided_suffix ?? newest.id}</a
    >${jobs.length > 1 ? html` <span class="muted">and ${jobs.length - 1} more</span>` : nothing}`;
}

async function choosePurpose(name) {
  purpose = name;
  files = null;
  await fetchMore();
}

async function fetchMore() {
  isBusy = true;
  draw();
  try {
    const page = await get("files", { purpose, limit: PAGE_SIZE, after: files?.at(-1)?.id });
    files = [...(files ?? []), ...page.data];
    hasMore = page.has_more;
    problem = null;
  } catch (error) {
    problem = error.message;
  }
  isBusy = false;
  draw();
}

async function fetchUses() {
  try {
    const { data } = await get("fine_tuning/jobs", { limit: JOBS_SEARCHED });
    const uses = data.flatMap((job) =>
      [job.training_file, job.validation_file, ...job.result_files]
        .filter(Boolean)
        .map((file) => [file, job]),
    );
    jobsOf = Map.groupBy(uses, ([file]) => file);
    for (const [file, pairs] of jobsOf)
      jobsOf.set(
        file,
        pairs.map(([, job]) => job),
      );
    draw();
  } catch {
    // The column stays empty; the list itself tells what is wrong.
  }
}

async function fetchModels() {
  try {
    const { data } = await get("models");
    models = data.filter((model) => !model.base_model).map((model) => model.id);
  } catch {
    // The dialog then says that no model is there to read the rows.
  }
}

async function deleteFile(button, file) {
  if (!(await confirm(`Delete ${file.filename}? This cannot be undone.`, "Delete the file")))
    return;
  button.disabled = true;
  try {
    await remove(`files/${encodeURIComponent(file.id)}`);
    files = files.filter(({ id }) => id !== file.id);
    tell(`${file.filename} is deleted.`);
    draw();
    main.focus();
  } catch (error) {
    tell(error.message, "problem");
  }
  button.disabled = false;
}

function previewDialog() {
  return html`<dialog class="wide" aria-label="Preview" @close=${close}>
    ${opened ? previewContent(opened) : nothing}
  </dialog>`;
}

function previewContent({ file, model, answer, problem: why }) {
  return html`<div class="stack">
    <div class="row">
      <h2>${file.filename}</h2>
      <form method="dialog" class="end"><button>Close</button></form>
    </div>
    <label>
      As this base model reads it
      <select @change=${(event) => fetchPreview(file, event.target.value)}>
        ${models.map((id) => html`<option value=${id} ?selected=${id === model}>${id}</option>`)}
      </select>
    </label>
    ${problemNote(why)}
    <p class="muted" ?hidden=${answer || why}>Reading the first rows…</p>
    ${answer ? previewRows(answer) : nothing}
  </div>`;
}

function open(file) {
  if (!models.length) {
    tell("No base model is installed that could read the rows.", "problem");
    return;
  }
  fetchPreview(file, models[0]);
  main.querySelector("dialog").showModal();
}

async function fetchPreview(file, model) {
  const asked = { file, model, answer: null, problem: null };
  opened = asked;
  draw();
  try {
    asked.answer = await get(`files/${encodeURIComponent(file.id)}/preview`, {
      model,
      rows: "1-10",
    });
  } catch (error) {
    asked.problem = error.message;
  }
  draw();
}

function close() {
  opened = null;
  draw();
}

// The data of a new job: a file that is uploaded or chosen, its report, and what is learned of it.

import { get } from "../../lib/api.js";
import { bytes, count } from "../../lib/format.js";
import { html, nothing } from "../../lib/html.js";
import { problemNote } from "../../lib/problems.js";
import { previewRows } from "../../lib/preview.js";
import { Uploader } from "../../lib/uploads.js";

const FILES_OFFERED = 100;
const ROWS = { few: "1-3", more: "1-10" };
const PREVIEW_SETTINGS = ["context_length", "overlong_row_behavior", "train_on"];

/** The files of the project, the chosen one, and its preview. */
export class Data {
  files = [];
  problem = null;

  #draft;
  #draw;
  #preview = { key: "", answer: null, problem: null, isBusy: false };
  #pending = null;
  #rows = ROWS.few;

  /**
   * @param {object} draft
   * @param {() => void} draw
   * @param {(file: object) => void} onFile called when a file was uploaded
   */
  constructor(draft, draw, onFile) {
    this.#draft = draft;
    this.#draw = draw;
    this.uploader = new Uploader(draw, (file) => {
      this.files = [file, ...this.files];
      onFile(file);
    });
  }

  get chosen() {
    return this.files.find(({ id }) => id === this.#draft.file) ?? null;
  }

  async fetch() {
    const { data } = await get("files", { purpose: "fine-tune", limit: FILES_OFFERED });
    this.files = data;
    const { file } = this.#draft;
    if (file && !this.chosen) await this.#fetchChosen(file);
    this.#draw();
  }

  async #fetchChosen(id) {
    try {
      this.files = [await get(`files/${encodeURIComponent(id)}`), ...this.files];
    } catch (error) {
      if (error.status !== 404) throw error;
      this.#draft.file = ""; // it was deleted since
    }
  }

  /** Fetch the preview if what it depends on has changed. */
  async refreshPreview(settings) {
    const { file, model } = this.#draft;
    const shown = PREVIEW_SETTINGS.map((name) => [name, settings?.[name]]);
    const query = { model, rows: this.#rows, ...Object.fromEntries(shown) };
    const key = JSON.stringify([file, query]);
    if (key === this.#preview.key) return;
    this.#pending?.abort();
    this.#preview = { key, answer: this.#preview.answer, problem: null, isBusy: true };
    if (!file || !model) {
      this.#preview = { key, answer: null, problem: null, isBusy: false };
      return;
    }
    this.#draw();
    this.#pending = new AbortController();
    await this.#fetchPreview(file, query, this.#pending.signal);
  }

  async #fetchPreview(file, query, signal) {
    const preview = this.#preview;
    try {
      const path = `files/${encodeURIComponent(file)}/preview`;
      preview.answer = await get(path, query, { signal });
    } catch (error) {
      if (error.name === "AbortError") return;
      preview.answer = null;
      preview.problem = error.message;
    }
    preview.isBusy = false;
    this.#draw();
  }

  showMoreRows(settings) {
    this.#rows = ROWS.more;
    this.refreshPreview(settings);
  }

  fileSelect(name, label, value, onChoose) {
    return html`<label>
      ${label}
      <select name=${name} @change=${(event) => onChoose(event.target.value)}>
        <option value="" ?selected=${!value}>Choose…</option>
        ${this.files.map(
          (file) =>
            html`<option value=${file.id} ?selected=${file.id === value}>
              ${file.filename} (${count(file.examples)} examples)
            </option>`,
        )}
      </select>
    </label>`;
  }

  report() {
    const file = this.chosen;
    if (!file) return nothing;
    return html`<dl class="figures">
      <div class="wide">
        <dt>File</dt>
        <dd>${file.filename}</dd>
      </div>
      <div>
        <dt>Examples</dt>
        <dd>${count(file.examples)}</dd>
      </div>
      <div>
        <dt>Format</dt>
        <dd>${file.format?.replaceAll("_", ", ")}</dd>
      </div>
      <div>
        <dt>Size</dt>
        <dd>${bytes(file.bytes)}</dd>
      </div>
    </dl>`;
  }

  preview(settings) {
    const { answer, problem, isBusy } = this.#preview;
    if (!this.chosen || !this.#draft.model) return nothing;
    return html`<details class="preview" open>
      <summary>What the model learns from it</summary>
      <div class="stack" aria-busy=${isBusy}>
        ${problemNote(problem)}
        <p class="muted" ?hidden=${!isBusy || answer}>Reading the first rows…</p>
        ${answer ? previewRows(answer) : nothing}
        ${
          answer && this.#rows === ROWS.few && this.chosen.examples > 3
            ? html`<div>
                <button type="button" @click=${() => this.showMoreRows(settings)}>
                  Show more rows
                </button>
              </div>`
            : nothing
        }
      </div>
    </details>`;
  }
}

// Choosing and uploading a dataset: drop zone, progress, and what is wrong with a file, by line.

import { upload } from "./api.js";
import { bytes, count, percent } from "./format.js";
import { html, nothing } from "./html.js";

const ACCEPTED = ".jsonl,.json,.csv,.parquet,.gz,.txt";

/** An upload and its state, for one place of a page. */
export class Uploader {
  /** @type {null | {name: string, size: number, fraction: number}} what is being sent */
  sending = null;
  /**
   * Why the last file was refused.
   * @type {null | {name: string, error: import("./api.js").ApiError}}
   */
  refused = null;

  #draw;
  #onUploaded;
  #abort = null;
  #isOver = false;

  /**
   * @param {() => void} draw called when the state has changed
   * @param {(file: object) => void} onUploaded called with the file as the API shows it
   */
  constructor(draw, onUploaded) {
    this.#draw = draw;
    this.#onUploaded = onUploaded;
  }

  view(hint) {
    return html`
      ${this.sending ? this.#progress() : this.#dropZone(hint)}
      ${this.refused ? problems(this.refused) : nothing}
    `;
  }

  async #send(file) {
    if (!file || this.sending) return;
    this.refused = null;
    this.sending = { name: file.name, size: file.size, fraction: 0 };
    this.#draw();
    const { done, abort } = upload(file, (fraction) => {
      this.sending.fraction = fraction;
      this.#draw();
    });
    this.#abort = abort;
    try {
      this.#onUploaded(await done);
    } catch (error) {
      if (error.name !== "AbortError") this.refused = { name: file.name, error };
    }
    this.sending = null;
    this.#draw();
  }

  #progress() {
    const { name, size, fraction } = this.sending;
    const isSent = fraction >= 1;
    return html`<div class="drop sending">
      <p><b>${name}</b> <span class="muted">${bytes(size)}</span></p>
      <progress max="1" .value=${fraction} aria-label="Upload"></progress>
      <div class="row">
        <span role="status">
          ${isSent ? "Checking every line…" : `${percent(fraction)} sent`}
        </span>
        <button type="button" class="end" @click=${() => this.#abort()}>Cancel the upload</button>
      </div>
    </div>`;
  }

  #dropZone(hint) {
    return html`<label
      class="drop ${this.#isOver ? "over" : ""}"
      @dragover=${(event) => this.#over(event, true)}
      @dragleave=${(event) => this.#over(event, false)}
      @drop=${(event) => this.#drop(event)}
    >
      <span><b>Drop a file here</b> or <span class="link">choose one</span></span>
      <input type="file" accept=${ACCEPTED} @change=${(event) => this.#choose(event)} />
      <span class="hint">${hint}</span>
    </label>`;
  }

  #over(event, isOver) {
    event.preventDefault();
    if (this.#isOver === isOver) return;
    this.#isOver = isOver;
    this.#draw();
  }

  #drop(event) {
    this.#over(event, false);
    this.#send(event.dataTransfer.files[0]);
  }

  #choose(event) {
    const [file] = event.target.files;
    event.target.value = ""; // the same file can be chosen again once it is mended
    this.#send(file);
  }
}

function problems({ name, error }) {
  return html`<div class="problems" role="alert">
    <p><b>${name}</b> was not taken. ${summary(error)}</p>
    ${
      error.errors.length
        ? html`<div class="scroll" tabindex="0" role="region" aria-label="Problems by line">
            <table>
              <thead>
                <tr>
                  <th class="number">Line</th>
                  <th>Where</th>
                  <th>Problem</th>
                </tr>
              </thead>
              <tbody>
                ${error.errors.map(
                  ({ line, path, message }) =>
                    html`<tr>
                      <td class="number">${count(line)}</td>
                      <td class="mono">${path}</td>
                      <td>${message}</td>
                    </tr>`,
                )}
              </tbody>
            </table>
          </div>`
        : nothing
    }
  </div>`;
}

/** How much is wrong. The message of the API repeats the first line of the table. */
function summary({ errors, errorCount, hasMoreErrors, message }) {
  if (!errors.length) return message;
  if (errorCount === 1) return "One line has a problem. Fix it and upload the file again.";
  const many = `${hasMoreErrors ? "At least " : ""}${count(errorCount)} problems were found.`;
  return `${many} Fix them and upload the file again.`;
}

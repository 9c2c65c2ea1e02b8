// What the list shows while there is no job: the way to the first one.

import { html, nothing } from "../../lib/html.js";

/** @param {{canWrite: boolean, isBusy: boolean, onSample: () => void}} options */
export function firstJob({ canWrite, isBusy, onSample }) {
  return html`<section class="card first">
    <h2>Tune your first model</h2>
    <ol class="steps">
      <li>
        <b>Bring examples.</b> A JSONL, CSV or Parquet file that shows what the model should answer.
      </li>
      <li>
        <b>Choose a base model.</b> The settings have good defaults, and you see how long it will
        take.
      </li>
      <li><b>Watch it learn.</b> Then download the adapter.</li>
    </ol>
    ${
      canWrite
        ? html`<div class="row">
              <a class="button primary" href="new">New job</a>
              <button ?disabled=${isBusy} @click=${onSample}>
                ${isBusy ? "Uploading the sample…" : "Try it with a sample"}
              </button>
            </div>
            <p class="hint">
              The sample has 64 short answers of a lighthouse keeper. It is uploaded like a file of
              yours, and nothing starts before you say so.
            </p>`
        : nothing
    }
  </section>`;
}

/** What the list shows if no job matches. */
export function noMatch(onClear) {
  return html`<div class="card empty">
    <p>No job matches these filters.</p>
    <button @click=${onClear}>Clear the filters</button>
  </div>`;
}

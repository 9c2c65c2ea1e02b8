// What the job will take. The answer takes the service some seconds, so it is asked sparingly.

import { post } from "../../lib/api.js";
import { bytes, count, duration } from "../../lib/format.js";
import { html, nothing } from "../../lib/html.js";
import { problemNote } from "../../lib/problems.js";

export class Estimator {
  /** The last answer of `POST /v1/fine_tuning/jobs/estimate`, or null. */
  answer = null;
  /** Why there is none, as an `ApiError`, or null. */
  error = null;

  #draw;
  #asked = "";
  #pending = null;
  #isBusy = false;

  constructor(draw) {
    this.#draw = draw;
  }

  /** Ask again if the body has changed. A request for an older body is ended. */
  async refresh(body) {
    const asked = JSON.stringify(withoutLabels(body));
    if (asked === this.#asked) return;
    this.forget(this.answer);
    this.#asked = asked;
    this.#isBusy = true;
    this.#draw();
    const pending = new AbortController();
    this.#pending = pending;
    try {
      this.answer = await post("fine_tuning/jobs/estimate", body, { signal: pending.signal });
    } catch (error) {
      if (error.name === "AbortError") return;
      this.answer = null;
      this.error = error;
    }
    this.#isBusy = false;
    this.#draw();
  }

  /** End a request that is open: the form has changed. */
  forget(answer = null) {
    this.#pending?.abort();
    this.#asked = "";
    this.#isBusy = false;
    this.answer = answer;
    this.error = null;
  }

  /** The value that an empty field gets, as text. Empty if it is not known yet. */
  presetOf(name) {
    const value = this.answer?.hyperparameters[name];
    if (value === undefined) return "";
    if (value === null) return "none";
    return Array.isArray(value) ? value.join(", ") : String(value);
  }

  /** @param {boolean} isComplete whether there is a file and a base model */
  view(isComplete) {
    return html`<section class="card" aria-busy=${this.#isBusy}>
      <h2>Estimate <span class="muted small" ?hidden=${!this.#isBusy}>Counting…</span></h2>
      ${problemNote(this.error?.message)} ${this.answer ? figures(this.answer) : this.#hint(isComplete)}
    </section>`;
  }

  #hint(isComplete) {
    if (this.error) return nothing;
    if (this.#isBusy)
      return html`<p class="muted">
        The tokens of some rows are being counted. This takes a few seconds.
      </p>`;
    const need = isComplete ? "Fix the fields that are marked" : "Choose a file and a base model";
    return html`<p class="muted">${need} to see what the job will take.</p>`;
  }
}

/** Labels and names change nothing about the training. */
function withoutLabels({ suffix, metadata, priority, auto_start, ...rest }) {
  return rest;
}

function figures({ estimate, rows, sampled_rows: sampled }) {
  const time = estimate.duration;
  return html`<dl class="figures narrow">
      <div>
        <dt>Duration</dt>
        <dd>${time ? `about ${duration(time.seconds)}` : "unknown on a GPU"}</dd>
      </div>
      <div>
        <dt>Between</dt>
        <dd>${time ? `${duration(time.low)} and ${duration(time.high)}` : "–"}</dd>
      </div>
      <div>
        <dt>Steps</dt>
        <dd>${count(estimate.steps)}</dd>
      </div>
      <div>
        <dt>Tokens</dt>
        <dd>${count(estimate.tokens)}</dd>
      </div>
      <div>
        <dt>Peak memory</dt>
        <dd>${bytes(estimate.peak_memory_bytes)}</dd>
      </div>
      <div>
        <dt>Disk</dt>
        <dd>${bytes(estimate.disk_bytes)}</dd>
      </div>
    </dl>
    ${estimate.advice.map((advice) => html`<p class="notice">${advice}</p>`)}
    ${
      sampled < rows
        ? html`<p class="hint">From ${count(sampled)} of ${count(rows)} rows.</p>`
        : nothing
    }`;
}

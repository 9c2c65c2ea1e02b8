// What the job will take. The answer takes the service some seconds, so it is asked sparingly.

import { post } from "../../lib/api.js";
import { bytes, count, duration, listed } from "../../lib/format.js";
import { html, nothing } from "../../lib/html.js";
import { problemNote } from "../../lib/problems.js";
import { pathOf } from "./draft.js";

export class Estimator {
  /** The last estimate of a job or of a sweep, as the API gave it, or null. */
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
      this.answer = await post(`${pathOf(body)}/estimate`, body, { signal: pending.signal });
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
    const value = this.answer && jobsOf(this.answer)[0].hyperparameters[name];
    if (value === undefined) return "";
    if (value === null) return "none";
    return Array.isArray(value) ? listed(value) : String(value);
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

const jobsOf = (answer) => answer.jobs ?? [answer];

function figures(answer) {
  const jobs = jobsOf(answer);
  const { rows, sampled_rows: sampled } = jobs[0];
  const estimates = jobs.map((job) => job.estimate);
  const time = answer.jobs ? answer.duration : estimates[0].duration;
  const sum = (name) => estimates.reduce((total, each) => total + each[name], 0);
  const advice = new Set(estimates.flatMap((each) => each.advice));
  return html`${
      answer.jobs
        ? html`<p class="hint">
            ${count(jobs.length)} jobs, one after another on one worker. More workers share them.
          </p>`
        : nothing
    }
    <dl class="figures narrow">
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
        <dd>${count(sum("steps"))}</dd>
      </div>
      <div>
        <dt>Tokens</dt>
        <dd>${count(sum("tokens"))}</dd>
      </div>
      <div>
        <dt>Peak memory</dt>
        <dd>${bytes(Math.max(...estimates.map((each) => each.peak_memory_bytes)))}</dd>
      </div>
      <div>
        <dt>Disk</dt>
        <dd>${bytes(sum("disk_bytes"))}</dd>
      </div>
    </dl>
    ${[...advice].map((each) => html`<p class="notice">${each}</p>`)}
    ${
      sampled < rows
        ? html`<p class="hint">From ${count(sampled)} of ${count(rows)} rows.</p>`
        : nothing
    }`;
}

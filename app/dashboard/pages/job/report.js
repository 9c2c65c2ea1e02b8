// How the tuned model answers, beside its base model: scores, and answers to read.

import { get } from "../../lib/api.js";
import { count, percent } from "../../lib/format.js";
import { html, live, nothing } from "../../lib/html.js";
import { tell } from "../../lib/shell.js";

const SOURCES = {
  validation_file: "examples of the validation file",
  validation_split: "examples that were held out",
};
const SCORES = {
  exact_match: "Exact match",
  token_f1: "Token F1",
  valid_json: "Valid JSON",
};
const ENDINGS = { length: "Cut at its maximum length", null: "Not finished in time" };
const AWAY_S = 5;

const RESULT = "";

export class ReportCard {
  /** Which report is shown or asked for: id of a checkpoint, or `RESULT`. */
  #asked = null;
  #task = null;
  /** Which report the user wants to see. */
  #wanted = null;

  /**
   * @param {import("./feed.js").JobFeed} feed
   * @param {() => void} draw
   */
  constructor(feed, draw) {
    this.feed = feed;
    this.draw = draw;
  }

  /** Whether there is something to show. Asks for a report once there is one. */
  get isShown() {
    const ids = this.#choices().map(([id]) => id);
    const order = [this.#wanted, ids.includes(RESULT) ? RESULT : null, this.#asked, ...ids];
    const id = order.find((each) => ids.includes(each));
    if (id !== undefined && id !== this.#asked) {
      this.#asked = id;
      this.#fetch(id);
    }
    return this.#task !== null;
  }

  view() {
    const { status, progress, error, report } = this.#task;
    return html`
      <div class="row">
        <h2>Before and after</h2>
        ${this.#choice()}
      </div>
      ${error ? html`<p class="problem">There is no report: ${error.message}</p>` : nothing}
      ${
        status === "queued" || status === "running"
          ? html`<p class="muted" role="status">
              Both models are answering: ${percent(progress)} is done.
            </p>`
          : nothing
      }
      ${report ? [scores(report), report.answers.map(answers)] : nothing}
    `;
  }

  #choice() {
    const choices = this.#choices();
    if (choices.every(([id]) => id === RESULT)) return nothing;
    return html`<label class="end">
      Answers of
      <select .value=${live(this.#asked)} @change=${(event) => this.#choose(event.target.value)}>
        ${choices.map(
          ([id, name]) =>
            html`<option value=${id} ?selected=${id === this.#asked}>${name}</option>`,
        )}
      </select>
    </label>`;
  }

  /** The reports that there are: that on the result, and those on other checkpoints. */
  #choices() {
    const others = this.feed.checkpoints.filter((each) => each.has_report && !each.is_result);
    return [
      ...(this.feed.attempts.has_report ? [[RESULT, "the result"]] : []),
      ...others.map(({ id, step_number }) => [id, `step ${count(step_number)}`]),
    ];
  }

  #choose(id) {
    this.#wanted = id;
    this.draw();
  }

  async #fetch(id) {
    let waitS = AWAY_S;
    try {
      const path = `fine_tuning/jobs/${encodeURIComponent(this.feed.id)}/report`;
      const task = await get(path, { checkpoint: id });
      if (id !== this.#asked) return;
      this.#task = task;
      waitS = task.retry_after;
      this.draw();
    } catch (error) {
      if (id !== RESULT && error.status === 404) return; // later checkpoints have taken its place
      if (!error.mayPass) return tell(error.message, "problem");
    }
    if (waitS !== null) setTimeout(() => id === this.#asked && this.#fetch(id), 1000 * waitS);
  }
}


function scores(report) {
  if (!report.source) return nothing;
  const [drawn, scored] = [report.chosen_examples, report.scored_examples];
  const skipped = report.skipped_examples;
  return html`
    ${
      report.base && report.tuned
        ? html`<table class="scores">
            <thead>
              <tr>
                <td></td>
                <th scope="col" class="number">Base model</th>
                <th scope="col" class="number">Tuned model</th>
              </tr>
            </thead>
            <tbody>
              ${Object.keys(SCORES)
                .filter((name) => report.tuned[name] !== null)
                .map(
                  (name) =>
                    html`<tr>
                      <th scope="row">${SCORES[name]}</th>
                      <td class="number">${percent(report.base[name])}</td>
                      <td class="number">${percent(report.tuned[name])}</td>
                    </tr>`,
                )}
            </tbody>
          </table>`
        : nothing
    }
    <p class="muted">
      ${count(scored)} of ${count(report.examples)} ${SOURCES[report.source]} are scored, with
      greedy answers.
      ${skipped ? html`${count(skipped)} of ${count(drawn)} could not be compared.` : nothing}
      ${report.is_over_time ? "The time limit ended the report early." : nothing}
    </p>
  `;
}

function answers({ prompt, reference, base, tuned, refusal }) {
  if (refusal) {
    return html`<dl class="answers">${text("Prompt", prompt)} ${text("Not answered", refusal)}</dl>`;
  }
  return html`<dl class="answers">
    ${text("Prompt", prompt)} ${reference === null ? nothing : text("Reference", reference)}
    ${text("Base model", base.text, ENDINGS[base.finish_reason])}
    ${text("Tuned model", tuned.text, ENDINGS[tuned.finish_reason])}
  </dl>`;
}

const text = (name, written, note = nothing) =>
  html`<div>
    <dt>${name}</dt>
    <dd>${written || html`<span class="muted">Empty</span>`}</dd>
    ${note === nothing ? nothing : html`<dd class="muted note">${note}</dd>`}
  </div>`;

// How the tuned model answers, beside its base model: scores, and answers to read.

import { get } from "../../lib/api.js";
import { count, percent } from "../../lib/format.js";
import { html, nothing } from "../../lib/html.js";
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

export class ReportCard {
  #task = null;
  #hasAsked = false;

  /**
   * @param {import("./feed.js").JobFeed} feed
   * @param {() => void} draw
   */
  constructor(feed, draw) {
    this.feed = feed;
    this.draw = draw;
  }

  /** Whether there is something to show. Asks for the report once there is one. */
  get isShown() {
    if (this.feed.attempts.has_report && !this.#hasAsked) {
      this.#hasAsked = true;
      this.#fetch();
    }
    return this.#task !== null;
  }

  view() {
    const { status, progress, error, report } = this.#task;
    return html`
      <h2>Before and after</h2>
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

  async #fetch() {
    let waitS = AWAY_S;
    try {
      this.#task = await get(`fine_tuning/jobs/${encodeURIComponent(this.feed.id)}/report`);
      waitS = this.#task.retry_after;
      this.draw();
    } catch (error) {
      if (!error.mayPass) return tell(error.message, "problem");
    }
    if (waitS !== null) setTimeout(() => this.#fetch(), 1000 * waitS);
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

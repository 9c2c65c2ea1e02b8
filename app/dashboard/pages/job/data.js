// The report on a job's data: size, lengths, warnings, and rows as the model reads them.

import { get } from "../../lib/api.js";
import { count, percent } from "../../lib/format.js";
import { html, nothing } from "../../lib/html.js";
import { previewRows } from "../../lib/preview.js";
import { tell } from "../../lib/shell.js";
import { hasEnded } from "./feed.js";

export class DataPanel {
  #preview = null;
  #rows = "1-3";
  #isLoading = false;

  /**
   * @param {import("./feed.js").JobFeed} feed
   * @param {() => void} draw
   */
  constructor(feed, draw) {
    this.feed = feed;
    this.draw = draw;
  }

  view() {
    const { data } = this.feed;
    return html`
      <h2>Data</h2>
      ${data ? this.#report(data) : html`<p class="muted">${missing(this.feed)}</p>`}
      <form class="row" @submit=${(event) => this.#show(event)}>
        <label class="edge">
          Rows
          <input name="rows" .value=${this.#rows} size="8" placeholder="1-3" required />
        </label>
        <button ?disabled=${this.#isLoading}>Show as the model reads them</button>
      </form>
      <div class="preview" aria-live="polite">
        ${this.#preview ? previewRows(this.#preview) : nothing}
      </div>
    `;
  }

  #report(data) {
    return html`
      ${data.warnings.map(
        (warning) =>
          html`<p class="notice">
            ${warning.message}
            ${
              warning.lines.length
                ? html`<span class="muted">Lines ${lines(warning)}</span>`
                : nothing
            }
          </p>`,
      )}
      ${[data.training_file, data.validation_file].filter(Boolean).map(file)}
      ${
        data.held_out
          ? html`<p>
              ${count(data.held_out.examples)} examples of the training file are kept for
              validation.
            </p>`
          : nothing
      }
    `;
  }

  async #show(event) {
    event.preventDefault();
    this.#rows = new FormData(event.target).get("rows");
    this.#isLoading = true;
    this.draw();
    try {
      const { job } = this.feed;
      const { context_length, overlong_row_behavior, train_on } = job.hyperparameters;
      this.#preview = await get(`files/${encodeURIComponent(job.training_file)}/preview`, {
        model: job.model,
        rows: this.#rows,
        context_length,
        overlong_row_behavior,
        train_on,
      });
    } catch (error) {
      tell(error.message, "problem");
    } finally {
      this.#isLoading = false;
      this.draw();
    }
  }
}

function missing({ job, has }) {
  if (!has.report) return "Loading…";
  if (job.status === "validating_files") return "The data is being checked.";
  if (!hasEnded(job)) return "The report is not there yet.";
  return "There is no report: the job ended before its data was checked.";
}

const lines = ({ lines: named, count: total }) =>
  `${named.join(", ")}${total > named.length ? " and others" : ""}.`;

function file(report) {
  return html`<section class="report">
    <h3>${report.filename}</h3>
    ${report.refusal ? html`<p class="problem">${report.refusal}</p>` : nothing}
    ${report.refusal && !report.examples ? nothing : size(report)}
    ${report.lengths.length ? histogram(report) : nothing}
  </section>`;
}

function size(report) {
  const problems = [
    ["cut off", report.truncated],
    ["left out", report.dropped],
    ["without anything to learn", report.nothing_to_learn],
    ["repeated", report.duplicates],
  ].filter(([, number]) => number);
  return html`<p>
    ${count(report.examples)} examples, ${count(report.tokens)} tokens,
    ${count(report.learned_tokens)} of them learned
    (${percent(report.tokens && report.learned_tokens / report.tokens)}).
    ${problems.map(([what, number]) => html`<span class="tag">${count(number)} ${what}</span> `)}
  </p>`;
}

/** Lengths from the shortest example to the longest, one line for each bar. */
function histogram({ lengths, tokens_per_example: spread, filename }) {
  const most = Math.max(...lengths.map((bin) => bin.examples));
  const first = lengths.findIndex((bin) => bin.examples);
  return html`<figure class="histogram">
    <figcaption class="muted">
      Tokens per example: median ${count(spread.median)}, 95 % up to
      ${count(Math.round(spread.p95))}, longest ${count(spread.max)}
    </figcaption>
    <table aria-label="Lengths in ${filename}">
      <tbody>
        ${lengths.slice(first).map((bin, index) => {
          const shortest = (lengths[first + index - 1]?.up_to_tokens ?? 0) + 1;
          return bar(bin, shortest, most);
        })}
      </tbody>
    </table>
  </figure>`;
}

function bar({ up_to_tokens: upTo, examples }, shortest, most) {
  const range = shortest < upTo ? `${count(shortest)}–${count(upTo)}` : count(upTo);
  return html`<tr>
    <th scope="row" class="number">${range}</th>
    <td>
      <progress
        max=${most}
        .value=${examples}
        aria-label="Examples of ${range} tokens"
      ></progress>
    </td>
    <td class="number">${count(examples)}</td>
  </tr>`;
}

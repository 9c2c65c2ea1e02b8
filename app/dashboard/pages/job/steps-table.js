// The plotted values as a table, and the whole log as a file.

import { url } from "../../lib/api.js";
import { count, figure, loss } from "../../lib/format.js";
import { html, nothing } from "../../lib/html.js";
import { tell } from "../../lib/shell.js";

const MAX_ROWS = 500;

/**
 * @param {import("./feed.js").JobFeed} feed
 * @param {{from: number, to: number} | null} zoom steps that the plots show; null for all
 */
export function stepsTable({ log, id }, zoom) {
  const rows = zoom
    ? log.rows.filter((row) => row.step >= zoom.from && row.step <= zoom.to)
    : log.rows;
  const shown = rows.slice(-MAX_ROWS).reverse();
  return html`
    <div class="row">
      <p class="hint">
        ${count(shown.length)} of ${count(rows.length)} plotted steps, newest first. The download
        has every step.
      </p>
      <button class="end" @click=${(event) => download(event.target, id)}>Download CSV</button>
    </div>
    <div class="scroll tall" tabindex="0" role="group" aria-label="Plotted values">
      <table class="steps">
        <thead>
          <tr>
            ${[
              "Step",
              "Training loss",
              "Validation loss",
              "Accuracy",
              "Learning rate",
              "Gradient norm",
              "Tokens",
            ].map((title) => html`<th scope="col" class="number">${title}</th>`)}
          </tr>
        </thead>
        <tbody>
          ${shown.map(
            (row) =>
              html`<tr>
                ${[
                  count(row.step),
                  loss(row.train_loss),
                  loss(row.valid_loss),
                  figure(row.train_accuracy),
                  figure(row.learning_rate),
                  figure(row.grad_norm),
                  count(row.tokens_seen),
                ].map((text) => html`<td class="number">${text}</td>`)}
              </tr>`,
          )}
        </tbody>
      </table>
    </div>
    ${rows.length ? nothing : html`<p class="empty">No step has been logged yet.</p>`}
  `;
}

/** Saves the log. A link could not ask for CSV: the header `Accept` chooses it. */
async function download(button, id) {
  button.disabled = true;
  try {
    const answer = await fetch(url(`fine_tuning/jobs/${encodeURIComponent(id)}/metrics`), {
      headers: { accept: "text/csv" },
    });
    if (!answer.ok) throw new Error(`The service answered with status ${answer.status}.`);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = `${id}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  } catch (error) {
    tell(error.message, "problem");
  } finally {
    button.disabled = false;
  }
}

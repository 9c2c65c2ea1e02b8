// What a job has made: checkpoints, the adapter, the loss log.

import { url } from "../../lib/api.js";
import { ago, count, loss, percent } from "../../lib/format.js";
import { html, nothing } from "../../lib/html.js";
import { tryAddress } from "../../lib/try-link.js";
import { hasEnded } from "./feed.js";

const adapterOf = (job, checkpoint) =>
  url(`fine_tuning/jobs/${encodeURIComponent(job.id)}/adapter`, { checkpoint });

/**
 * @param {import("./feed.js").JobFeed} feed
 * @param {import("./exports.js").Exports} exports
 */
export function results({ job, checkpoints, has }, exports) {
  const [log] = job.result_files;
  const none = hasEnded(job) ? "There is no checkpoint." : "There is no checkpoint yet.";
  return html`
    <div class="row">
      <h2>Results</h2>
      <span class="row end">
        ${
          job.fine_tuned_model
            ? html`<a class="button" href=${tryAddress(job.model, job.fine_tuned_model)}>Try it</a>`
            : nothing
        }
        ${
          job.status === "succeeded"
            ? html`<a class="button primary" href=${adapterOf(job)} download
                >Download the adapter</a
              >`
            : nothing
        }
        ${
          log
            ? html`<a
                class="button"
                href=${url(`files/${encodeURIComponent(log)}/content`)}
                download="${job.id}.csv"
                >Download the loss log</a
              >`
            : nothing
        }
      </span>
    </div>
    ${job.fine_tuned_model ? html`<p>Model <code>${job.fine_tuned_model}</code></p>` : nothing}
    ${
      checkpoints.length
        ? table(job, checkpoints, exports)
        : html`<p class="muted">${has.lists ? none : "Loading…"}</p>`
    }
  `;
}

function table(job, checkpoints, exports) {
  return html`<div class="scroll tall" tabindex="0" role="group" aria-label="Checkpoints">
    <table class="checkpoints">
      <thead>
        <tr>
          <th scope="col">Checkpoint</th>
          <th scope="col" class="number">Training loss</th>
          <th scope="col" class="number">Validation loss</th>
          <th scope="col" class="number">Accuracy</th>
          <th scope="col" class="number">Created</th>
          <th scope="col"><span class="visually-hidden">Actions</span></th>
        </tr>
      </thead>
      <tbody>
        ${checkpoints.map(
          (checkpoint) =>
            html`<tr>
              <td>
                Step ${count(checkpoint.step_number)}
                ${checkpoint.is_result ? html`<span class="tag">result</span>` : nothing}
              </td>
              <td class="number">${loss(checkpoint.metrics.train_loss)}</td>
              <td class="number">${loss(checkpoint.metrics.valid_loss)}</td>
              <td class="number">${percent(checkpoint.metrics.train_mean_token_accuracy)}</td>
              <td class="number">${ago(checkpoint.created_at)}</td>
              <td class="row">
                <a
                  href=${tryAddress(job.model, checkpoint.fine_tuned_model_checkpoint)}
                  aria-label="Try step ${checkpoint.step_number}"
                  >Try</a
                >
                <a
                  href=${adapterOf(job, checkpoint.id)}
                  download
                  aria-label="Download step ${checkpoint.step_number}"
                  >Download</a
                >
                ${exports.buttons(checkpoint)}
              </td>
            </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

// The settings and results of jobs side by side: those that differ, or all.

import { count, duration, loss, short } from "../../lib/format.js";
import { html } from "../../lib/html.js";
import { statusOf } from "../../lib/status.js";
import { settingsOf, shown } from "../job/settings.js";
import { nameOf } from "../job/head.js";

const RESULTS = [
  ["Status", (job) => statusOf(job)],
  ["Training loss", (job) => loss(job.train_loss)],
  ["Validation loss", (job) => loss(job.valid_loss)],
  ["Steps", (job) => count(job.trained_steps)],
  ["Tokens/s", (job) => short(job.tokens_per_second)],
  [
    "Duration",
    (job) => duration(job.started_at && (job.finished_at ?? Date.now() / 1000) - job.started_at),
  ],
];

/** The names of settings with more than one value. */
export function differing(jobs) {
  const all = jobs.map(settingsOf);
  const names = [...new Set(all.flatMap(Object.keys))];
  return names.filter(
    (name) => new Set(all.map((settings) => JSON.stringify(settings[name]))).size > 1,
  );
}

/**
 * @param {object[]} runs
 * @param {object} options `hasAll` tells whether equal settings are shown; `onAll` and `onRemove`
 *   are called when the reader wants that changed, or a job removed
 */
export function differences(runs, { hasAll, onAll, onRemove }) {
  const jobs = runs.map((run) => run.job);
  const all = jobs.map(settingsOf);
  const names = hasAll ? [...new Set(all.flatMap(Object.keys))] : differing(jobs);
  return html`
    <div class="row">
      <h2>Settings and results</h2>
      <label class="check end">
        <input
          type="checkbox"
          .checked=${hasAll}
          @change=${(event) => onAll(event.target.checked)}
        />
        Show equal ones too
      </label>
    </div>
    <div class="scroll" tabindex="0" role="group" aria-label="Settings and results of the jobs">
      <table class="compared">
        <thead>
          <tr>
            <th scope="col"><span class="visually-hidden">Setting</span></th>
            ${runs.map(
              ({ job, place }) =>
                html`<th scope="col">
                  <span class="swatch series-${place}"></span>
                  <a href="job?id=${encodeURIComponent(job.id)}">${nameOf(job)}</a>
                  <button
                    class="quiet"
                    @click=${() => onRemove(job.id)}
                    aria-label="Remove ${nameOf(job)}"
                  >
                    ×
                  </button>
                </th>`,
            )}
          </tr>
        </thead>
        <tbody>
          ${names.map((name) =>
            row(
              name,
              all.map((settings) => shown(settings[name])),
            ),
          )}
          ${
            names.length || jobs.length < 2
              ? ""
              : html`<tr>
                  <td colspan=${jobs.length + 1}>All settings are equal.</td>
                </tr>`
          }
        </tbody>
        <tbody class="results">
          ${RESULTS.map(([name, valueOf]) => row(name, jobs.map(valueOf)))}
        </tbody>
      </table>
    </div>
  `;
}

function row(name, values) {
  return html`<tr>
    <th scope="row">${name}</th>
    ${values.map((value) => html`<td>${value}</td>`)}
  </tr>`;
}

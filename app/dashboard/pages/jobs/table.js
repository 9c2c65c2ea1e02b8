// The list of jobs as a table. On narrow screens, the style sheet turns each row into a card.

import { ago, count, duration, loss, moment, percent, short, UNKNOWN } from "../../lib/format.js";
import { html, live, nothing, repeat } from "../../lib/html.js";
import { reasonOf, statusOf } from "../../lib/status.js";

const MAX_COMPARED = 8;

/**
 * @param {object[]} jobs
 * @param {object} options
 * @param {Set<string>} options.selected ids of the jobs to compare
 * @param {(id: string) => void} options.onSelect
 * @param {(key: string, value: string) => void} options.onLabel
 */
export function table(jobs, options) {
  return html`<table class="jobs">
    <caption class="visually-hidden">
      Jobs, newest first
    </caption>
    <thead>
      <tr>
        <th><span class="visually-hidden">Compare</span></th>
        <th>Job</th>
        <th>Status</th>
        <th>Progress</th>
        <th class="number">Loss</th>
        <th class="number">Tokens/s</th>
        <th class="number">Time left</th>
        <th class="number">Created</th>
      </tr>
    </thead>
    <tbody>
      ${repeat(
        jobs,
        (job) => job.id,
        (job) => row(job, options),
      )}
    </tbody>
  </table>`;
}

function row(job, { selected, onSelect, onLabel }) {
  const name = job.user_provided_suffix ?? job.id;
  const isSelected = selected.has(job.id);
  return html`<tr>
    <td class="pick">
      <input
        type="checkbox"
        aria-label="Compare ${name}"
        .checked=${live(isSelected)}
        ?disabled=${!isSelected && selected.size >= MAX_COMPARED}
        @change=${() => onSelect(job.id)}
      />
    </td>
    <td class="name">
      <a href="job?id=${encodeURIComponent(job.id)}">${name}</a>
      <div class="muted small">
        <span>${job.model}</span
        >${name === job.id ? nothing : html` · <span class="mono">${job.id}</span>`}
      </div>
      ${labels(job.metadata ?? {}, onLabel)}
    </td>
    <td class="state">
      ${statusOf(job)}
      <div class="muted small two-lines" title=${reasonOf(job)}>${reasonOf(job)}</div>
    </td>
    <td class="progress">${progress(job)}</td>
    <td class="number" data-label="Loss">${loss(job.train_loss)}</td>
    <td class="number" data-label="Tokens/s">${speed(job)}</td>
    <td class="number" data-label="Time left">${timeLeft(job)}</td>
    <td class="number" data-label="Created" title=${moment(job.created_at)}>
      ${ago(job.created_at)}
    </td>
  </tr>`;
}

function labels(metadata, onLabel) {
  const entries = Object.entries(metadata);
  if (!entries.length) return nothing;
  return html`<div class="tags">
    ${entries.map(
      ([key, value]) =>
        html`<button
          class="tag"
          title="Show only jobs with ${key}=${value}"
          @click=${() => onLabel(key, value)}
        >
          ${key}=${value}
        </button>`,
    )}
  </div>`;
}

function progress(job) {
  const steps = job.total_steps
    ? `${short(job.trained_steps)} / ${short(job.total_steps)} steps`
    : "";
  const isOver = ["succeeded", "failed", "cancelled"].includes(job.status);
  return html`${
      isOver
        ? nothing
        : html`<progress max="1" .value=${job.progress} aria-label="Progress"></progress>`
    }
    <div class="small one-line">
      <span class="figure">${percent(job.progress)}</span> <span class="muted">${steps}</span>
    </div>`;
}

function speed(job) {
  return job.tokens_per_second === null ? UNKNOWN : count(Math.round(job.tokens_per_second));
}

function timeLeft(job) {
  if (job.status !== "running" || !job.estimated_finish) return UNKNOWN;
  return duration(job.estimated_finish - Date.now() / 1000);
}

// The attempts at a job, with the causes of their ends, and its events.

import { count, duration, moment } from "../../lib/format.js";
import { html, nothing, repeat } from "../../lib/html.js";
import { hasEnded } from "./feed.js";

/** @param {import("./feed.js").JobFeed} feed */
export function timeline({ attempts, job, has }) {
  const { data, data_check: check } = attempts;
  const none = hasEnded(job) ? "No worker has trained it." : "No worker has trained it yet.";
  if (!has.lists) {
    return html`<h2>Attempts</h2>
      <p class="muted">Loading…</p>`;
  }
  return html`
    <h2>Attempts</h2>
    ${data.length ? nothing : html`<p class="muted">${none}</p>`}
    <ol class="timeline">
      ${check ? dataCheck(check, job.status === "failed" && !data.length) : nothing}
      ${data.map((attempt) => row(attempt, job))}
    </ol>
  `;
}

function dataCheck({ tries, started_at: start, ended_at: end }, hasFailed) {
  const state = end === null ? "running" : hasFailed ? "failed" : "succeeded";
  return html`<li class=${start === null ? nothing : state}>
    <p>
      <strong>Check of the data</strong>
      <span class="muted">${start === null ? nothing : lasted(start, end)}</span>
    </p>
    ${tries > 1 ? html`<p class="cause">It took ${count(tries)} tries.</p>` : nothing}
  </li>`;
}

function row(attempt, job) {
  const {
    started_at: start,
    ended_at: end,
    outcome,
    from_step: from,
    to_step: to,
    cause,
  } = attempt;
  const last = outcome ? to : job.trained_steps;
  return html`<li class=${outcome ?? "running"}>
    <p>
      <strong>Attempt ${count(attempt.attempt)}</strong>
      <span class="muted">${lasted(start, end)}</span>
    </p>
    <p>
      ${from === null ? nothing : html`Steps ${count(from)} to ${count(last)} `}
      <span class="muted">on <span class="mono">${attempt.worker_id}</span></span>
    </p>
    ${cause ? html`<p class=${outcome === "succeeded" ? "muted" : "cause"}>${cause}</p>` : nothing}
  </li>`;
}

function lasted(start, end) {
  return `${moment(start)} · ${duration((end ?? Date.now() / 1000) - start)}`;
}

/**
 * @param {import("./feed.js").JobFeed} feed
 * @param {object} options `hasMetrics` tells whether events with losses are shown; `onMetrics` and
 *   `onEarlier` are called when the reader wants that changed, or earlier events
 */
export function eventList({ events, hasEarlierEvents }, { hasMetrics, onMetrics, onEarlier }) {
  const shown = hasMetrics ? events : events.filter((event) => event.type !== "metrics");
  return html`
    <div class="row">
      <h2>Events</h2>
      <label class="check end">
        <input
          type="checkbox"
          .checked=${hasMetrics}
          @change=${(change) => onMetrics(change.target.checked)}
        />
        Show losses
      </label>
    </div>
    <ol class="events" tabindex="0" aria-label="Events, newest first">
      ${repeat(
        shown,
        (event) => event.id,
        (event) =>
          html`<li class=${event.level}>
            <time class="muted">${moment(event.created_at)}</time> <span>${event.message}</span>
          </li>`,
      )}
      ${
        hasEarlierEvents
          ? html`<li><button @click=${onEarlier}>Earlier events</button></li>`
          : nothing
      }
    </ol>
  `;
}

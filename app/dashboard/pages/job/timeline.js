// The attempts at a job, with the causes of their ends, and its events.

import { count, duration, moment } from "../../lib/format.js";
import { html, nothing, repeat } from "../../lib/html.js";

/** @param {import("./feed.js").JobFeed} feed */
export function timeline({ attempts, job }) {
  return html`
    <h2>Attempts</h2>
    ${attempts.length ? nothing : html`<p class="muted">No worker has started the job yet.</p>`}
    <ol class="timeline">
      ${attempts.map((attempt, index) => row(attempt, attempts[index - 1], job))}
    </ol>
  `;
}

function row(attempt, before, job) {
  const end = attempt.ended_at ?? Date.now() / 1000;
  const isOpen = attempt.ended_at === null;
  return html`<li class=${isOpen ? "running" : (attempt.outcome ?? "ended")}>
    <p>
      <strong>Attempt ${count(attempt.attempt)}</strong>
      <span class="muted">${moment(attempt.started_at)} · ${duration(end - attempt.started_at)} · ${attempt.worker_id}</span>
    </p>
    ${before ? html`<p>${continuation(attempt, before)}</p>` : nothing}
    <p>
      Steps ${count(attempt.from_step)} to ${count(isOpen ? job.trained_steps : attempt.to_step)}
      ${isOpen ? nothing : html`· <span class="outcome">${(attempt.outcome ?? "ended").replaceAll("_", " ")}</span>`}
    </p>
    ${attempt.cause ? html`<p class="cause">${attempt.cause}</p>` : nothing}
  </li>`;
}

/** How an attempt took up the work, such as "Resumed from step 118 after 61 s". */
function continuation(attempt, before) {
  const start = attempt.from_step ? `Resumed from step ${count(attempt.from_step)}` : "Started from the first step";
  return `${start} after ${duration(attempt.started_at - (before.ended_at ?? attempt.started_at))}`;
}

/**
 * @param {import("./feed.js").JobFeed} feed
 * @param {{hasMetrics: boolean, onMetrics: (shown: boolean) => void, onEarlier: () => void}} options
 */
export function eventList({ events, hasEarlierEvents }, { hasMetrics, onMetrics, onEarlier }) {
  const shown = hasMetrics ? events : events.filter((event) => event.type !== "metrics");
  return html`
    <div class="row">
      <h2>Events</h2>
      <label class="check end">
        <input type="checkbox" .checked=${hasMetrics} @change=${(change) => onMetrics(change.target.checked)} />
        Show losses
      </label>
    </div>
    <ol class="events" tabindex="0" aria-label="Events, newest first">
      ${repeat(
        shown,
        (event) => event.id,
        (event) => html`<li class=${event.level}>
          <time class="muted">${moment(event.created_at)}</time> <span>${event.message}</span>
        </li>`,
      )}
      ${hasEarlierEvents ? html`<li><button @click=${onEarlier}>Earlier events</button></li>` : nothing}
    </ol>
  `;
}

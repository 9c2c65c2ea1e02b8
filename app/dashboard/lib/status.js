// The status of a job in words.

import { html } from "./html.js";

/** Label of each status, in the order of a job's life. */
export const STATUS_LABELS = {
  validating_files: "Checking data",
  queued: "Queued",
  running: "Running",
  paused: "Paused",
  succeeded: "Succeeded",
  failed: "Failed",
  cancelled: "Cancelled",
};

/** The status of a job with its colour, and what it was asked to do. */
export function statusOf(job) {
  return html`<span class="status ${job.status}">${label(job)}</span>`;
}

/** Why a job does not train now. Empty if there is nothing to say. */
export function reasonOf(job) {
  if (job.status === "queued") {
    const place = job.queue_position ? `Number ${job.queue_position} in the queue.` : "";
    return [place, job.waiting_reason ?? ""].filter(Boolean).join(" ");
  }
  return job.error?.message ?? "";
}

function label(job) {
  if (job.status === "running" && job.cancel_requested_at) return "Cancelling";
  if (job.status === "running" && job.pause_requested_at) return "Pausing";
  return STATUS_LABELS[job.status] ?? job.status;
}

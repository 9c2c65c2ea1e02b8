// The head of the page: what the job is, how far it is, and every figure that matters.

import {
  bytes,
  count,
  duration,
  figure,
  loss,
  moment,
  percent,
  short,
  UNKNOWN,
} from "../../lib/format.js";
import { html, nothing } from "../../lib/html.js";
import { reasonOf, statusOf } from "../../lib/status.js";
import { hasEnded } from "./feed.js";

/** The name that a user knows the job by. */
export const nameOf = (job) => job.user_provided_suffix ?? job.id;

/** Title of the tab, such as "42 % running · pirate". */
export function tabTitle(job) {
  const share = job.status === "running" ? `${Math.floor(100 * job.progress)} % ` : "";
  return `${share}${job.status.replace("_", " ")} · ${nameOf(job)} · Tunery`;
}

/** @param {import("./feed.js").JobFeed} feed */
export function head(feed, actions) {
  const { job } = feed;
  const reason = job.status === "failed" ? "" : reasonOf(job);
  return html`
    <div class="row">
      <h1>${nameOf(job)}</h1>
      ${statusOf(job)}
      <span class="row end">${actions}</span>
    </div>
    <p class="muted facts">
      <span class="mono">${job.id}</span>
      <span>${job.model}</span>
      <span>created ${moment(job.created_at)}</span>
      ${job.finished_at ? html`<span>ended ${moment(job.finished_at)}</span>` : nothing}
      ${job.imported ? html`<span>imported from ${job.imported.filename}</span>` : nothing}
      ${
        job.rerun_of
          ? html`<span
              >repeats
              <a href="job?id=${encodeURIComponent(job.rerun_of)}">${job.rerun_of}</a></span
            >`
          : nothing
      }
      ${
        job.sweep_id
          ? html`<span
              >of the sweep
              <a href="sweep?id=${encodeURIComponent(job.sweep_id)}">${job.sweep_id}</a></span
            >`
          : nothing
      }
      ${
        job.parent
          ? html`<span
              >continues
              <a href="job?id=${encodeURIComponent(job.parent.job_id)}">${job.parent.model}</a> after
              step ${count(job.parent.step)}</span
            >`
          : nothing
      }
      ${Object.entries(job.metadata ?? {}).map(
        ([key, value]) => html`<span class="tag">${key}: ${value}</span>`,
      )}
    </p>
    ${job.error ? problem(job.error) : nothing}
    ${reason ? html`<p class="notice">${reason}</p>` : nothing}
    <progress max="1" .value=${job.progress} aria-label="Progress of the job"></progress>
    <dl class="figures">
      ${figures(feed).map(
        ([name, value]) =>
          html`<div>
            <dt>${name}</dt>
            <dd>${value}</dd>
          </div>`,
      )}
    </dl>
  `;
}

function problem(error) {
  return html`<div class="problem" role="alert">
    <p><strong>${error.code}</strong> ${error.message}</p>
    ${
      error.errors?.length
        ? html`<ul class="lines" tabindex="0" aria-label="What is wrong, by line">
            ${error.errors.map(
              ({ line, path, message }) =>
                html`<li>Line ${line}${path ? `, ${path}` : ""}: ${message}</li>`,
            )}
          </ul>`
        : nothing
    }
  </div>`;
}

function figures({ job, log, data }) {
  const now = Date.now() / 1000;
  const last = log.last;
  const ended = job.finished_at ?? now;
  const left = job.status === "running" && job.estimated_finish ? job.estimated_finish - now : null;
  const all = [
    ["Progress", percent(job.progress)],
    ["Step", `${count(job.trained_steps)} / ${count(job.total_steps)}`],
    [
      "Epoch",
      job.epoch === null ? UNKNOWN : `${figure(job.epoch)} / ${job.hyperparameters.n_epochs}`,
    ],
    ...(hasEnded(job) ? [] : [["Time left", duration(left)]]),
    ["Elapsed", duration(job.started_at && ended - job.started_at)],
    ["Tokens/s", short(job.tokens_per_second)],
    ["Training loss", loss(job.train_loss)],
    ["Validation loss", loss(job.valid_loss)],
    ["Learning rate", figure(last?.learning_rate)],
    ["Gradient norm", figure(last?.grad_norm)],
    ["Memory (estimate)", bytes(data?.estimate?.peak_memory_bytes)],
    ["Attempt", count(job.attempt)],
  ];
  return hasEnded(job) ? all.filter(([, text]) => text !== UNKNOWN) : all;
}

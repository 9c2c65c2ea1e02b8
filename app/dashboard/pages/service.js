// The service as its operators see it: findings, workers, queue, disk, keys and the audit trail.

import { get } from "../lib/api.js";
import { ago, bytes, count, moment, UNKNOWN } from "../lib/format.js";
import { html, nothing, render, repeat } from "../lib/html.js";
import { problemNote } from "../lib/problems.js";
import { can, openPage } from "../lib/shell.js";
import { STATUS_LABELS } from "../lib/status.js";
import { whileVisible } from "../lib/timing.js";
import { AuditTrail } from "./service/audit.js";
import { Keys } from "./service/keys.js";

const REFETCH_MS = 10_000;
const LEVELS = { ok: "Fine", warn: "Look at it", bad: "Broken" };

const { session, main } = await openPage("service");
const isAdmin = can(session, "admin");

const audit = new AuditTrail(draw);
const keys = new Keys(session, draw);
let service = null;
let problem = null;

draw();
if (isAdmin) {
  fetchService();
  keys.fetch();
  audit.fetchMore();
  whileVisible(fetchService, REFETCH_MS);
}

async function fetchService() {
  try {
    service = await get("organization/service");
    problem = null;
  } catch (error) {
    problem = error.message;
  }
  draw();
}

function draw() {
  render(view(), main);
}

function view() {
  if (!isAdmin) {
    return html`<h1>Service</h1>
      <p class="card empty">This page needs a key with the scope <code>admin</code>.</p>`;
  }
  return html`<h1>Service</h1>
    ${problemNote(problem)}
    ${service ? state(service) : problem ? nothing : html`<p class="muted">Loading…</p>`}
    ${keys.view()} ${audit.view()}`;
}

function state({ version, database, workers, drained_machines: drained, queue, disk, findings }) {
  const waiting = (queue.jobs.queued ?? 0) + (queue.jobs.validating_files ?? 0);
  return html`<dl class="figures card">
      ${figure("Version", version)} ${figure("Database", database)}
      ${figure("Workers", count(workers.filter((worker) => worker.is_alive).length))}
      ${figure("Jobs that wait", count(waiting))}
      ${figure("Oldest of them", waiting ? ago(queue.oldest_waiting_at) : UNKNOWN)}
      ${figure("Free on the disk", `${bytes(disk.free_bytes)} of ${bytes(disk.total_bytes)}`)}
    </dl>
    ${findingList(findings)} ${workerTable(workers)} ${drainNote(drained)}
    ${queueTable(queue.projects)}`;
}

const figure = (name, value) =>
  html`<div>
    <dt>${name}</dt>
    <dd>${value}</dd>
  </div>`;

function findingList(findings) {
  const notable = findings.filter(({ level }) => level !== "ok");
  return html`<section class="stack" aria-labelledby="findings">
    <h2 id="findings">Findings</h2>
    <div class="card stack">
      ${
        notable.length
          ? notable.map(findingRow)
          : html`<p>
              <span class="status succeeded">All ${count(findings.length)} checks are fine.</span>
            </p>`
      }
      ${
        notable.length < findings.length && notable.length
          ? html`<p class="hint">
              ${count(findings.length - notable.length)} other checks are fine.
            </p>`
          : nothing
      }
      <p class="hint">These are the quick checks. <code>tunery doctor</code> makes them all.</p>
    </div>
  </section>`;
}

function findingRow({ check, level, message, advice }) {
  return html`<div>
    <span class="status ${level === "bad" ? "failed" : "queued"}">${LEVELS[level]}</span>
    <b>${check}</b>: ${message} ${advice ? html`<div class="hint">${advice}</div>` : nothing}
  </div>`;
}

function workerTable(workers) {
  return html`<section class="stack" aria-labelledby="workers">
    <h2 id="workers">Workers</h2>
    ${
      workers.length
        ? html`<div class="card flush">
            <table class="stackable">
              <thead>
                <tr>
                  <th>Worker</th>
                  <th>State</th>
                  <th>Job</th>
                  <th>Machine</th>
                  <th class="number">Memory</th>
                  <th class="number">Heartbeat</th>
                  <th class="number">Started</th>
                  <th>Version</th>
                </tr>
              </thead>
              <tbody>
                ${repeat(workers, (worker) => worker.id, workerRow)}
              </tbody>
            </table>
          </div>`
        : html`<p class="card empty">No worker is registered. Jobs wait until one is started.</p>`
    }
  </section>`;
}

function workerRow(worker) {
  const state = worker.is_alive ? worker.state : "silent";
  const colour =
    { running: "running", checking: "running", silent: "failed" }[state] ?? "succeeded";
  return html`<tr>
    <td class="name mono">${worker.id}</td>
    <td data-label="State"><span class="status ${colour}">${state}</span></td>
    <td data-label="Job">${worker.tasks.length ? worker.tasks.map(task) : UNKNOWN}</td>
    <td data-label="Machine">${machine(worker)}</td>
    <td class="number" data-label="Memory">${bytes(worker.memory_bytes)}</td>
    <td class="number" data-label="Heartbeat" title=${silence(worker)}>
      ${ago(worker.heartbeat_at)}
    </td>
    <td class="number" data-label="Started" title=${moment(worker.started_at)}>
      ${ago(worker.started_at)}
    </td>
    <td data-label="Version">${worker.version}</td>
  </tr>`;
}

/** Where a worker runs, and what it can do. */
function machine({ machine: name, ability, models_in_memory: models }) {
  if (!ability) return name ?? UNKNOWN;
  const { cores, gpu, processor, instructions, torch } = ability;
  return html`${name}
    <div class="hint" title=${`${processor}; ${instructions}; torch ${torch}`}>
      ${count(cores)} cores${gpu ? `, ${gpu.name}` : ""}
    </div>
    ${models.length ? html`<div class="hint">in memory: ${models.join(", ")}</div>` : nothing}`;
}

const silence = ({ silent_since: since }) => (since ? `silent since ${moment(since)}` : "");

function drainNote(drained) {
  if (!drained.length) return nothing;
  return html`<p class="card">
    Drained: <b>${drained.join(", ")}</b>. Their workers take nothing until
    <code>tunery undrain</code>.
  </p>`;
}

/** A job that a worker has. Its page exists only for members of its project. */
function task({ job_id: job, project_id: project, activity }) {
  const isOwn = !session.project || session.project.id === project;
  const name = html`<span class="mono">${job}</span>`;
  const what = activity === "training" ? "trains" : "checks the data of";
  return html`<div>${what} ${isOwn ? html`<a href="job?id=${job}">${name}</a>` : name}</div>`;
}

function queueTable(projects) {
  const statuses = ["validating_files", "queued", "running", "paused"];
  if (!projects.length) return nothing;
  return html`<section class="stack" aria-labelledby="queue">
    <h2 id="queue">Unfinished jobs by project</h2>
    <div class="card flush">
      <table class="stackable">
        <thead>
          <tr>
            <th>Project</th>
            ${statuses.map((status) => html`<th class="number">${STATUS_LABELS[status]}</th>`)}
          </tr>
        </thead>
        <tbody>
          ${projects.map(
            ({ name, jobs }) =>
              html`<tr>
                <td class="name">${name}</td>
                ${statuses.map(
                  (status) =>
                    html`<td class="number" data-label=${STATUS_LABELS[status]}>
                      ${count(jobs[status] ?? 0)}
                    </td>`,
                )}
              </tr>`,
          )}
        </tbody>
      </table>
    </div>
  </section>`;
}

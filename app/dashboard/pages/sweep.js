// The jobs of a sweep by their validation loss: `/sweep?id=…`. Without an id, all sweeps.

import { get, post } from "../lib/api.js";
import { ago, count, figure, loss, moment } from "../lib/format.js";
import { html, nothing, render, repeat } from "../lib/html.js";
import { problemNote } from "../lib/problems.js";
import { can, confirm, openPage, tell } from "../lib/shell.js";
import { statusOf } from "../lib/status.js";
import { atMostEvery } from "../lib/timing.js";
import { Curves } from "./compare/curves.js";
import { MAX_RUNS, Runs } from "./compare/runs.js";
import { shown } from "./job/settings.js";

const FETCH_MS = 1000;
const DRAW_MS = 250;
const LISTED = 100;

const { session, main } = await openPage("sweep");
const id = new URLSearchParams(location.search).get("id");
if (id) await showSweep();
else await showList();

async function showList() {
  let view;
  try {
    const { data, has_more: hasMore } = await get("fine_tuning/sweeps", { limit: LISTED });
    view = data.length
      ? html`${listTable(data)}${hasMore ? html`<p class="muted">The newest ${LISTED}.</p>` : nothing}`
      : html`<div class="card empty">
          <p>
            A sweep trains a job for each of some hyperparameters and compares their validation
            loss. To start one, give several numbers in a field of a
            <a href="new">new job</a>.
          </p>
        </div>`;
  } catch (error) {
    view = problemNote(error.message);
  }
  render(html`<h1>Sweeps</h1>${view}`, main);
}

function listTable(sweeps) {
  return html`<div class="card flush">
    <table class="stackable">
      <caption class="visually-hidden">
        Sweeps, newest first
      </caption>
      <thead>
        <tr>
          <th>Sweep</th>
          <th>Status</th>
          <th>Base model</th>
          <th class="number">Jobs</th>
          <th class="number">Lowest validation loss</th>
          <th>With</th>
          <th class="number">Created</th>
        </tr>
      </thead>
      <tbody>
        ${repeat(
          sweeps,
          (sweep) => sweep.id,
          (sweep) => html`<tr>
            <td class="name">
              <a class="mono" href="sweep?id=${encodeURIComponent(sweep.id)}">${sweep.id}</a>
            </td>
            <td data-label="Status">${statusOf(sweep)}</td>
            <td data-label="Base model">${sweep.model}</td>
            <td class="number" data-label="Jobs">${count(sweep.points.length)}</td>
            <td class="number" data-label="Lowest validation loss">
              ${loss(sweep.best?.result_valid_loss)}
            </td>
            <td data-label="With">${sweep.best ? titleOf(sweep.best) : ""}</td>
            <td class="number" data-label="Created" title=${moment(sweep.created_at)}>
              ${ago(sweep.created_at)}
            </td>
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

async function showSweep() {
  let sweep = null;
  const path = `fine_tuning/sweeps/${encodeURIComponent(id)}`;
  const runs = new Runs(atMostEvery(draw, DRAW_MS));
  try {
    sweep = await get(path);
  } catch (error) {
    render(html`<h1>Sweep</h1>${problemNote(error.message)}`, main);
    return;
  }
  render(
    html`<div id="sweep" class="stack"></div>
      <section class="card" id="curves" aria-label="Curves"></section>`,
    main,
  );
  const curves = new Curves(document.getElementById("curves"), runs, {
    metric: "valid_loss",
    titleOf: (job) => titleOf(sweep.points.find((point) => point.job_id === job.id)),
  });
  for (const { job_id: job } of sweep.points.slice(0, MAX_RUNS)) await runs.add(job);
  draw();
  const fetchSoon = atMostEvery(fetchSweep, FETCH_MS);
  runs.follow(
    () => {},
    (job) => job.sweep_id === id && fetchSoon(),
  );

  async function fetchSweep() {
    try {
      sweep = await get(path);
    } catch (error) {
      if (error.status === undefined) throw error;
      if (!error.mayPass) tell(error.message, "problem");
    }
    draw();
  }

  function draw() {
    render(sweepView(sweep, runs, cancel), document.getElementById("sweep"));
    curves.draw();
  }

  async function cancel() {
    if (!(await confirm("Cancel all jobs of the sweep that have not ended?", "Cancel the jobs"))) {
      return;
    }
    try {
      sweep = await post(`${path}/cancel`);
    } catch (error) {
      tell(error.message, "problem");
    }
    draw();
  }
}

function sweepView(sweep, runs, cancel) {
  const hasEnded = sweep.finished_at !== null;
  const names = [...new Set(sweep.points.flatMap((point) => Object.keys(point.hyperparameters)))];
  return html`
    <div class="row">
      <h1>Sweep</h1>
      ${statusOf(sweep)}
      <span class="row end"
        >${
          hasEnded || !can(session, "write")
            ? nothing
            : html`<button class="danger" @click=${cancel}>Cancel the sweep</button>`
        }</span
      >
    </div>
    <p class="muted facts">
      <span class="mono">${sweep.id}</span>
      <span>${sweep.model}</span>
      <span>created ${moment(sweep.created_at)}</span>
      ${hasEnded ? html`<span>ended ${moment(sweep.finished_at)}</span>` : nothing}
    </p>
    <div class="card flush">
      <table class="stackable">
        <caption class="visually-hidden">
          Jobs of the sweep, the lowest validation loss first
        </caption>
        <thead>
          <tr>
            <th>Job</th>
            ${names.map((name) => html`<th class="number">${name}</th>`)}
            <th>Status</th>
            <th class="number">Steps</th>
            <th class="number">Last validation loss</th>
            <th class="number">Validation loss of the result</th>
          </tr>
        </thead>
        <tbody>
          ${repeat(
            sweep.points,
            (point) => point.job_id,
            (point) => pointRow(point, names, runs, sweep.best?.job_id === point.job_id),
          )}
        </tbody>
      </table>
    </div>
    ${
      sweep.points.length > runs.list.length
        ? html`<p class="muted">The plot shows ${runs.list.length} of the jobs.</p>`
        : nothing
    }
  `;
}

function pointRow(point, names, runs, isBest) {
  const run = runs.list.find(({ job }) => job.id === point.job_id);
  return html`<tr>
    <td class="name">
      ${run ? html`<span class="swatch series-${run.place}"></span>` : nothing}
      <a class="mono" href="job?id=${encodeURIComponent(point.job_id)}">${point.job_id}</a>
      ${isBest ? html`<span class="tag">best</span>` : nothing}
    </td>
    ${names.map(
      (name) => html`<td class="number" data-label=${name}>${valueOf(point, name)}</td>`,
    )}
    <td data-label="Status">${statusOf(point)}</td>
    <td class="number" data-label="Steps">
      ${count(point.trained_steps)} / ${count(point.total_steps)}
    </td>
    <td class="number" data-label="Last validation loss">${loss(point.valid_loss)}</td>
    <td class="number" data-label="Validation loss of the result">
      ${loss(point.result_valid_loss)}
    </td>
  </tr>`;
}

/** What tells a job apart from the others, such as "lora_r 8, learning_rate 0.0001". */
function titleOf(point) {
  if (!point) return "";
  const names = Object.keys(point.hyperparameters);
  return names.map((name) => `${name} ${valueOf(point, name)}`).join(", ");
}

function valueOf(point, name) {
  const value = point.hyperparameters[name];
  return typeof value === "number" ? figure(value) : shown(value);
}

// All jobs of the project, live.

import { get, url } from "../lib/api.js";
import { html, nothing, render } from "../lib/html.js";
import { problemNote } from "../lib/problems.js";
import { follow } from "../lib/live.js";
import { uploadSample } from "../lib/sample.js";
import { can, openPage, tell } from "../lib/shell.js";
import { atMostEvery, debounce, whileVisible } from "../lib/timing.js";
import { filterBar } from "./jobs/bar.js";
import { addressOf, isFiltered, readFilters } from "./jobs/filters.js";
import { firstJob, noMatch } from "./jobs/first.js";
import { JobList } from "./jobs/list.js";
import { table } from "./jobs/table.js";

// Heals what the feed cannot tell: deleted jobs, and places in the queue.
const REFETCH_MS = 30_000;
const QUEUE_MOVED_MS = 3000;
const CLOCK_MS = 5000;
const TYPING_MS = 300;
const SELECTION = "tunery.compared";

const { session, main } = await openPage("jobs");

let filters = readFilters(location.search);
let list = new JobList(filters);
let models = [];
let problem = null;
let isUploading = false;
let connection = "waiting";
const selected = new Set(JSON.parse(sessionStorage.getItem(SELECTION) ?? "[]"));

function draw() {
  render(view(), main);
}

function view() {
  return html`
    <div class="row">
      <h1>Jobs</h1>
      <span class="connection ${connection}" role="status">${connectionText()}</span>
      <span class="row end">
        <button class="quiet" ?hidden=${!selected.size} @click=${clearSelection}>Clear</button>
        <button
          ?disabled=${selected.size < 2}
          @click=${compare}
          title="Select two to eight jobs of the list"
        >
          Compare${selected.size ? ` (${selected.size})` : ""}
        </button>
        ${can(session, "write") ? html`<a class="button primary" href="new">New job</a>` : nothing}
      </span>
    </div>
    ${isFirst() ? nothing : filterBar(filters, models, change)} ${problemNote(problem)} ${content()}
  `;
}

function content() {
  if (!list.jobs) return problem ? nothing : html`<p class="muted">Loading…</p>`;
  if (!list.jobs.length && isFiltered(filters)) return noMatch(clearFilters);
  if (isFirst()) {
    return firstJob({ canWrite: can(session, "write"), isBusy: isUploading, onSample: trySample });
  }
  const options = { selected, onSelect: select, onLabel: filterByLabel };
  return html`<div class="card flush">${table(list.jobs, options)}</div>
    ${paging()}`;
}

/** Whether the project has no job yet. */
function isFirst() {
  return list.jobs?.length === 0 && !isFiltered(filters) && !filters.after;
}

function paging() {
  if (!filters.after && !list.hasMore) return nothing;
  const older = { ...filters, after: list.jobs.at(-1)?.id ?? "" };
  const newest = { ...filters, after: "" };
  return html`<nav class="row" aria-label="Pages of the list">
    ${
      filters.after
        ? html`<a class="button" href=${addressOf(newest)} @click=${(event) => turn(event, newest)}
            >Newest</a
          >`
        : nothing
    }
    ${
      list.hasMore
        ? html`<a class="button" href=${addressOf(older)} @click=${(event) => turn(event, older)}
            >Older jobs</a
          >`
        : nothing
    }
  </nav>`;
}

function connectionText() {
  return { live: "Live", waiting: "Connecting…", paused: "Paused", ended: "" }[connection];
}

async function refetch() {
  const shown = list;
  try {
    await shown.fetch();
    problem = null;
  } catch (error) {
    if (error.name === "AbortError" || shown !== list) return;
    problem = error.message;
  }
  draw();
}

function show(next, jobs = null) {
  list.leave();
  filters = next;
  list = new JobList(filters, jobs);
}

const search = debounce(refetch, TYPING_MS);

function change(changed) {
  // The jobs stay until the others are there, so that the page does not jump.
  show({ ...filters, ...changed, after: "" }, list.jobs);
  history.replaceState(null, "", addressOf(filters));
  draw();
  if ("search" in changed) search();
  else refetch();
}

function clearFilters() {
  change({ statuses: [], model: "", search: "", labels: [] });
}

function filterByLabel(key, value) {
  change({ labels: [...filters.labels.filter(([other]) => other !== key), [key, value]] });
}

function turn(event, next) {
  event.preventDefault();
  history.pushState(null, "", addressOf(next));
  show(next);
  refetch();
  main.focus();
  scrollTo(0, 0);
}

function select(id) {
  if (!selected.delete(id)) selected.add(id);
  sessionStorage.setItem(SELECTION, JSON.stringify([...selected]));
  draw();
}

function clearSelection() {
  selected.clear();
  sessionStorage.removeItem(SELECTION);
  draw();
}

function compare() {
  location.assign(`compare?ids=${[...selected].map(encodeURIComponent).join(",")}`);
}

async function trySample() {
  isUploading = true;
  draw();
  try {
    const file = await uploadSample();
    location.assign(`new?file=${encodeURIComponent(file.id)}`);
  } catch (error) {
    tell(error.message, "problem");
  } finally {
    isUploading = false;
    draw();
  }
}

async function fetchModels() {
  try {
    const { data } = await get("models");
    models = data.filter((model) => !model.base_model).map((model) => model.id);
    draw();
  } catch {
    // The filter then offers no models; the list itself tells what is wrong.
  }
}

const drawSoon = atMostEvery(draw, 100);
const refetchSoon = atMostEvery(refetch, QUEUE_MOVED_MS);

follow(
  url("fine_tuning/jobs", { stream: true }),
  {
    job: (job) => {
      if (list.update(job)) refetchSoon();
      drawSoon();
    },
  },
  (state) => {
    // What happened while nobody listened is not told again.
    if (state === "live" && connection !== "live") refetch();
    connection = state;
    draw();
  },
);

addEventListener("popstate", () => {
  show(readFilters(location.search));
  refetch();
});

draw();
refetch();
fetchModels();
whileVisible(refetch, REFETCH_MS);
whileVisible(draw, CLOCK_MS);

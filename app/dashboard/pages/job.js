// One job, live: `/job?id=…`.

import { html, nothing, render } from "../lib/html.js";
import { openPage } from "../lib/shell.js";
import { atMostEvery } from "../lib/timing.js";
import { Actions } from "./job/actions.js";
import { DataPanel } from "./job/data.js";
import { Exports } from "./job/exports.js";
import { hasEnded, JobFeed } from "./job/feed.js";
import { head, tabTitle } from "./job/head.js";
import { Plots } from "./job/plots.js";
import { ReportCard } from "./job/report.js";
import { results } from "./job/results.js";
import { settings } from "./job/settings.js";
import { stepsTable } from "./job/steps-table.js";
import { eventList, timeline } from "./job/timeline.js";

const DRAW_MS = 250;
const CLOCK_MS = 1000;
const FORM_KEY = "tunery.settings-form";
const STATES = { live: "Live", waiting: "Connecting…", paused: "Paused", ended: "Complete" };

const { session, main } = await openPage("jobs");

let connection = "waiting";
let isFrozen = false;
let hasMetrics = false;
let plots = null;

const changed = new Set(["job", "log", "events", "lists", "data"]);
const drawSoon = atMostEvery(draw, DRAW_MS);
const feed = new JobFeed(new URLSearchParams(location.search).get("id") ?? "", (part) => {
  changed.add(part);
  drawSoon();
});
const actions = new Actions(feed, session, drawHead);
const dataPanel = new DataPanel(feed, drawData);
const exports = new Exports(feed, drawResults);
const report = new ReportCard(feed, drawReport);

/** What draws each part of the page, and the parts of the feed that it shows. */
const SECTIONS = [
  [drawPlots, ["log"]],
  [drawTable, ["log"]],
  [drawTimeline, ["lists", "job"]],
  [drawEvents, ["events"]],
  [drawResults, ["lists", "job"]],
  [drawReport, ["lists"]],
  [drawData, ["data", "job"]],
  [drawSettings, ["job"]],
];

render(html`<p class="muted">Loading…</p>`, main);
try {
  await feed.start((state) => {
    connection = state;
    drawSoon();
  });
  setInterval(() => hasEnded(feed.job) || document.hidden || drawHead(), CLOCK_MS);
} catch (error) {
  render(
    html`<p class="problem" role="alert">${error.message}</p>
      <p><a href=".">All jobs</a></p>`,
    main,
  );
}

function draw() {
  if (feed.isDeleted) return location.assign(".");
  if (!plots) drawFrame();
  drawHead();
  drawBar();
  if (isFrozen) return;
  for (const [drawSection, parts] of SECTIONS) {
    if (parts.some((part) => changed.has(part))) drawSection();
  }
  changed.clear();
}

function drawFrame() {
  render(
    html`
      <section class="card job-head" id="head" aria-label="Job"></section>
      <section class="card" aria-label="Plots">
        <div class="row" id="bar"></div>
        <div id="no-step"></div>
        <div id="plots"></div>
        <details id="values">
          <summary>Values as a table</summary>
          <div id="steps"></div>
        </details>
      </section>
      <section class="card" id="results" aria-label="Results"></section>
      <section class="card" id="report" aria-label="Report" hidden></section>
      <div class="pair">
        <section class="card" id="attempts" aria-label="Attempts"></section>
        <section class="card" id="events" aria-label="Events"></section>
      </div>
      <div class="pair">
        <section class="card" id="data" aria-label="Data"></section>
        <section class="card" id="settings" aria-label="Settings"></section>
      </div>
    `,
    main,
  );
  at("values").addEventListener("toggle", drawTable);
  plots = new Plots(at("plots"), feed, drawTable);
}

function drawHead() {
  document.title = tabTitle(feed.job);
  render(head(feed, actions.buttons()), at("head"));
}

function drawBar() {
  const isEmpty = !feed.has.history || !feed.log.rows.length;
  for (const name of ["plots", "values"]) at(name).hidden = isEmpty;
  render(isEmpty ? html`<p class="muted">${noStep()}</p>` : nothing, at("no-step"));
  render(
    html`
      <h2>Training</h2>
      <span class="end connection ${connection}" role="status"
        >${isFrozen ? "Held" : STATES[connection]}</span
      >
      ${
        hasEnded(feed.job) && !isFrozen
          ? nothing
          : html`<button @click=${freeze}>${isFrozen ? "Resume updates" : "Hold updates"}</button>`
      }
    `,
    at("bar"),
  );
}

function noStep() {
  if (!feed.has.history) return "Loading…";
  return hasEnded(feed.job) ? "No step was trained." : "The curves begin with the first step.";
}

/** Keeps plots and lists as they are, for reading. The head of the page stays true. */
function freeze() {
  isFrozen = !isFrozen;
  draw();
}

function drawPlots() {
  plots.draw();
}

function drawTable() {
  render(at("values").open ? stepsTable(feed, plots.zoom) : nothing, at("steps"));
}

function drawTimeline() {
  render(timeline(feed), at("attempts"));
}

function drawEvents() {
  const options = {
    hasMetrics,
    onMetrics(isShown) {
      hasMetrics = isShown;
      drawEvents();
    },
    onEarlier: () => feed.fetchEarlierEvents(),
  };
  render(eventList(feed, options), at("events"));
}

function drawResults() {
  render(results(feed, exports), at("results"));
}

function drawReport() {
  at("report").hidden = !report.isShown;
  if (report.isShown) render(report.view(), at("report"));
}

function drawData() {
  render(dataPanel.view(), at("data"));
}

function drawSettings() {
  const form = localStorage.getItem(FORM_KEY) ?? "table";
  const choose = (name) => {
    localStorage.setItem(FORM_KEY, name);
    drawSettings();
  };
  render(settings(feed.job, session, form, choose), at("settings"));
}

function at(name) {
  return document.getElementById(name);
}

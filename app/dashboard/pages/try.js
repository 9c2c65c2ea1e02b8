// Asks up to three models the same, side by side: `/try?models=a,b`.

import { curlOf, pythonOfChat } from "../lib/calls.js";
import { callView } from "../lib/call-view.js";
import { html, live, nothing, render } from "../lib/html.js";
import { problemNote, wrongNote } from "../lib/problems.js";
import { can, openPage } from "../lib/shell.js";
import { atMostEvery } from "../lib/timing.js";
import { tryAddress } from "../lib/try-link.js";
import { answerView } from "./try/answer.js";
import { bodyOf, Conversation } from "./try/conversation.js";
import { MAX_MODELS, Models } from "./try/models.js";
import { Settings } from "./try/settings.js";

const DRAW_MS = 50;
const CLOCK_MS = 1000;
const CHOSEN = "tunery.try.models";
const SYSTEM = "tunery.try.system";
const DRAFT = "tunery.try.draft";

const { session, main } = await openPage("try");

const models = new Models();
const conversation = new Conversation(atMostEvery(draw, DRAW_MS));
const settings = new Settings(draw);

let chosen = [];
let system = sessionStorage.getItem(SYSTEM) ?? "";
let draft = sessionStorage.getItem(DRAFT) ?? "";
let openCall = "curl";

async function start() {
  render(html`<p class="muted">Loading…</p>`, main);
  try {
    await models.fetch();
  } catch (error) {
    render(problemNote(error.message), main);
    return;
  }
  const asked = new URLSearchParams(location.search).get("models") ?? stored();
  const given = asked.split(",").filter(Boolean);
  const isKnown = (id) => conversation.turns.some(({ answers }) => answers[id]);
  if (given.length && !given.some(isKnown)) conversation.clear(); // it was with other models
  choose(given.length ? given : models.proposed);
  draw();
  addEventListener("pagehide", () => conversation.save());
  setInterval(() => conversation.isWaiting && draw(), CLOCK_MS);
}

const stored = () => sessionStorage.getItem(CHOSEN) ?? "";

/** Shows these models, and writes them where a reload finds them. */
function choose(ids) {
  for (const id of chosen.filter((each) => !ids.includes(each))) conversation.leave(id);
  chosen = [...new Set(ids)].slice(0, MAX_MODELS);
  sessionStorage.setItem(CHOSEN, chosen.join(","));
  history.replaceState(null, "", chosen.length ? tryAddress(...chosen) : "try");
  for (const id of chosen) models.learnOf(id).then(draw);
}

function draw() {
  const before = end();
  render(chosen.length ? view() : noModel(), main);
  // Whoever sees the end of the page goes on seeing it while the answers grow.
  if (before <= innerHeight && end() > innerHeight) scrollBy(0, end() - innerHeight);
}

const end = () => document.querySelector("#composer")?.getBoundingClientRect().bottom ?? 0;

function view() {
  return html`<h1>Try</h1>
    <div class="columns">
      <div class="stack">
        ${pickers()} ${conversation.turns.map(turnView)} ${composer()}
      </div>
      <aside class="stack sticky">
        <section class="card">
          <label>
            <b>System prompt</b>
            <textarea
              rows="3"
              .value=${live(system)}
              @input=${(event) => setSystem(event.target.value)}
            ></textarea>
          </label>
        </section>
        <section class="card">${settings.view()}</section>
        <section class="card stack">${call()}</section>
      </aside>
    </div>`;
}

function pickers() {
  const next = models.nextTo(chosen);
  return html`<section class="card stack" aria-label="Models">
    <div class="beside">${chosen.map(picker)}</div>
    ${
      chosen.length < MAX_MODELS && next
        ? html`<div>
            <button type="button" @click=${() => change([...chosen, next])}>Add a model</button>
          </div>`
        : nothing
    }
  </section>`;
}

function picker(id, place) {
  return html`<div class="field">
    <div class="row">
      <label for="model-${place}">Model ${place + 1}</label>
      ${
        chosen.length > 1
          ? html`<button
              type="button"
              class="quiet small end"
              @click=${() => change(chosen.toSpliced(place, 1))}
              aria-label="Remove ${id}"
            >
              Remove
            </button>`
          : nothing
      }
    </div>
    <select id="model-${place}" @change=${(event) => change(chosen.with(place, event.target.value))}>
      ${models.options(id)}
    </select>
    ${wrongNote(models.problemOf(id))}
  </div>`;
}

function turnView({ prompt, answers }, place) {
  const isLast = place === conversation.turns.length - 1;
  return html`<section class="card stack" aria-label="Message ${place + 1}">
    <p class="words asked">${prompt}</p>
    <div class="beside">
      ${chosen.map((id) => answerView(id, answers[id], isLast ? () => ask(id) : null))}
    </div>
  </section>`;
}

function composer() {
  const { isRunning, turns } = conversation;
  return html`<form class="card stack" id="composer" @submit=${send}>
    <label>
      <span><b>Message</b> <span class="hint">Ctrl+Enter sends it.</span></span>
      <textarea
        rows="3"
        required
        .value=${live(draft)}
        @input=${(event) => setDraft(event.target.value)}
        @keydown=${press}
      ></textarea>
    </label>
    <div class="row">
      <button type="button" class="primary" @click=${sendOrStop}>
        ${isRunning ? "Stop" : "Send"}
      </button>
      ${
        turns.length
          ? html`<button type="button" class="end" @click=${() => conversation.clear()}>
              New conversation
            </button>`
          : nothing
      }
    </div>
  </form>`;
}

/** The call that asks the first model what stands in the form, or what it was asked last. */
function call() {
  const isNew = draft.trim() || !conversation.turns.length;
  const turns = isNew
    ? [...conversation.turns, { prompt: draft, answers: {} }]
    : conversation.turns;
  const body = bodyOf(turns, chosen[0], system, settings.values);
  const texts = {
    curl: curlOf("chat/completions", body, session),
    Python: pythonOfChat(body, session),
  };
  return callView(texts, openCall, (label) => {
    openCall = label;
    draw();
  });
}

function noModel() {
  return html`<h1>Try</h1>
    <p class="card empty">
      No model is installed. On the machine of the service, run
      <code>tunery models install smollm2-135m-instruct</code>.
    </p>`;
}

function cannotAsk() {
  return html`<h1>Try</h1>
    <p class="card empty">Asking a model needs a key with the scope <code>sample</code>.</p>`;
}

function change(ids) {
  choose(ids);
  draw();
}

function setSystem(text) {
  system = text;
  sessionStorage.setItem(SYSTEM, text);
  draw();
}

function setDraft(text) {
  draft = text;
  sessionStorage.setItem(DRAFT, text);
  draw();
}

function press(event) {
  if (event.key === "Escape") conversation.stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !conversation.isRunning) {
    event.preventDefault();
    event.target.form.requestSubmit();
  }
}

function sendOrStop(event) {
  if (event.detail > 1) return; // the second click of a double-click would stop what the first sent
  if (conversation.isRunning) conversation.stop();
  else event.target.form.requestSubmit();
}

function send(event) {
  event.preventDefault();
  if (!isReady()) return;
  const prompt = draft;
  setDraft("");
  conversation.send(prompt, chosen, { system, settings: settings.values });
}

function ask(id) {
  if (isReady()) conversation.ask(id, { system, settings: settings.values });
}

/** Whether the settings are valid. If not, goes to the first that is not. */
function isReady() {
  if (!settings.areValid) main.querySelector("[aria-invalid=true]").focus();
  return settings.areValid;
}

if (can(session, "sample")) await start();
else render(cannotAsk(), main);

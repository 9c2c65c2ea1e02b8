// Up to eight jobs side by side: `/compare?ids=a,b`.

import { html, nothing, render } from "../lib/html.js";
import { openPage, tell } from "../lib/shell.js";
import { atMostEvery } from "../lib/timing.js";
import { Curves } from "./compare/curves.js";
import { differences } from "./compare/differences.js";
import { Picker } from "./compare/picker.js";
import { MAX_RUNS, Runs } from "./compare/runs.js";

const DRAW_MS = 250;

const { main } = await openPage("compare");

let hasAll = false;
let connection = "waiting";
const runs = new Runs(atMostEvery(draw, DRAW_MS));
const picker = new Picker(runs, { onPick: add, draw });

drawFrame();
const curves = new Curves(document.getElementById("curves"), runs);
const asked = (new URLSearchParams(location.search).get("ids") ?? "").split(",").filter(Boolean);
for (const id of asked.slice(0, MAX_RUNS)) await add(id);
draw();
picker.find();
runs.follow((state) => {
  connection = state;
  draw();
});

function drawFrame() {
  render(
    html`
      <div class="row">
        <h1>Compare</h1>
        <span class="end" id="connection"></span>
      </div>
      <section class="card" id="differences" aria-label="Settings" hidden></section>
      <section class="card" id="curves" aria-label="Curves" hidden></section>
      <section class="card" id="picker" aria-label="Add jobs"></section>
    `,
    main,
  );
}

function draw() {
  const isEmpty = !runs.list.length;
  for (const name of ["differences", "curves"]) document.getElementById(name).hidden = isEmpty;
  render(
    isEmpty
      ? nothing
      : html`<span class="connection ${connection}">${connection === "live" ? "Live" : ""}</span>`,
    document.getElementById("connection"),
  );
  render(picker.view(), document.getElementById("picker"));
  if (isEmpty) return;
  render(
    differences(runs.list, { hasAll, onAll: showAll, onRemove: remove }),
    document.getElementById("differences"),
  );
  curves.draw();
}

function showAll(isShown) {
  hasAll = isShown;
  draw();
}

async function add(id) {
  try {
    await runs.add(id);
  } catch (error) {
    tell(error.message, "problem");
  }
  writeAddress();
}

function remove(id) {
  runs.remove(id);
  writeAddress();
}

function writeAddress() {
  const address = new URL(location.href);
  if (runs.list.length) address.searchParams.set("ids", runs.ids.join(","));
  else address.searchParams.delete("ids");
  history.replaceState(null, "", address);
}

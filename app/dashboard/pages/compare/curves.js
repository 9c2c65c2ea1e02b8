// The curves of several jobs in one plot.

import { smooth, valueRange } from "../../lib/plot/curves.js";
import { figure, loss } from "../../lib/format.js";
import { html, live, render } from "../../lib/html.js";
import { Plot, PLOT_KEYS } from "../../lib/plot/plot.js";
import { loadSettings, saveSettings, settingsBar } from "../../lib/plot/settings.js";
import { nameOf } from "../job/head.js";

const KEY = "tunery.compare";

const METRICS = { train_loss: "Training loss", valid_loss: "Validation loss" };
const AXES = { step: "Steps", epoch: "Epochs", tokens_seen: "Tokens" };

export class Curves {
  #settings = loadSettings();
  #choice = {
    metric: "train_loss",
    axis: "step",
    ...JSON.parse(localStorage.getItem(KEY) ?? "{}"),
  };
  #zoom = null;
  #plot = null;
  #drawnFor = "";
  #columns = [[]];

  /**
   * @param {HTMLElement} place
   * @param {import("./runs.js").Runs} runs
   * @param {object} [options] `metric` is shown at first; `titleOf` tells jobs apart
   */
  constructor(place, runs, { metric = null, titleOf = nameOf } = {}) {
    this.place = place;
    this.runs = runs;
    this.titleOf = titleOf;
    if (metric) this.#choice.metric = metric;
  }

  draw() {
    this.#renderFrame();
    const { metric, axis } = this.#choice;
    const isLog = this.#settings.isLog;
    const curves = this.runs.list.map((run) =>
      pointsOf(run, axis, metric, this.#settings.smoothing),
    );
    const columns = align(curves);
    this.#makePlot(isLog);
    const [xs] = columns;
    const view = this.#zoom ?? { from: xs[0] ?? 0, to: xs.at(-1) ?? 1 };
    const inView = columns
      .slice(1)
      .map((values) => values.filter((_, at) => xs[at] >= view.from && xs[at] <= view.to));
    this.#plot.show(
      columns,
      view,
      valueRange(inView, { isLog, isClipped: this.#settings.isClipped }),
    );
    this.#columns = columns;
    this.#read(null);
  }

  /** The plot has a fixed number of curves, so other jobs need another one. */
  #makePlot(isLog) {
    const isWhole = this.#choice.axis !== "epoch";
    const wanted = `${this.runs.list.map((run) => run.place)} ${isLog} ${isWhole}`;
    if (wanted === this.#drawnFor) return;
    this.#drawnFor = wanted;
    const series = this.runs.list.map((run) => ({
      color: `--series-${run.place}`,
      width: 2,
      isSparse: true,
    }));
    if (this.#plot) return this.#plot.change({ series, isLog, isWhole });
    this.#plot = new Plot(this.place.querySelector(".plot"), {
      series,
      isLog,
      group: "compare",
      isWhole,
      maxHeight: 420,
      onZoom: (range) => {
        this.#zoom = range;
        this.draw();
      },
      onPoint: (at) => this.#read(at),
    });
  }

  #renderFrame() {
    const { metric, axis } = this.#choice;
    render(
      html`
        <div class="row toolbar">
          ${choose("Curve", METRICS, metric, (value) => this.#choose({ metric: value }))}
          ${choose("By", AXES, axis, (value) => this.#choose({ axis: value }))}
          ${settingsBar(this.#settings, (changed) => this.#change(changed))}
          <button class="end" ?disabled=${!this.#zoom} @click=${() => this.#showAll()}>
            Show all
          </button>
        </div>
        <div
          class="plot"
          tabindex="0"
          role="group"
          aria-label="Plot: ${METRICS[metric]} by ${AXES[axis]}. ${PLOT_KEYS}"
        ></div>
        <ul class="legend">
          ${this.runs.list.map(
            ({ job, place }) =>
              html`<li>
                <span class="swatch series-${place}"></span>${this.titleOf(job)}
                <span class="readout muted"></span>
              </li>`,
          )}
        </ul>
      `,
      this.place,
    );
  }

  #choose(changed) {
    this.#choice = { ...this.#choice, ...changed };
    localStorage.setItem(KEY, JSON.stringify(this.#choice));
    this.#showAll();
  }

  #showAll() {
    this.#zoom = null;
    this.draw();
  }

  #change(changed) {
    this.#settings = { ...this.#settings, ...changed };
    saveSettings(this.#settings);
    this.draw();
  }

  /** Tells the last values of all curves, up to a place if there is one. */
  #read(at) {
    const [xs, ...curves] = this.#columns;
    const readouts = this.place.querySelectorAll(".legend .readout");
    if (readouts.length !== curves.length) return; // other jobs are about to be drawn
    curves.forEach((values, index) => {
      const upTo = at === null ? values : values.slice(0, at + 1);
      const value = upTo.findLast((each) => each !== null);
      const where = at === null ? "" : ` at ${figure(xs[at])}`;
      readouts[index].textContent = `${loss(value)}${where}`;
    });
  }
}

function choose(label, options, chosen, onChange) {
  return html`<label class="edge">
    ${label}
    <select .value=${live(chosen)} @change=${(event) => onChange(event.target.value)}>
      ${Object.entries(options).map(
        ([value, text]) =>
          html`<option value=${value} ?selected=${value === chosen}>${text}</option>`,
      )}
    </select>
  </label>`;
}

/** The points of a run that have a value, smoothed if it is the training loss. */
function pointsOf({ log }, axis, metric, weight) {
  const rows = log.rows.filter((row) => row[metric] !== null);
  const values = rows.map((row) => row[metric]);
  const smoothed = metric === "train_loss" ? smooth(values, weight) : values;
  return rows.map((row, index) => [row[axis], smoothed[index]]);
}

/** Curves as columns with one common x, and null where a curve has no point. */
function align(curves) {
  const xs = [...new Set(curves.flatMap((points) => points.map(([x]) => x)))].sort(
    (one, other) => one - other,
  );
  const columns = curves.map((points) => {
    const values = new Map(points);
    return xs.map((x) => values.get(x) ?? null);
  });
  return [xs, ...columns];
}

// The plots of a job. All of them show the same range of steps.

import { smooth, valueRange } from "../../lib/plot/curves.js";
import { count, figure, loss, short, UNKNOWN } from "../../lib/format.js";
import { html, live, nothing, render } from "../../lib/html.js";
import { Plot, PLOT_KEYS } from "../../lib/plot/plot.js";
import { loadSettings, saveSettings, settingsBar } from "../../lib/plot/settings.js";
import { speeds } from "../../lib/plot/steps.js";
import { debounce } from "../../lib/timing.js";
import { hasEnded } from "./feed.js";

const ROUND = [1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10];
const DETAIL_MS = 300;
const DETAIL_ROWS = 500;

const column = (name) => (rows) => rows.map((row) => row[name]);

const PLOTS = [
  {
    title: "Loss",
    isMain: true,
    curves: [
      { label: "training", color: "--series-1", isFaint: true, format: loss },
      { label: "smoothed", color: "--series-1", width: 2, format: loss },
      {
        label: "validation",
        color: "--series-2",
        width: 2,
        isSparse: true,
        hasPoints: true,
        format: loss,
      },
    ],
    columns(rows, { smoothing }) {
      const training = column("train_loss")(rows);
      return [training, smooth(training, smoothing), column("valid_loss")(rows)];
    },
  },
  pairPlot("Reward accuracy", ["accuracy"]),
  pairPlot("Rewards", ["preferred", "other"]),
  {
    title: "Learning rate",
    curves: [{ label: "", color: "--series-5", format: figure }],
    columns: (rows) => [column("learning_rate")(rows)],
  },
  noisy("Gradient norm", "--series-3", figure, column("grad_norm")),
  noisy("Tokens per second", "--series-6", short, speeds),
];

const REWARDS = {
  accuracy: "reward_accuracy",
  preferred: "chosen_reward",
  other: "rejected_reward",
};

/** A plot that only jobs on preferences have. */
function pairPlot(title, kinds) {
  return {
    title,
    isOfPairs: true,
    curves: kinds.flatMap((kind, index) => [
      { label: kind, color: `--series-${2 * index + 1}`, width: 2, format: figure },
      {
        label: `${kind}, validation`,
        color: `--series-${2 * index + 2}`,
        width: 2,
        isSparse: true,
        hasPoints: true,
        format: figure,
      },
    ]),
    columns: (rows, { smoothing }) =>
      kinds.flatMap((kind) => [
        smooth(column(`train_${REWARDS[kind]}`)(rows), smoothing),
        column(`valid_${REWARDS[kind]}`)(rows),
      ]),
  };
}

function noisy(title, color, format, valuesOf) {
  return {
    title,
    curves: [
      { label: "", color, isFaint: true, format },
      { label: "smoothed", color, width: 2, format },
    ],
    columns(rows, { smoothing }) {
      const values = valuesOf(rows);
      return [values, smooth(values, smoothing)];
    },
  };
}

export class Plots {
  #settings = loadSettings();
  #zoom = readZoom();
  #kinds = [];
  #drawn = [];
  #detail = debounce(() => this.#fetchDetail(), DETAIL_MS);

  /**
   * @param {HTMLElement} place
   * @param {import("./feed.js").JobFeed} feed
   * @param {() => void} onView called when another range of steps is shown
   */
  constructor(place, feed, onView) {
    this.place = place;
    this.feed = feed;
    this.onView = onView;
    const isOfPairs = feed.job.method?.type === "dpo";
    this.#kinds = PLOTS.filter((kind) => isOfPairs || !kind.isOfPairs);
    this.#renderFrame();
    this.#drawn = this.#kinds.map((kind, index) => this.#makePlot(kind, index));
  }

  /** Range of steps that the reader has chosen; null for all. */
  get zoom() {
    return this.#zoom;
  }

  /** Draws what the log has by now. */
  draw() {
    const { log } = this.feed;
    log.thin(this.#zoom);
    const view = this.#zoom ?? { from: log.rows[0]?.step ?? 0, to: this.#end() };
    const all = log.rows;
    const shown = log.between(view.from, view.to);
    const start = all.indexOf(shown[0]);
    for (const { kind, plot, readout } of this.#drawn) {
      const columns = kind
        .columns(all, this.#settings)
        .map((values) => values.slice(start, start + shown.length));
      const isLog = this.#isLog(kind);
      const range = valueRange(columns, { isLog, isClipped: this.#settings.isClipped });
      plot.show([shown.map((row) => row.step), ...columns], view, range);
      this.#read(kind, readout, columns, shown, null);
    }
  }

  /**
   * The right edge if all is shown. While a job grows it is a round number ahead of the last step,
   * so that curves grow into the plot: an axis that ends at the last step would move with each.
   */
  #end() {
    const { job, log } = this.feed;
    const last = Math.max(log.last?.step ?? 1, 1);
    if (hasEnded(job)) return last;
    const size = 10 ** Math.floor(Math.log10(last));
    const round = ROUND.map((factor) => factor * size).find((edge) => edge >= last);
    return Math.max(last, Math.min(round, job.total_steps ?? round));
  }

  #makePlot(kind, index) {
    const figureElement = this.place.querySelectorAll("figure")[index];
    const readout = figureElement.querySelector(".readout");
    const place = figureElement.querySelector(".plot");
    const options = {
      series: kind.curves,
      group: "job",
      maxHeight: index === 0 ? 320 : 180,
      isLog: this.#isLog(kind),
      isWhole: true,
      onZoom: (range) => this.#setZoom(range),
      onPoint: (at) => this.#readAt(index, at),
    };
    return { kind, readout, plot: new Plot(place, options) };
  }

  #isLog(kind) {
    return Boolean(kind.isMain) && this.#settings.isLog;
  }

  #renderFrame() {
    render(
      html`
        <div class="row toolbar">
          ${settingsBar(this.#settings, (changed) => this.#change(changed))}
          <span class="row end">
            ${this.#edge("From step", "from")} ${this.#edge("to", "to")}
            <button @click=${() => this.#setZoom(null)} ?disabled=${!this.#zoom}>Show all</button>
          </span>
        </div>
        <div class="plots">
          ${this.#kinds.map(
            (kind) =>
              html`<figure>
                <figcaption>
                  <h3>${kind.title}</h3>
                  <span class="readout muted"></span>
                </figcaption>
                <div
                  class="plot"
                  tabindex="0"
                  role="group"
                  aria-label="Plot: ${kind.title}. ${PLOT_KEYS}"
                ></div>
              </figure>`,
          )}
        </div>
      `,
      this.place,
    );
  }

  #edge(label, name) {
    return html`<label class="edge">
      ${label}
      <input
        type="number"
        min="0"
        .value=${live(this.#zoom ? String(Math.round(this.#zoom[name])) : "")}
        placeholder=${name === "from" ? "first" : "last"}
        @change=${(event) => this.#setEdge(name, event.target.value)}
      />
    </label>`;
  }

  #setEdge(name, text) {
    const { log } = this.feed;
    const whole = { from: log.rows[0]?.step ?? 0, to: log.last?.step ?? 1 };
    const value = text === "" ? whole[name] : Number(text);
    this.#setZoom({ ...(this.#zoom ?? whole), [name]: value });
  }

  #setZoom(range) {
    this.#zoom = range && this.#clamp(range);
    writeZoom(this.#zoom);
    this.#renderFrame();
    this.draw();
    this.onView();
    this.#detail();
  }

  /** The part of a range that the log has; null for all of it. */
  #clamp({ from, to }) {
    const first = this.feed.log.rows[0]?.step ?? 0;
    const last = this.feed.log.last?.step ?? 0;
    const start = Math.max(first, Math.floor(Math.min(from, to)));
    const end = Math.min(last, Math.ceil(Math.max(from, to)));
    if (end - start < 1 || (start <= first && end >= last)) return null;
    return { from: start, to: end };
  }

  #change(changed) {
    this.#settings = { ...this.#settings, ...changed };
    saveSettings(this.#settings);
    this.#renderFrame();
    if ("isLog" in changed) {
      for (const { kind, plot } of this.#drawn)
        if (kind.isMain) plot.change({ isLog: changed.isLog });
    }
    this.draw();
  }

  async #fetchDetail() {
    if (!this.#zoom) return;
    const { from, to } = this.#zoom;
    const known = this.feed.log.between(from, to).length;
    if (known < DETAIL_ROWS && known < to - from) await this.feed.refine(from, to);
  }

  #readAt(index, at) {
    const drawn = this.#drawn[index];
    if (!drawn?.columns) return;
    this.#read(drawn.kind, drawn.readout, drawn.columns, drawn.rows, at);
  }

  /** Tells the values at a place; null for the last ones. */
  #read(kind, readout, columns, rows, at) {
    const drawn = this.#drawn.find((each) => each.kind === kind);
    Object.assign(drawn, { columns, rows });
    const known = (values) =>
      at === null ? (values.findLast((value) => value !== null) ?? null) : values[at];
    const row = at === null ? rows.at(-1) : rows[at];
    const values = kind.curves.map(({ label, format, color, isFaint, isSparse }, index) => {
      const value = known(columns[index]);
      if (isSparse && at === null && value === null) return nothing; // nothing is measured
      const key = `swatch ${color.replace("--", "")} ${isFaint ? "faint" : ""}`;
      return html`<span class="value"><span class=${key}></span>${label} ${format(value)}</span>`;
    });
    const step = kind.isMain ? html`<span class="value">step ${count(row?.step)}</span>` : "";
    render(row ? html`${step} ${values}` : UNKNOWN, readout);
  }
}

function readZoom() {
  const query = new URLSearchParams(location.search);
  const [from, to] = [query.get("from"), query.get("to")].map(Number);
  return from < to ? { from, to } : null;
}

function writeZoom(zoom) {
  const address = new URL(location.href);
  for (const name of ["from", "to"]) {
    if (zoom) address.searchParams.set(name, zoom[name]);
    else address.searchParams.delete(name);
  }
  history.replaceState(null, "", address);
}

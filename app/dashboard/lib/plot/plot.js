// A plot that grows, keeps what the user set, and can be used by mouse and by keyboard.

import uPlot from "../../vendor/uplot/uPlot.esm.js";
import { figure, short } from "../format.js";

export const PLOT_KEYS = "Arrow keys move, plus and minus zoom, 0 shows everything.";

const HEIGHT_SHARE = 0.42;
const PAN_SHARE = 0.2;
const ZOOM_FACTOR = 0.6;
const LINEAR = 1;
const LOGARITHMIC = 3;
/** Distances of ticks on an axis that has no fractions. */
const WHOLE = Array.from({ length: 30 }, (_, at) => [1, 2, 5][at % 3] * 10 ** Math.floor(at / 3));

/**
 * A plot in an element that the caller has laid out. It takes the width of that element.
 *
 * All plots with the same `group` show a common cursor.
 */
export class Plot {
  #plot = null;

  /**
   * @param {HTMLElement} place gets the focus, and keys to zoom with
   * @param {object} options
   * @param {object[]} options.series `color` names a property of `style.css`, `width` is in pixels;
   *   `isSparse` connects over gaps in the data, and `hasPoints` marks each value
   * @param {string} options.group
   * @param {number} [options.maxHeight]
   * @param {boolean} [options.isLog]
   * @param {boolean} [options.isWhole] whether x is a whole number, such as a step
   * @param {(range: {from: number, to: number} | null) => void} options.onZoom null for everything
   * @param {(index: number | null) => void} options.onPoint position in the data below the cursor
   */
  constructor(place, options) {
    this.place = place;
    this.options = { maxHeight: 320, isLog: false, ...options };
    this.#build();
    new ResizeObserver(() => this.#resize()).observe(place);
    onThemeChange(() => this.#plot.redraw());
    place.addEventListener("keydown", (event) => this.#onKey(event));
  }

  /**
   * @param {(number | null)[][]} columns values of x, then those of each curve
   * @param {{from: number, to: number}} view range of x
   * @param {[number, number]} range range of y
   */
  show(columns, view, range) {
    this.view = view;
    this.#plot.setData(columns, false);
    this.#plot.batch(() => {
      this.#plot.setScale("x", { min: view.from, max: view.to });
      this.#plot.setScale("y", { min: range[0], max: range[1] });
    });
  }

  /** Takes other options, such as other curves or a logarithmic axis. `show` has to follow. */
  change(options) {
    this.options = { ...this.options, ...options };
    this.#plot.destroy();
    this.#build();
  }

  #build() {
    const { series, group, isLog, isWhole } = this.options;
    this.#plot = new uPlot(
      {
        ...this.#size(),
        legend: { show: false },
        scales: { x: { time: false }, y: { distr: isLog ? LOGARITHMIC : LINEAR } },
        series: [{}, ...series.map(curve)],
        axes: [
          axis({
            size: 30,
            incrs: isWhole ? WHOLE : undefined,
            values: (_, ticks) => ticks.map(short),
          }),
          axis({ size: 56, values: labels }),
        ],
        cursor: {
          // Only the cursor is common: the others would each zoom by what was dragged in one.
          sync: {
            key: group,
            filters: { pub: (type) => type.startsWith("mouse") && !isDrag(type) },
          },
          drag: { x: true, y: false, setScale: false },
          points: { size: 7 },
          bind: { dblclick: () => () => this.options.onZoom(null) },
        },
        hooks: {
          setSelect: [(plot) => this.#onSelect(plot)],
          setCursor: [(plot) => this.options.onPoint(plot.cursor.idx ?? null)],
        },
      },
      [[], ...series.map(() => [])],
      this.place,
    );
  }

  #size() {
    const width = Math.max(200, this.place.clientWidth);
    return {
      width,
      height: Math.round(Math.max(150, Math.min(this.options.maxHeight, HEIGHT_SHARE * width))),
    };
  }

  #resize() {
    const { width } = this.#size();
    if (width !== this.#plot.width) this.#plot.setSize(this.#size());
  }

  #onSelect(plot) {
    const { left, width } = plot.select;
    if (width < 4) return;
    const from = plot.posToVal(left, "x");
    const to = plot.posToVal(left + width, "x");
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.options.onZoom({ from, to });
  }

  #onKey(event) {
    const { from, to } = this.view ?? { from: 0, to: 1 };
    const span = to - from;
    const shift = (share) => ({ from: from + share * span, to: to + share * span });
    const scale = (factor) => {
      const middle = (from + to) / 2;
      return { from: middle - (factor * span) / 2, to: middle + (factor * span) / 2 };
    };
    const ranges = {
      ArrowLeft: () => shift(-PAN_SHARE),
      ArrowRight: () => shift(PAN_SHARE),
      "+": () => scale(ZOOM_FACTOR),
      "-": () => scale(1 / ZOOM_FACTOR),
      0: () => null,
    };
    const range = ranges[event.key];
    if (!range || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.options.onZoom(range());
  }
}

const isDrag = (type) => type === "mousedown" || type === "mouseup";

function onThemeChange(act) {
  addEventListener("themechange", act);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", act);
}

const colors = new Map();
onThemeChange(() => colors.clear());

/** The color that a property of `style.css` has in the theme of now. */
function resolve(name) {
  if (!colors.has(name)) colors.set(name, measure(name));
  return colors.get(name);
}

function measure(name) {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

function curve({ color, width = 1.5, isFaint = false, isSparse = false, hasPoints = false }) {
  return {
    stroke: () => resolve(color),
    width,
    alpha: isFaint ? 0.35 : 1,
    spanGaps: isSparse,
    points: { show: hasPoints, size: 5, fill: () => resolve(color) },
  };
}

function axis(options) {
  return {
    stroke: () => resolve("--muted"),
    grid: { stroke: () => resolve("--line"), width: 1 },
    ticks: { show: false },
    font: "12px system-ui, sans-serif",
    ...options,
  };
}

function labels(_, ticks) {
  return ticks.map((tick) =>
    tick === null ? "" : Math.abs(tick) >= 1e4 ? short(tick) : figure(tick),
  );
}

// Finds jobs to compare by their names, ids and labels.

import { get } from "../../lib/api.js";
import { ago, loss } from "../../lib/format.js";
import { html, nothing } from "../../lib/html.js";
import { statusOf } from "../../lib/status.js";
import { debounce } from "../../lib/timing.js";
import { nameOf } from "../job/head.js";
import { MAX_RUNS } from "./runs.js";

const TYPING_MS = 250;
const OFFERED = 10;

export class Picker {
  #search = "";
  #found = [];
  #problem = null;
  #searchSoon = debounce(() => this.find(), TYPING_MS);

  /**
   * @param {import("./runs.js").Runs} runs
   * @param {{onPick: (id: string) => void, draw: () => void}} options
   */
  constructor(runs, { onPick, draw }) {
    this.runs = runs;
    this.onPick = onPick;
    this.draw = draw;
  }

  async find() {
    const asked = this.#search;
    try {
      const page = await get("fine_tuning/jobs", { search: asked, limit: OFFERED });
      if (asked !== this.#search) return;
      this.#found = page.data;
      this.#problem = null;
    } catch (error) {
      this.#problem = error.message;
    }
    this.draw();
  }

  view() {
    const isFull = this.runs.list.length >= MAX_RUNS;
    const offered = this.#found.filter((job) => !this.runs.ids.includes(job.id));
    return html`
      ${
        this.runs.list.length
          ? nothing
          : html`<p>Add jobs to see how their settings, results and curves differ.</p>`
      }
      <label>
        Add jobs
        <input
          type="search"
          placeholder="Name, id or label"
          @input=${(event) => this.#type(event.target.value)}
        />
      </label>
      ${this.#problem ? html`<p class="problem" role="alert">${this.#problem}</p>` : nothing}
      ${isFull ? html`<p class="hint">One plot shows at most ${MAX_RUNS} jobs.</p>` : nothing}
      <ul class="offered">
        ${offered.map(
          (job) =>
            html`<li>
              <button ?disabled=${isFull} @click=${() => this.onPick(job.id)}>Add</button>
              <div class="row">
                <b>${nameOf(job)}</b>
                ${statusOf(job)}
                <span class="muted"
                  >${job.model} · loss ${loss(job.train_loss)} · ${ago(job.created_at)}</span
                >
              </div>
            </li>`,
        )}
        ${offered.length ? nothing : html`<li class="muted">No other job matches.</li>`}
      </ul>
    `;
  }

  #type(text) {
    this.#search = text;
    this.#searchSoon();
  }
}

// The jobs that are compared, with their curves, kept up to date by the project's one feed.

import { get, url } from "../../lib/api.js";
import { follow } from "../../lib/live.js";
import { StepLog } from "../../lib/plot/steps.js";
import { atMostEvery } from "../../lib/timing.js";

export const MAX_RUNS = 8;

const POINTS = 1000;
const REFETCH_MS = 2000;

/** One job and its curve. */
class Run {
  log = new StepLog();
  isBehind = false;
  attempt = null;

  constructor(job, place) {
    this.job = job;
    /** Number of its color, which it keeps when others are removed. */
    this.place = place;
  }

  /** Fetches the steps that are new. Another attempt may have taken old ones again. */
  async fetchSteps() {
    const isSame = this.attempt === this.job.attempt;
    this.attempt = this.job.attempt;
    const from = isSame && this.log.last ? this.log.last.step + 1 : 0;
    const path = `fine_tuning/jobs/${encodeURIComponent(this.job.id)}/metrics`;
    const page = await get(path, { points: POINTS, step_from: from });
    if (from === 0) this.log = new StepLog();
    for (const row of page.data) this.log.put(row);
    this.log.thin(null);
  }
}

export class Runs {
  /** @type {Run[]} */
  list = [];
  #onChange;
  #refetch = atMostEvery(() => this.#fetchChanged(), REFETCH_MS);

  /** @param {() => void} onChange */
  constructor(onChange) {
    this.#onChange = onChange;
  }

  get ids() {
    return this.list.map((run) => run.job.id);
  }

  /** @throws {ApiError} there is no such job, or the service does not answer */
  async add(id) {
    if (this.ids.includes(id) || this.list.length >= MAX_RUNS) return;
    const job = await get(`fine_tuning/jobs/${encodeURIComponent(id)}`);
    const taken = new Set(this.list.map((run) => run.place));
    let place = 1;
    while (taken.has(place)) place += 1;
    const run = new Run(job, place);
    this.list = [...this.list, run];
    await run.fetchSteps();
    this.#onChange();
  }

  remove(id) {
    this.list = this.list.filter((run) => run.job.id !== id);
    this.#onChange();
  }

  /**
   * Follows the project: a browser allows too few connections for a stream of each job.
   *
   * @param {(state: string) => void} onState
   * @param {(job: object) => void} [onJob] is called for every job of the project
   */
  follow(onState, onJob = () => {}) {
    const handlers = {
      job: (job) => {
        onJob(job);
        const run = this.list.find((each) => each.job.id === job.id);
        if (!run) return;
        run.job = job;
        run.isBehind = true;
        this.#onChange();
        this.#refetch();
      },
      deleted: ({ id }) => this.remove(id),
    };
    follow(url("fine_tuning/jobs", { stream: true }), handlers, onState);
  }

  async #fetchChanged() {
    for (const run of this.list.filter((each) => each.isBehind)) {
      run.isBehind = false;
      try {
        await run.fetchSteps();
      } catch (error) {
        if (error.status === undefined) throw error;
        run.isBehind = true; // the next change of a job tries again
      }
    }
    this.#onChange();
  }
}

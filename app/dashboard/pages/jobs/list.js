// One page of the list of jobs, kept up to date by the feed of the project.

import { get } from "../../lib/api.js";
import { matches, queryOf } from "./filters.js";

export const PAGE_SIZE = 50;

export class JobList {
  /** Jobs of this page, newest first. Null until they are fetched. */
  jobs = null;
  hasMore = false;

  #filters;
  #pending = null;
  /** Jobs that have changed while the page was being fetched: the answer may be older. */
  #changed = [];

  /** @param {object[] | null} jobs what to show until the page is fetched */
  constructor(filters, jobs = null) {
    this.#filters = filters;
    this.jobs = jobs;
  }

  /** Fetch the page. Rejects with an `AbortError` if it is fetched again meanwhile. */
  async fetch() {
    this.leave();
    const pending = new AbortController();
    this.#pending = pending;
    this.#changed = [];
    const query = { ...queryOf(this.#filters), limit: PAGE_SIZE };
    const page = await get("fine_tuning/jobs", query, { signal: pending.signal });
    this.jobs = page.data;
    this.hasMore = page.has_more;
    const changed = this.#changed;
    this.#pending = null;
    changed.forEach((job) => this.update(job));
  }

  /** Stop fetching: the page shows another list now. */
  leave() {
    this.#pending?.abort();
  }

  /**
   * Take over a job that was created or has changed.
   *
   * @returns {boolean} whether others may have moved in the queue
   */
  update(job) {
    if (this.#pending) this.#changed.push(job);
    if (!this.jobs) return false;
    const known = this.jobs.find(({ id }) => id === job.id);
    const belongs = matches(job, this.#filters);
    if (known && belongs) {
      this.jobs = this.jobs.map((each) => (each === known ? job : each));
    } else if (known) {
      this.drop(job.id);
    } else if (belongs && !this.#filters.after) {
      this.#insert(job);
    }
    return known?.status !== job.status;
  }

  drop(id) {
    this.jobs = this.jobs?.filter((job) => job.id !== id) ?? null;
  }

  #insert(job) {
    const place = this.jobs.findIndex(({ created_at }) => created_at <= job.created_at);
    if (place === -1 && this.hasMore) return; // it is older than this page
    const jobs = this.jobs.toSpliced(place === -1 ? this.jobs.length : place, 0, job);
    this.hasMore ||= jobs.length > PAGE_SIZE;
    this.jobs = jobs.slice(0, PAGE_SIZE);
  }
}

// A job and all that belongs to it, kept as the service has it.

import { get, url } from "../../lib/api.js";
import { follow } from "../../lib/live.js";
import { tell } from "../../lib/shell.js";
import { StepLog } from "../../lib/plot/steps.js";
import { atMostEvery } from "../../lib/timing.js";

const POINTS = 1000;
const EVENTS = 200;
const REFETCH_MS = 2000;

const ENDED = new Set(["succeeded", "failed", "cancelled"]);

export const hasEnded = (job) => ENDED.has(job.status);

export class JobFeed {
  job = null;
  log = new StepLog();
  /** Newest first. */
  events = [];
  hasEarlierEvents = false;
  /** The attempts at the job, oldest first, the check of its data, and whether it has a report. */
  attempts = { data: [], data_check: null, has_report: false };
  /** Newest first. */
  checkpoints = [];
  /** The report on the data; null while there is none. */
  data = null;
  isDeleted = false;
  /** What was fetched, or has failed to be: until then, a part that is empty may not be. */
  has = { history: false, lists: false, report: false };

  #onChange;
  #refetchLists = atMostEvery(() => this.#try(() => this.#fetchLists()), REFETCH_MS);

  /**
   * @param {string} id
   * @param {(part: "job" | "log" | "events" | "lists" | "data") => void} onChange
   */
  constructor(id, onChange) {
    this.id = id;
    this.#onChange = onChange;
  }

  /**
   * Fetches the job and follows it until it ends.
   *
   * @param {(state: string) => void} onState whether the page is live, as `follow` tells it
   * @throws {ApiError} there is no such job, or the service does not answer
   */
  async start(onState) {
    this.setJob(await get(this.#path()));
    if (hasEnded(this.job)) {
      onState("ended");
      return this.#try(() => this.#fetchHistory());
    }
    // The first message has the place in the stream, so what is fetched after it leaves no gap.
    let history = null;
    const handlers = {
      job: (job) => {
        this.setJob(job);
        history ??= this.#try(() => this.#fetchHistory());
      },
      event: (event) => this.#addEvent(event),
      step: (row) => {
        this.log.put(row);
        this.#onChange("log");
      },
      end: (job) => this.#end(job),
    };
    follow(url(this.#path("events"), { stream: true, cursor: "latest" }), handlers, onState);
  }

  /** Takes a job as an answer of the service shows it. */
  setJob(job) {
    const before = this.job;
    this.job = job;
    this.#onChange("job");
    if (before && (before.attempt !== job.attempt || before.status !== job.status))
      this.#refetchLists();
  }

  async fetchEarlierEvents() {
    const after = this.events.at(-1)?.id;
    const page = await get(this.#path("events"), { limit: EVENTS, after });
    this.events = [...this.events, ...page.data];
    this.hasEarlierEvents = page.has_more;
    this.#onChange("events");
  }

  /** Fetches more rows of a range than the whole log has there. */
  async refine(from, to) {
    const page = await get(this.#path("metrics"), { step_from: from, step_to: to, points: POINTS });
    this.log.refine(page.data);
    this.#onChange("log");
  }

  async #fetchHistory() {
    try {
      await this.#fetchRows();
    } finally {
      this.has.history = true;
      for (const part of ["log", "events"]) this.#onChange(part);
    }
    await this.#fetchLists();
  }

  async #fetchRows() {
    const [metrics, events] = await Promise.all([
      get(this.#path("metrics"), { points: POINTS }),
      get(this.#path("events"), { limit: EVENTS }),
    ]);
    this.log.prepend(metrics.data);
    const known = new Set(this.events.map((event) => event.id));
    this.events = [...this.events, ...events.data.filter((event) => !known.has(event.id))];
    this.hasEarlierEvents = events.has_more;
  }

  async #fetchLists() {
    const [attempts, checkpoints] = await Promise.all([
      get(this.#path("attempts")),
      get(this.#path("checkpoints"), { limit: 100 }),
    ]);
    this.attempts = attempts;
    this.checkpoints = checkpoints.data;
    this.has.lists = true;
    this.#onChange("lists");
    await this.#fetchReport();
    this.has.report = true;
    this.#onChange("data");
  }

  async #fetchReport() {
    if (this.data || !this.attempts.data_check?.ended_at) return;
    this.data = (await get(this.#path("data"))).report;
  }

  #addEvent(event) {
    if (this.events.some((other) => other.id === event.id)) return;
    this.events = [event, ...this.events];
    this.#onChange("events");
    if (event.type === "message") this.#refetchLists();
  }

  #end(job) {
    if (job.deleted) {
      this.isDeleted = true;
      this.#onChange("job");
    } else {
      this.setJob(job);
      this.#refetchLists();
    }
  }

  /** Runs what the page can do without, and tells the user if it fails. */
  async #try(act) {
    try {
      await act();
    } catch (error) {
      tell(error.message, "problem");
    }
  }

  #path(part = "") {
    return `fine_tuning/jobs/${encodeURIComponent(this.id)}${part && `/${part}`}`;
  }
}

// What can be done with a job. A button is disabled while its request runs; the answer decides what
// is offered next.

import { post, remove } from "../../lib/api.js";
import { html, nothing } from "../../lib/html.js";
import { can, confirm, tell } from "../../lib/shell.js";
import { hasEnded, JobFeed } from "./feed.js";
import { nameOf } from "./head.js";

export class Actions {
  #running = null;

  /**
   * @param {JobFeed} feed
   * @param {object} session
   * @param {() => void} draw
   */
  constructor(feed, session, draw) {
    this.feed = feed;
    this.isAllowed = can(session, "write");
    this.draw = draw;
  }

  buttons() {
    if (!this.isAllowed) return nothing;
    const { job } = this.feed;
    const isActive = ["validating_files", "queued", "running"].includes(job.status);
    const isStopping = Boolean(job.cancel_requested_at);
    const isPausing = Boolean(job.pause_requested_at);
    const canPause = isActive && !isStopping && !isPausing;
    const canResume = job.status === "paused" || isPausing;
    return html`
      ${canPause ? this.#button("pause", "Pause") : nothing}
      ${canResume ? this.#button("resume", "Resume", "primary") : nothing}
      ${!hasEnded(job) && !isStopping ? this.#button("cancel", "Cancel", "danger") : nothing}
      ${this.#button("rerun", "Rerun")}
      ${
        ["failed", "cancelled"].includes(job.status) && job.trained_steps
          ? this.#button("continue", "Rerun from the saved state")
          : nothing
      }
      ${hasEnded(job) ? this.#button("delete", "Delete", "danger") : nothing}
    `;
  }

  #button(name, label, kind = "") {
    return html`<button
      class=${kind || nothing}
      ?disabled=${this.#running !== null}
      aria-busy=${this.#running === name ? "true" : nothing}
      @click=${() => this.#run(name)}
    >
      ${label}
    </button>`;
  }

  async #run(name) {
    this.#running = name;
    this.draw();
    try {
      await this[name]();
    } catch (error) {
      tell(error.message, "problem");
    } finally {
      this.#running = null;
      this.draw();
    }
  }

  async pause() {
    await this.#change("pause");
  }

  async resume() {
    await this.#change("resume");
  }

  async cancel() {
    const question = "Cancel this job? It stops for good. Its log and its checkpoints stay.";
    if (await confirm(question, "Cancel the job")) await this.#change("cancel");
  }

  async rerun() {
    await this.#create({});
  }

  async continue() {
    await this.#create({ from: "saved_state" });
  }

  async delete() {
    const question =
      `Delete the job “${nameOf(this.feed.job)}”? Its adapter, model, checkpoints, log and events are ` +
      "deleted too. This cannot be undone.";
    if (!(await confirm(question, "Delete"))) return;
    await remove(`fine_tuning/jobs/${this.feed.id}`);
    location.assign(".");
  }

  async #change(verb) {
    this.feed.setJob(await post(`fine_tuning/jobs/${this.feed.id}/${verb}`));
  }

  async #create(body) {
    const job = await post(`fine_tuning/jobs/${this.feed.id}/rerun`, body);
    location.assign(`job?id=${encodeURIComponent(job.id)}`);
  }
}

// The models that can be asked: base models, tuned ones, and checkpoints of the jobs of those chosen.

import { get } from "../../lib/api.js";
import { html, live, nothing } from "../../lib/html.js";

export const MAX_MODELS = 3;

export class Models {
  #base = [];
  #tuned = [];
  #checkpoints = new Map(); // by job
  #problems = new Map(); // by model

  async fetch() {
    const { data } = await get("models");
    this.#base = data.filter((model) => !model.base_model);
    this.#tuned = data.filter((model) => model.base_model);
  }

  /** Models to begin with: the newest tuned one beside its base. */
  get proposed() {
    const [newest] = this.#tuned;
    return newest ? [newest.base_model, newest.id] : this.#base.slice(0, 1).map(({ id }) => id);
  }

  /** Another model to ask beside those that are chosen. */
  nextTo(chosen) {
    return [...this.#tuned, ...this.#base].find(({ id }) => !chosen.includes(id))?.id;
  }

  /** Fetches the checkpoints of the model's job, or why there is no such model. */
  async learnOf(id) {
    try {
      const model = this.#find(id) ?? (await get(`models/${encodeURIComponent(id)}`));
      const job = model.fine_tuning_job_id;
      if (!job || this.#checkpoints.has(job)) return;
      const path = `fine_tuning/jobs/${encodeURIComponent(job)}/checkpoints`;
      this.#checkpoints.set(job, (await get(path, { limit: 100 })).data);
    } catch (error) {
      this.#problems.set(id, error.message);
    }
  }

  problemOf(id) {
    return this.#problems.get(id);
  }

  /** The options of a select whose value is `id`. */
  options(id) {
    const groups = [
      ["Tuned models", this.#tuned.map((model) => model.id)],
      ["Base models", this.#base.map((model) => model.id)],
      ["Checkpoints", this.#checkpointNames()],
    ];
    const isListed = groups.some(([, ids]) => ids.includes(id));
    return html`${isListed ? nothing : option(id, id)}
    ${groups
      .filter(([, ids]) => ids.length)
      .map(
        ([label, ids]) =>
          html`<optgroup label=${label}>${ids.map((each) => option(each, id))}</optgroup>`,
      )}`;
  }

  #find(id) {
    return [...this.#base, ...this.#tuned].find((model) => model.id === id);
  }

  #checkpointNames() {
    return [...this.#checkpoints.values()]
      .flat()
      .filter((checkpoint) => !checkpoint.is_result)
      .map((checkpoint) => checkpoint.fine_tuned_model_checkpoint);
  }
}

function option(id, chosen) {
  return html`<option value=${id} .selected=${live(id === chosen)}>${id}</option>`;
}

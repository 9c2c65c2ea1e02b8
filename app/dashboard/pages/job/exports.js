// The adapter for other programs: a worker makes the file, the page waits for it and downloads it.

import { get, url } from "../../lib/api.js";
import { html } from "../../lib/html.js";
import { tell } from "../../lib/shell.js";

const POLL_MS = 2000;
const LABELS = { gguf: "GGUF", merged: "Merged" };

export class Exports {
  /** How much is done, from 0 to 1, of each export that is waited for. */
  #progress = new Map();

  /**
   * @param {import("./feed.js").JobFeed} feed
   * @param {() => void} draw
   */
  constructor(feed, draw) {
    this.path = `fine_tuning/jobs/${encodeURIComponent(feed.id)}`;
    this.draw = draw;
  }

  buttons(checkpoint) {
    return Object.keys(LABELS).map((format) => this.#button(checkpoint, format));
  }

  #button(checkpoint, format) {
    const progress = this.#progress.get(keyOf(checkpoint, format));
    const isBusy = progress !== undefined;
    return html`<button
      ?disabled=${isBusy}
      aria-label="Download step ${checkpoint.step_number} as ${LABELS[format]}"
      @click=${() => this.#download(checkpoint, format)}
    >
      ${isBusy ? `${LABELS[format]} ${Math.floor(100 * progress)} %` : LABELS[format]}
    </button>`;
  }

  async #download(checkpoint, format) {
    const key = keyOf(checkpoint, format);
    const query = { checkpoint: checkpoint.id, format };
    try {
      while (!(await this.#isReady(checkpoint, format, query))) {
        await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      }
      location.assign(url(`${this.path}/adapter`, query));
    } catch (error) {
      tell(error.message, "problem");
    } finally {
      this.#progress.delete(key);
      this.draw();
    }
  }

  /** Asks for the export if nobody has, and notes how much of it is done. */
  async #isReady(checkpoint, format, query) {
    const { data } = await get(`${this.path}/exports`);
    const found =
      data.find((each) => each.checkpoint_id === checkpoint.id && each.format === format) ??
      (await get(`${this.path}/adapter`, query));
    if (found.error) throw new Error(found.error.message);
    this.#progress.set(keyOf(checkpoint, format), found.progress);
    this.draw();
    return found.status === "succeeded";
  }
}

function keyOf(checkpoint, format) {
  return `${checkpoint.id} ${format}`;
}

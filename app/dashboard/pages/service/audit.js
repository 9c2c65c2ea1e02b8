// The audit trail: who did what, with which key.

import { get } from "../../lib/api.js";
import { moment, UNKNOWN } from "../../lib/format.js";
import { html, nothing, repeat } from "../../lib/html.js";
import { problemNote } from "../../lib/problems.js";

const PAGE_SIZE = 50;

export class AuditTrail {
  #draw;
  #events = null;
  #hasMore = false;
  #isBusy = false;
  #problem = null;

  constructor(draw) {
    this.#draw = draw;
  }

  async fetchMore() {
    this.#isBusy = true;
    this.#draw();
    try {
      const query = { limit: PAGE_SIZE, after: this.#events?.at(-1)?.id };
      const page = await get("organization/audit_logs", query);
      this.#events = [...(this.#events ?? []), ...page.data];
      this.#hasMore = page.has_more;
      this.#problem = null;
    } catch (error) {
      this.#problem = error.message;
    }
    this.#isBusy = false;
    this.#draw();
  }

  view() {
    return html`<section class="stack" aria-labelledby="audit">
      <h2 id="audit">Audit trail</h2>
      ${problemNote(this.#problem)} ${this.#events ? this.#table() : nothing}
      ${
        this.#hasMore
          ? html`<div>
              <button ?disabled=${this.#isBusy} @click=${() => this.fetchMore()}>
                Older events
              </button>
            </div>`
          : nothing
      }
    </section>`;
  }

  #table() {
    if (!this.#events.length) return html`<p class="card empty">Nothing was done yet.</p>`;
    return html`<div class="card flush">
      <table class="stackable">
        <caption class="visually-hidden">
          Audit events, newest first
        </caption>
        <thead>
          <tr>
            <th>Time</th>
            <th>What</th>
            <th>Object</th>
            <th>Project</th>
            <th>Key</th>
          </tr>
        </thead>
        <tbody>
          ${repeat(this.#events, (event) => event.id, row)}
        </tbody>
      </table>
    </div>`;
  }
}

function row({ effective_at: time, type, object_id: object, project_id: project, key_id: key }) {
  return html`<tr>
    <td data-label="Time">${moment(time)}</td>
    <td data-label="What">${type}</td>
    <td class="mono" data-label="Object">${object}</td>
    <td class="mono" data-label="Project">${project}</td>
    <td class="mono" data-label="Key">${key ?? UNKNOWN}</td>
  </tr>`;
}

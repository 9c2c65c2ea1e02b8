// API keys of a project: list, create and revoke. A key itself is shown once, when it is created.

import { get, post, remove } from "../../lib/api.js";
import { copyButton } from "../../lib/copy.js";
import { ago, moment, UNKNOWN } from "../../lib/format.js";
import { html, nothing, repeat } from "../../lib/html.js";
import { problemNote } from "../../lib/problems.js";
import { confirm, tell } from "../../lib/shell.js";

const PAGE_SIZE = 50;
const MAX_DAYS = 36_500;
const SCOPES = {
  read: "see everything of the project",
  write: "create, change and delete",
  sample: "ask tuned models",
  admin: "manage the service",
};

export class Keys {
  #session;
  #draw;
  #projects = [];
  #project;
  #keys = null;
  #hasMore = false;
  #isBusy = false;
  #problem = null;
  #created = null; // the new key, while its dialog is open

  constructor(session, draw) {
    this.#session = session;
    this.#draw = draw;
    this.#project = session.project?.id;
  }

  async fetch() {
    if (this.#session.is_keyless) return;
    await this.#act(async () => {
      this.#projects = (await get("organization/projects")).data;
      await this.#fetchMore();
    });
  }

  async #fetchMore() {
    const query = { limit: PAGE_SIZE, after: this.#keys?.at(-1)?.id };
    const page = await get(this.#path(), query);
    this.#keys = [...(this.#keys ?? []), ...page.data];
    this.#hasMore = page.has_more;
  }

  #path(id = "") {
    const path = `organization/projects/${encodeURIComponent(this.#project)}/api_keys`;
    return id ? `${path}/${encodeURIComponent(id)}` : path;
  }

  /** Do something with the API. The buttons are disabled meanwhile, and an error is told. */
  async #act(work) {
    this.#isBusy = true;
    this.#problem = null;
    this.#draw();
    try {
      await work();
    } catch (error) {
      this.#problem = error.message;
    }
    this.#isBusy = false;
    this.#draw();
  }

  view() {
    return html`<section class="stack" aria-labelledby="keys">
      <h2 id="keys">API keys</h2>
      ${this.#session.is_keyless ? keyless() : this.#manager()}
    </section>`;
  }

  #manager() {
    return html`<div class="card stack">${this.#projectChoice()} ${this.#form()}</div>
      ${problemNote(this.#problem)} ${this.#keys ? this.#table() : nothing}
      ${
        this.#hasMore
          ? html`<div>
              <button ?disabled=${this.#isBusy} @click=${() => this.#act(() => this.#fetchMore())}>
                Older keys
              </button>
            </div>`
          : nothing
      }
      ${this.#dialog()}`;
  }

  #projectChoice() {
    return html`<label>
      Project
      <select ?disabled=${this.#isBusy} @change=${(event) => this.#choose(event.target.value)}>
        ${this.#projects.map(
          ({ id, name }) =>
            html`<option value=${id} ?selected=${id === this.#project}>${name}</option>`,
        )}
      </select>
    </label>`;
  }

  #choose(project) {
    this.#project = project;
    this.#keys = null;
    this.#act(() => this.#fetchMore());
  }

  #form() {
    return html`<form class="stack" @submit=${(event) => this.#create(event)}>
      <fieldset class="stack tight">
        <legend>What a new key may do</legend>
        ${Object.entries(SCOPES).map(
          ([scope, about]) =>
            html`<label class="inline">
              <input type="checkbox" name=${scope} ?checked=${scope !== "admin"} />
              <span>${scope} <span class="muted">${about}</span></span>
            </label>`,
        )}
      </fieldset>
      <div class="row">
        <label class="inline">
          Expires after
          <input name="days" type="number" min="1" max=${MAX_DAYS} placeholder="never" />
          days
        </label>
        <button class="primary end" ?disabled=${this.#isBusy}>Create a key</button>
      </div>
    </form>`;
  }

  async #create(event) {
    event.preventDefault();
    const { elements } = event.target;
    const scopes = Object.keys(SCOPES).filter((scope) => elements[scope].checked);
    const days = elements.days.valueAsNumber;
    await this.#act(async () => {
      const body = { scopes, expires_in_days: Number.isNaN(days) ? null : days };
      const { value, ...key } = await post(this.#path(), body);
      this.#keys = [key, ...this.#keys];
      this.#created = value;
    });
    if (this.#created) document.querySelector("#new-key").showModal();
  }

  #dialog() {
    return html`<dialog id="new-key" aria-labelledby="new-key-title" @close=${() => this.#forget()}>
      <div class="stack">
        <h2 id="new-key-title">The new key</h2>
        <p>Copy it now: it is not shown again.</p>
        <pre>${this.#created}</pre>
        <div class="row">
          ${copyButton(this.#created ?? "", "Copy the key")}
          <form method="dialog" class="end"><button class="primary">Done</button></form>
        </div>
      </div>
    </dialog>`;
  }

  #forget() {
    this.#created = null;
    this.#draw();
  }

  async #revoke(key) {
    const question = `Revoke ${key.id}? Whatever uses it stops working, and this cannot be undone.`;
    if (!(await confirm(question, "Revoke the key"))) return;
    await this.#act(async () => {
      await remove(this.#path(key.id));
      const revoked = await get(this.#path(key.id));
      this.#keys = this.#keys.map((each) => (each.id === key.id ? revoked : each));
      tell(`${key.id} is revoked.`);
    });
  }

  #table() {
    if (!this.#keys.length) return html`<p class="card empty">This project has no key.</p>`;
    return html`<div class="card flush">
      <table class="stackable">
        <caption class="visually-hidden">
          API keys of the project, newest first
        </caption>
        <thead>
          <tr>
            <th>Key</th>
            <th>May</th>
            <th>State</th>
            <th class="number">Last used</th>
            <th class="number">Created</th>
            <th><span class="visually-hidden">Actions</span></th>
          </tr>
        </thead>
        <tbody>
          ${repeat(
            this.#keys,
            (key) => key.id,
            (key) => this.#row(key),
          )}
        </tbody>
      </table>
    </div>`;
  }

  #row(key) {
    const works = key.owner_project_access === "active";
    const isOwn = key.id === this.#session.key_id;
    return html`<tr>
      <td class="name mono">${key.id}</td>
      <td data-label="May">${key.scopes.join(", ")}</td>
      <td data-label="State">
        <span class="status ${works ? "succeeded" : "cancelled"}">${stateOf(key, works)}</span>
      </td>
      <td class="number" data-label="Last used">
        ${key.last_used_at ? ago(key.last_used_at) : UNKNOWN}
      </td>
      <td class="number" data-label="Created" title=${moment(key.created_at)}>
        ${ago(key.created_at)}
      </td>
      <td class="actions">
        ${isOwn ? html`<span class="muted">in use here</span>` : nothing}
        ${
          works && !isOwn
            ? html`<button
                class="danger"
                ?disabled=${this.#isBusy}
                @click=${() => this.#revoke(key)}
              >
                Revoke<span class="visually-hidden"> ${key.id}</span>
              </button>`
            : nothing
        }
      </td>
    </tr>`;
  }
}

function stateOf(key, works) {
  if (key.revoked_at) return "revoked";
  if (!works) return "expired";
  return key.expires_at ? `until ${moment(key.expires_at)}` : "active";
}

function keyless() {
  return html`<div class="card stack">
    <p>
      This service has no keys: everybody on its machine may do everything. With the first key,
      every request needs one. Its operator creates that key on the machine of the service:
    </p>
    <pre>tunery keys create --scope admin --scope read --scope write</pre>
  </div>`;
}

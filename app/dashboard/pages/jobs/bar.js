// The filters above the list of jobs.

import { html, live } from "../../lib/html.js";
import { STATUS_LABELS } from "../../lib/status.js";
import { parseLabel } from "./filters.js";

/**
 * @param {object} filters as `readFilters` gives them
 * @param {string[]} models ids of the base models
 * @param {(change: object) => void} onChange called with the filters that change
 */
export function filterBar(filters, models, onChange) {
  const known = models.includes(filters.model) || !filters.model;
  return html`<search class="filters">
    <div class="chips" role="group" aria-label="Status">
      ${Object.keys(STATUS_LABELS).map((status) => chip(status, filters, onChange))}
    </div>
    <label>
      <span class="visually-hidden">Search</span>
      <input
        type="search"
        placeholder="Search name, id or label"
        maxlength="200"
        .value=${live(filters.search)}
        @input=${(event) => onChange({ search: event.target.value.trim() })}
      />
    </label>
    <label>
      <span class="visually-hidden">Base model</span>
      <select
        .value=${live(filters.model)}
        @change=${(event) => onChange({ model: event.target.value })}
      >
        <option value="">All base models</option>
        ${(known ? models : [...models, filters.model]).map(
          (model) =>
            html`<option value=${model} ?selected=${model === filters.model}>${model}</option>`,
        )}
      </select>
    </label>
    <form @submit=${(event) => addLabel(event, filters, onChange)}>
      <label>
        <span class="visually-hidden">Label</span>
        <input
          name="label"
          placeholder="label=value"
          size="14"
          pattern="[^=]+=.*"
          title="A label and its value, such as team=search"
          required
        />
      </label>
    </form>
    ${filters.labels.map((label) => labelChip(label, filters, onChange))}
  </search>`;
}

function chip(status, { statuses }, onChange) {
  const isOn = statuses.includes(status);
  const next = isOn ? statuses.filter((each) => each !== status) : [...statuses, status];
  return html`<button
    class="chip"
    aria-pressed=${isOn}
    @click=${() => onChange({ statuses: next })}
  >
    <span class="status ${status}">${STATUS_LABELS[status]}</span>
  </button>`;
}

function labelChip([key, value], { labels }, onChange) {
  const others = labels.filter(([other]) => other !== key);
  return html`<button
    class="chip"
    aria-label="Remove the filter ${key}=${value}"
    @click=${() => onChange({ labels: others })}
  >
    ${key}=${value} <span aria-hidden="true">×</span>
  </button>`;
}

function addLabel(event, { labels }, onChange) {
  event.preventDefault();
  const label = parseLabel(event.target.elements.label.value);
  event.target.reset();
  if (!label) return;
  onChange({ labels: [...labels.filter(([key]) => key !== label[0]), label] });
}

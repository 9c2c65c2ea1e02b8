// The API call behind a form, in each of its forms, to read and to copy.

import { copyButton } from "./copy.js";
import { html } from "./html.js";

/**
 * @param {Record<string, string>} texts by the label of the form, such as "curl"
 * @param {string} open label of the form that is shown
 * @param {(label: string) => void} onOpen
 */
export function callView(texts, open, onOpen) {
  return html`<div class="row">
      <h2>As a call</h2>
      <span class="end row tight">
        ${Object.keys(texts).map(
          (label) =>
            html`<button
              type="button"
              class="chip"
              aria-pressed=${label === open}
              @click=${() => onOpen(label)}
            >
              ${label}
            </button>`,
        )}
        ${copyButton(texts[open])}
      </span>
    </div>
    <pre class="call" tabindex="0" aria-label="The call">${texts[open]}</pre>`;
}

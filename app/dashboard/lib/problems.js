// What is wrong, told where it is. Nothing is drawn while nothing is wrong.

import { html, nothing } from "./html.js";

/** What has failed, as a block of the page. */
export function problemNote(text) {
  return text ? html`<p class="problem" role="alert">${text}</p>` : nothing;
}

/** What is wrong with a field, beside it. */
export function wrongNote(text) {
  return text ? html`<p class="wrong" role="alert">${text}</p>` : nothing;
}

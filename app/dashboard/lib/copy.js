// Copying text. Browsers offer the clipboard only over HTTPS and to the machine itself.

import { html } from "./html.js";
import { tell } from "./shell.js";

/** A button that copies a text. */
export function copyButton(text, label = "Copy") {
  return html`<button type="button" @click=${() => copy(text)}>${label}</button>`;
}

async function copy(text) {
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyBySelection(text);
    tell("Copied.");
  } catch {
    tell("The browser did not allow copying. Select the text and copy it yourself.", "problem");
  }
}

function copyBySelection(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "visually-hidden";
  const focused = document.activeElement;
  // Inside an open dialog, nothing outside of it can take the focus.
  (focused?.closest("dialog") ?? document.body).append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  if (!isCopied) throw new Error("not copied");
}

// Rows of a dataset as a base model reads them, with the learned tokens coloured.

import { count } from "./format.js";
import { html, nothing } from "./html.js";
import { problemNote } from "./problems.js";

const OUTCOMES = {
  kept: null,
  truncated: "The end is cut off.",
  dropped: "Too long: left out.",
  too_long: "Too long: the job would fail.",
  nothing_to_learn: "Nothing in it is learned: left out.",
  equal_answers: "Both answers are the same: left out.",
};

/** @param {object} preview the answer of `GET /v1/files/{id}/preview` */
export function previewRows(preview) {
  return html`
    ${preview.warnings.map((warning) => html`<p class="notice">${warning}</p>`)}
    <p class="hint">
      <span class="tokens"><span class="learned">Coloured text</span></span> is what the model
      learns to write. The rest is what it reads before.
    </p>
    <ol class="rows">
      ${preview.rows.map(row)}
    </ol>
  `;
}

function row({ line, examples, is_cut: isCut, error }) {
  return html`<li>
    <div class="muted small">Row ${count(line)}</div>
    ${problemNote(error && [error.path, error.message].filter(Boolean).join(": "))}
    ${examples.map(example)} ${isCut ? html`<p class="hint">The row goes on.</p>` : nothing}
  </li>`;
}

const ANSWERS = { preferred: "Preferred answer", non_preferred: "Other answer" };

function example({ tokens, outcome, answer, total_tokens: total, learned_tokens: learned }) {
  const note = OUTCOMES[outcome];
  return html`${answer ? html`<p class="hint">${ANSWERS[answer]}</p>` : nothing}
    <pre class="tokens" tabindex="0" aria-label="Text of the row">
${merge(tokens).map(token)}</pre>
    <div class="muted small">
      ${count(total)} tokens, ${count(learned)} learned.
      ${note ? html`<strong>${note}</strong>` : nothing}
    </div>`;
}

/** Neighbours of one kind as one piece: a row has up to 2,048 tokens. */
function merge(tokens) {
  const pieces = [];
  for (const { text, is_learned: isLearned, is_special: isSpecial } of tokens) {
    const kind = [isLearned ? "learned" : "", isSpecial ? "special" : ""].join(" ").trim();
    if (pieces.at(-1)?.kind === kind) pieces.at(-1).text += text;
    else pieces.push({ kind, text });
  }
  return pieces;
}

function token({ kind, text }) {
  return html`<span class=${kind || nothing}>${text}</span>`;
}

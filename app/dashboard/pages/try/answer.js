// The answer of one model, as it is written.

import { copyButton } from "../../lib/copy.js";
import { count, duration } from "../../lib/format.js";
import { html, nothing } from "../../lib/html.js";

/**
 * @param {string} model
 * @param {import("./conversation.js").Answer | undefined} answer absent if it was not asked
 * @param {(() => void) | null} onAsk asks it this prompt (again); null if others follow
 */
export function answerView(model, answer, onAsk) {
  const isBusy = ["asking", "waiting"].includes(answer?.state);
  return html`<article class="answer" aria-label="Answer of ${model}" aria-busy=${String(isBusy)}>
    <h3 class="mono">${model}</h3>
    ${answer?.text ? html`<p class="words">${answer.text}</p>` : nothing}
    ${answer?.problem ? problem(answer) : nothing}
    <div class="muted small" role="status">${remark(answer)}</div>
    <div class="row tight small">
      ${answer?.text && !isBusy ? copyButton(answer.text) : nothing}
      ${
        onAsk && !isBusy
          ? html`<button type="button" @click=${onAsk}>${answer ? "Ask again" : "Ask"}</button>`
          : nothing
      }
    </div>
  </article>`;
}

function problem({ state, problem: text }) {
  const kind = state === "waiting" ? "notice" : "problem";
  return html`<p class=${kind} role="alert">${text}</p>`;
}

function remark(answer) {
  if (!answer) return "Not asked.";
  const { state, text, finish, askAt } = answer;
  if (state === "waiting") return `Asks again in ${duration((askAt - Date.now()) / 1000)}.`;
  if (state === "asking") return text ? "Writing…" : "Asking…";
  if (state === "failed") return "";
  if (state === "stopped") return "Stopped.";
  const end = finish === "length" ? "Cut off at the maximum number of tokens." : "";
  return [text ? "" : "The answer is empty.", figures(answer), end].filter(Boolean).join(" ");
}

function figures({ tokens, firstMs, lastMs }) {
  if (firstMs === null) return "";
  const parts = [`${seconds(firstMs)} to the first token`];
  if (tokens !== null) parts.unshift(`${count(tokens)} ${tokens === 1 ? "token" : "tokens"}`);
  // The first token took the time before; the others came one after another.
  if (tokens > 1 && lastMs > firstMs) {
    parts.push(`${((1000 * (tokens - 1)) / (lastMs - firstMs)).toFixed(1)} tokens/s`);
  }
  return `${parts.join(", ")}.`;
}

const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

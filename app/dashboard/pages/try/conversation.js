// What was asked, and what each model has answered. It survives a reload in the storage of the tab.

import { ApiError, postForStream } from "../../lib/api.js";

const STORED = "tunery.try.turns";
const LAST_MESSAGE = "[DONE]";

/**
 * The answer of one model to one prompt.
 *
 * @typedef {object} Answer
 * @property {"asking" | "waiting" | "done" | "stopped" | "failed"} state `waiting` if the service
 *   wants to be asked later
 * @property {string} text
 * @property {string | null} finish why the model has stopped, such as `length`
 * @property {number | null} tokens
 * @property {number | null} firstMs time from the question to the first text
 * @property {number | null} lastMs time from the question to the end
 * @property {string | null} problem
 * @property {number | null} askAt time of the next try, in milliseconds since 1970
 */

/** @typedef {{prompt: string, answers: Record<string, Answer>}} Turn answers by model */

export class Conversation {
  /** @type {Turn[]} */
  turns = load();
  #asking = new Map();
  #onChange;

  /** @param {() => void} onChange */
  constructor(onChange) {
    this.#onChange = onChange;
  }

  get isRunning() {
    return this.#asking.size > 0;
  }

  get isWaiting() {
    const answers = Object.values(this.turns.at(-1)?.answers ?? {});
    return answers.some(({ state }) => state === "waiting");
  }

  /** Asks all models the same. */
  send(prompt, models, options) {
    this.turns = [...this.turns, { prompt, answers: {} }];
    for (const model of models) this.ask(model, options);
  }

  /**
   * Asks a model the last prompt, until it has answered or has refused for good.
   *
   * @param {string} model
   * @param {{system: string, settings: object}} options
   */
  async ask(model, { system, settings }) {
    const turn = this.turns.at(-1);
    const body = { ...bodyOf(this.turns, model, system, settings), ...AS_STREAM };
    const controller = new AbortController();
    this.#asking.get(model)?.abort();
    this.#asking.set(model, controller);
    try {
      while (await this.#isPutOff(turn, body, controller.signal));
    } finally {
      if (this.#asking.get(model) === controller) this.#asking.delete(model);
      this.#change();
    }
  }

  stop() {
    for (const controller of this.#asking.values()) controller.abort();
  }

  /** Stops asking one model. */
  leave(model) {
    this.#asking.get(model)?.abort();
  }

  clear() {
    this.stop();
    this.turns = [];
    this.#change();
  }

  /** Keeps what there is, also of an answer that is still being written. */
  save() {
    try {
      sessionStorage.setItem(STORED, JSON.stringify(this.turns));
    } catch {
      // A conversation that is larger than the browser allows is kept until the page is left.
    }
  }

  /** Asks once. Returns whether the service wants to be asked again, and the time for it has come. */
  async #isPutOff(turn, body, signal) {
    const answer = newAnswer();
    turn.answers[body.model] = answer;
    this.#change();
    try {
      await this.#read(answer, body, signal);
      answer.state = "done";
    } catch (error) {
      if (error.name === "AbortError") {
        answer.state = "stopped";
      } else {
        answer.state = "failed";
        answer.problem = error.message;
        const isBusy = error.status === 429 && error.retryAfterS !== null;
        if (isBusy) return this.#waitFor(answer, error.retryAfterS, signal);
      }
    }
    return false;
  }

  async #read(answer, body, signal) {
    const asked = performance.now();
    for await (const data of postForStream("chat/completions", body, { signal })) {
      if (data === LAST_MESSAGE) {
        answer.lastMs = performance.now() - asked;
        continue; // to the end of the stream, so that the connection can be used again
      }
      const { choices = [], usage, error } = JSON.parse(data);
      if (error) throw new ApiError(0, error);
      const text = choices[0]?.delta?.content;
      if (text) {
        answer.firstMs ??= performance.now() - asked;
        answer.text += text;
      }
      answer.finish = choices[0]?.finish_reason ?? answer.finish;
      answer.tokens = usage?.completion_tokens ?? answer.tokens;
      this.#onChange();
    }
    if (answer.lastMs === null) throw new ApiError(0, { message: "The answer broke off." });
  }

  async #waitFor(answer, seconds, signal) {
    answer.state = "waiting";
    answer.askAt = Date.now() + 1000 * seconds;
    this.#change();
    await pause(1000 * seconds, signal);
    if (signal.aborted) answer.state = "failed";
    return !signal.aborted;
  }

  #change() {
    this.save();
    this.#onChange();
  }
}

const AS_STREAM = { stream: true, stream_options: { include_usage: true } };

/**
 * The request that asks a model the prompt of the last turn, after what was said before.
 *
 * @param {Turn[]} turns those that the model did not answer are left out
 */
export function bodyOf(turns, model, system, settings) {
  const last = turns.length - 1;
  const said = turns.flatMap(({ prompt, answers }, index) => {
    const question = { role: "user", content: prompt };
    if (index === last) return [question];
    const text = answers[model]?.text;
    return text ? [question, { role: "assistant", content: text }] : [];
  });
  const instruction = system.trim() ? [{ role: "system", content: system }] : [];
  return { model, messages: [...instruction, ...said], ...settings };
}

const newAnswer = () => ({
  state: "asking",
  text: "",
  finish: null,
  tokens: null,
  firstMs: null,
  lastMs: null,
  problem: null,
  askAt: null,
});

function load() {
  const turns = JSON.parse(sessionStorage.getItem(STORED) ?? "[]");
  for (const answer of turns.flatMap((turn) => Object.values(turn.answers))) {
    if (["asking", "waiting"].includes(answer.state)) answer.state = "stopped";
  }
  return turns;
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

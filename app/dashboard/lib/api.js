// The public API. Every request of the dashboard goes through this module or through `live.js`.

import { dataOf } from "./server-events.js";

export class ApiError extends Error {
  /**
   * @param {number} status HTTP status; 0 if there was no answer
   * @param {object} error the `error` of the answer: message, code, param, and for data `errors`
   *   and their number
   * @param {number | null} retryAfterS seconds after which the service says to ask again
   */
  constructor(status, error, retryAfterS = null) {
    super(error.message);
    this.status = status;
    this.code = error.code ?? null;
    this.param = error.param ?? null;
    this.errors = error.errors ?? [];
    this.errorCount = error.error_count ?? this.errors.length;
    this.hasMoreErrors = error.error_count_is_minimum ?? false;
    this.retryAfterS = retryAfterS;
  }

  /** Whether the same request may succeed later. */
  get mayPass() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** The address of a route: `url("fine_tuning/jobs", {limit: 20})`. Empty values are left out. */
export function url(path, query = {}) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== "") search.append(name, value);
  }
  return search.size ? `v1/${path}?${search}` : `v1/${path}`;
}

export function get(path, query, { signal } = {}) {
  return send("GET", url(path, query), { signal });
}

export function post(path, body, { query, headers, signal } = {}) {
  return send("POST", url(path, query), {
    body: textOf(body),
    headers: { ...typeOf(body), ...headers },
    signal,
  });
}

export function remove(path) {
  return send("DELETE", url(path));
}

/**
 * Posts, and yields the data of each message of the stream that answers.
 *
 * @throws {ApiError} the service refuses, does not answer, or is gone before the stream has ended
 */
export async function* postForStream(path, body, { signal } = {}) {
  const options = { method: "POST", body: textOf(body), headers: typeOf(body), signal };
  const answer = await request(url(path), options);
  try {
    yield* dataOf(answer);
  } catch (error) {
    throw error.name === "AbortError" ? error : unreachable();
  }
}

async function send(method, address, options = {}) {
  const answer = await request(address, { method, ...options });
  const text = await answer.text();
  const isJson = (answer.headers.get("content-type") ?? "").includes("json");
  return isJson ? JSON.parse(text) : text;
}

async function request(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw unreachable();
  }
  if (answer.ok) return answer;
  const wait = Number.parseInt(answer.headers.get("retry-after"), 10);
  throw toError(answer.status, await answer.text(), Number.isNaN(wait) ? null : wait);
}

/**
 * Uploads a file.
 *
 * @param {(fraction: number) => void} onProgress called with the part that was sent, 0 to 1
 * @returns {{done: Promise<object>, abort: () => void}} `done` has the file as the API shows it
 */
export function upload(file, onProgress) {
  // `fetch` does not report how much of a body was sent.
  const request = new XMLHttpRequest();
  const form = new FormData();
  form.append("purpose", "fine-tune");
  form.append("file", file, file.name);
  const done = new Promise((resolve, reject) => {
    request.upload.onprogress = (event) => onProgress(event.loaded / event.total);
    request.onerror = () => reject(unreachable());
    request.onabort = () => reject(new DOMException("The upload was cancelled.", "AbortError"));
    request.onload = () => {
      if (request.status === 200) resolve(JSON.parse(request.responseText));
      else reject(toError(request.status, request.responseText));
    };
  });
  request.open("POST", url("files"));
  request.send(form);
  return { done, abort: () => request.abort() };
}

function unreachable() {
  const message = "The service does not answer. Check that it runs and that you are online.";
  return new ApiError(0, { message, code: "unreachable" });
}

const textOf = (body) => (body === undefined ? undefined : JSON.stringify(body));

const typeOf = (body) => (body === undefined ? {} : { "content-type": "application/json" });

function toError(status, text, retryAfterS = null) {
  try {
    const { error } = JSON.parse(text);
    if (error?.message) return new ApiError(status, error, retryAfterS);
  } catch {
    // A proxy in front of the service answers in HTML.
  }
  return new ApiError(status, { message: `The service answered with status ${status}.` });
}

// Server-sent events that survive restarts of the API, and rest while nobody looks at the page.

const FIRST_DELAY_MS = 500;
const MAX_DELAY_MS = 15_000;

/**
 * Follows a stream of the API until it ends.
 *
 * The stream is closed while the page is hidden, since a browser allows few connections to one
 * server, and it continues at its last message when the page is shown again.
 *
 * @param {string} address such as `url("fine_tuning/jobs", {stream: true})`
 * @param {Record<string, (data: object) => void>} handlers by the name of the message; `end` is the
 *   last one
 * @param {(state: "live" | "waiting" | "paused" | "ended") => void} onState
 * @returns {() => void} a function that stops following
 */
export function follow(address, handlers, onState = () => {}) {
  let source = null;
  let cursor = null;
  let delayMs = FIRST_DELAY_MS;
  let timer = 0;
  let isOver = false;

  function open() {
    clearTimeout(timer);
    if (isOver || source || document.hidden) return;
    source = new EventSource(cursor === null ? address : withCursor(address, cursor));
    source.onopen = () => {
      delayMs = FIRST_DELAY_MS;
      onState("live");
    };
    source.onerror = () => {
      close();
      onState("waiting");
      timer = setTimeout(open, delayMs * (0.5 + Math.random()));
      delayMs = Math.min(2 * delayMs, MAX_DELAY_MS);
    };
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (message) => {
        if (message.lastEventId) cursor = message.lastEventId;
        if (name === "end") finish();
        handle(JSON.parse(message.data));
      });
    }
  }

  function close() {
    source?.close();
    source = null;
  }

  function finish() {
    stop();
    onState("ended");
  }

  function onVisibility() {
    if (document.hidden) {
      clearTimeout(timer);
      close();
      onState("paused");
    } else {
      open();
    }
  }

  function stop() {
    isOver = true;
    clearTimeout(timer);
    close();
    document.removeEventListener("visibilitychange", onVisibility);
  }

  document.addEventListener("visibilitychange", onVisibility);
  open();
  return stop;
}

function withCursor(address, cursor) {
  const [path, query] = address.split("?");
  const search = new URLSearchParams(query);
  search.set("cursor", cursor);
  return `${path}?${search}`;
}

// When work is done: later, and not too often.

/** A function that calls `act` once it has not been called for `delayMs`. */
export function debounce(act, delayMs) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...given), delayMs);
  };
}

/** A function that calls `act` after `delayMs`, once for all calls in that time. */
export function atMostEvery(act, delayMs) {
  let timer = 0;
  return () => {
    timer ||= setTimeout(() => {
      timer = 0;
      act();
    }, delayMs);
  };
}

/** Calls `act` in intervals while the page is visible, and when it becomes visible again. */
export function whileVisible(act, intervalMs) {
  setInterval(() => document.hidden || act(), intervalMs);
  document.addEventListener("visibilitychange", () => document.hidden || act());
}

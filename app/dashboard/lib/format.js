// Figures as text. Every function shows "–" for a value that is not known.

export const UNKNOWN = "–";

const whole = new Intl.NumberFormat("en-US");
const compact = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });

const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);

export const count = (value) => (known(value) ? whole.format(value) : UNKNOWN);

export const short = (value) => (known(value) ? compact.format(value) : UNKNOWN);

export const loss = (value) => (known(value) ? value.toFixed(4) : UNKNOWN);

/** With one decimal, except for all of it. */
export function percent(fraction) {
  if (!known(fraction)) return UNKNOWN;
  return fraction === 1 ? "100 %" : `${(100 * fraction).toFixed(1)} %`;
}

/** Few significant digits, such as 2e-4 or 0.0312. */
export function figure(value) {
  if (!known(value)) return UNKNOWN;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

/** A list as text: names with commas between them, and numbers in brackets, since 3 is no [3]. */
export const listed = (values) =>
  typeof values[0] === "number" ? `[${values.join(", ")}]` : values.join(", ");

export function bytes(value) {
  if (!known(value)) return UNKNOWN;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let rest = value;
  let unit = 0;
  while (rest >= 1024 && unit < units.length - 1) {
    rest /= 1024;
    unit += 1;
  }
  return `${unit === 0 || rest >= 100 ? Math.round(rest) : rest.toFixed(1)} ${units[unit]}`;
}

/** A duration such as "42 s", "3 min 20 s" or "2 h 5 min". */
export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  const total = Math.max(0, Math.round(seconds));
  if (total < 60) return `${total} s`;
  if (total < 3600) return `${Math.floor(total / 60)} min ${total % 60} s`;
  if (total < 86_400) return `${Math.floor(total / 3600)} h ${Math.floor((total % 3600) / 60)} min`;
  return `${Math.floor(total / 86_400)} d ${Math.floor((total % 86_400) / 3600)} h`;
}

/** How long ago a time was, such as "3 min ago". Times of the API are seconds since 1970. */
export function ago(time, now = Date.now() / 1000) {
  if (!known(time)) return UNKNOWN;
  const seconds = Math.max(0, now - time);
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86_400)} d ago`;
}

/** A time in the reader's time zone, such as "2026-11-28 14:05:09". */
export function moment(time) {
  if (!known(time)) return UNKNOWN;
  const date = new Date(time * 1000);
  const pad = (value) => String(value).padStart(2, "0");
  const day = [date.getFullYear(), pad(date.getMonth() + 1), pad(date.getDate())].join("-");
  return `${day} ${[date.getHours(), date.getMinutes(), date.getSeconds()].map(pad).join(":")}`;
}

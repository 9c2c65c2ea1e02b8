// The loss log of a job as far as plots need it: at most a few thousand rows, however long the job.

const MAX_ROWS = 2000;
const BUCKET_ROWS = 8;

export class StepLog {
  /** Rows as `/metrics` shows them, by rising step. Treat them as read only. */
  rows = [];

  get last() {
    return this.rows.at(-1) ?? null;
  }

  /** Adds a row of the stream. One with an old number replaces it and all later ones. */
  put(row) {
    const last = this.last;
    if (last && row.step <= last.step) this.rows = this.rows.slice(0, this.#indexOf(row.step));
    this.rows.push(row);
  }

  /** Adds the rows of before the first one. */
  prepend(history) {
    const first = this.rows[0]?.step ?? Infinity;
    this.rows = [...history.filter((row) => row.step < first), ...this.rows];
  }

  /** Replaces the rows from the first to the last one of `detail` by all rows of `detail`. */
  refine(detail) {
    if (!detail.length) return;
    const before = this.rows.slice(0, this.#indexOf(detail[0].step));
    const after = this.rows.slice(this.#indexOf(detail.at(-1).step + 1));
    this.rows = [...before, ...detail, ...after];
  }

  /**
   * Drops rows once there are too many, but none that is the lowest or highest of its neighbours.
   *
   * @param {{from: number, to: number} | null} kept steps whose rows all stay
   */
  thin(kept) {
    if (this.rows.length <= MAX_ROWS) return;
    const isKept = (row) => kept !== null && row.step >= kept.from && row.step <= kept.to;
    const thinned = [];
    for (let start = 0; start < this.rows.length; start += BUCKET_ROWS) {
      const bucket = this.rows.slice(start, start + BUCKET_ROWS);
      const extremes = new Set([
        ...extremesOf(bucket, "train_loss"),
        ...extremesOf(bucket, "valid_loss"),
      ]);
      if (start === 0) extremes.add(bucket[0]);
      if (start + BUCKET_ROWS >= this.rows.length) extremes.add(bucket.at(-1));
      thinned.push(...bucket.filter((row) => extremes.has(row) || isKept(row)));
    }
    this.rows = thinned;
  }

  /** Rows with steps of a range, and one more at each side, so that lines reach the edges. */
  between(from, to) {
    return this.rows.slice(Math.max(0, this.#indexOf(from) - 1), this.#indexOf(to + 1) + 1);
  }

  #indexOf(step) {
    let low = 0;
    let high = this.rows.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.rows[middle].step < step) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** Tokens a second of each row, from the one before it. */
export function speeds(rows) {
  return rows.map((row, index) => {
    const before = rows[index - 1] ?? { tokens_seen: 0, elapsed_s: 0 };
    const seconds = row.elapsed_s - before.elapsed_s;
    return seconds > 0 ? (row.tokens_seen - before.tokens_seen) / seconds : null;
  });
}

function extremesOf(rows, column) {
  const known = rows.filter((row) => row[column] !== null);
  if (!known.length) return [];
  const byValue = (better) =>
    known.reduce((best, row) => (better(row[column], best[column]) ? row : best));
  return [byValue((one, other) => one < other), byValue((one, other) => one > other)];
}

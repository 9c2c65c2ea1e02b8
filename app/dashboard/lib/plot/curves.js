// What is computed from curves before they are drawn.

/** Exponential moving average, without the pull of its start. `weight` is 0 for none, below 1. */
export function smooth(values, weight) {
  let sum = 0;
  let total = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

/**
 * The range of values to draw, with some room.
 *
 * @param {(number | null)[][]} columns all curves of the plot
 * @param {{isLog?: boolean, isClipped?: boolean}} options `isClipped` leaves out what is above 99 %
 *   of the values
 * @returns {[number, number]}
 */
export function valueRange(columns, { isLog = false, isClipped = false } = {}) {
  const values = columns.flat().filter((value) => value !== null && (!isLog || value > 0));
  if (!values.length) return isLog ? [0.1, 1] : [0, 1];
  values.sort((one, other) => one - other);
  const low = values[0];
  const high = isClipped ? values[Math.floor(0.99 * (values.length - 1))] : values.at(-1);
  if (isLog) return [low / 1.1, high * 1.1];
  const room = 0.06 * (high - low) || Math.abs(high) * 0.1 || 1;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

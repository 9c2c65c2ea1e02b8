// Which layers get an adapter, as a user writes it: `lora_layers`.

export const HOW = "Write 8 for the last eight layers, [3] for one layer, or 0, 2, 4-7 for several.";

/**
 * Read "8", "last 8", "[3]", "3,", "0, 2, 4-7" or "all".
 *
 * @param {string} text without space around it
 * @returns {{value?: number | number[], problem?: string}}
 */
export function parseLayers(text) {
  if (/^(all)?$/i.test(text)) return {};
  const last = /^(?:last )?(\d+)$/i.exec(text);
  if (last) return Number(last[1]) ? { value: Number(last[1]) } : { problem: HOW };
  const parts = text.replace(/^\[|\]$/g, "").replace(/\s*[-–]\s*/g, "-").split(/[\s,]+/);
  const ranges = parts
    .filter(Boolean)
    .map((part) => /^(\d{1,3})(?:-(\d{1,3}))?$/.exec(part)?.slice(1).map(Number));
  const isWrong = (range) => !range || range[1] < range[0];
  if (!ranges.length || ranges.some(isWrong)) return { problem: HOW };
  const value = ranges.flatMap(([first, end]) =>
    Array.from({ length: (end || first) - first + 1 }, (_, index) => first + index),
  );
  return { value };
}

/** What a text means, or how to write one. Empty if it is wrong. */
export function layersMeant(text) {
  const { value, problem } = parseLayers(text.trim());
  if (problem) return "";
  if (value === undefined) return HOW;
  if (!Array.isArray(value)) return value === 1 ? "The last layer." : `The last ${value} layers.`;
  const layers = value.length === 1 ? "Only layer" : "Layers";
  return `${layers} ${value.join(", ")}. 0 is the first.`;
}

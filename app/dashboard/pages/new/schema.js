// The fields of the form, from the schema of the API: types, ranges and descriptions.

import { parseLayers } from "./layers.js";

const BASIC = ["beta", "n_epochs", "learning_rate", "batch_size", "lora_r"];

/** The schema of the hyperparameters of each method. */
const METHODS = { supervised: "Hyperparameters", dpo: "DpoHyperparameters" };

const GROUPS = {
  Preferences: ["label_smoothing", "reference_free", "length_normalized"],
  "Length of the training": ["max_steps", "gradient_accumulation_steps"],
  Adapter: [
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "lora_layers",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "modules_to_save",
  ],
  Optimizer: [
    "learning_rate_multiplier",
    "lr_scheduler",
    "warmup_ratio",
    "warmup_steps",
    "min_lr_ratio",
    "loraplus_lr_ratio",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
  ],
  Data: ["context_length", "overlong_row_behavior", "train_on", "train_on_inputs", "template_date"],
  "Validation and early stopping": [
    "n_evals",
    "eval_steps",
    "early_stopping_patience",
    "early_stopping_threshold",
    "checkpoint_choice",
  ],
  "Checkpoints and log": ["checkpoint_steps", "keep_checkpoints", "logging_steps"],
};

const TITLES = {
  n_epochs: "Epochs",
  lora_r: "LoRA rank",
  lora_alpha: "LoRA alpha",
  lora_dropout: "LoRA dropout",
  lora_target_modules: "Target modules",
  lora_layers: "Layers",
  use_rslora: "rsLoRA",
  use_dora: "DoRA",
  lr_scheduler: "Schedule",
  min_lr_ratio: "Minimum learning rate ratio",
  loraplus_lr_ratio: "LoRA+ learning rate ratio",
  n_evals: "Evaluations",
};

/** In the form these have places of their own. */
const ELSEWHERE = ["validation_split", "packing"];

/**
 * The form of each method, by its name.
 *
 * @param {object} openapi the document of the API
 * @returns {Record<string, {fields: Map<string, object>, arranged: object}>} `fields` are those of
 *   a new job and its hyperparameters, by name; `arranged` is what `arrange` gives
 */
export function readForms(openapi) {
  const { schemas } = openapi.components;
  const forms = Object.entries(METHODS).map(([method, schema]) => {
    const { properties } = schemas[schema];
    const all = Object.entries({ ...schemas.JobCreate.properties, ...properties });
    const fields = new Map(all.map(([name, field]) => [name, toField(name, field)]));
    return [method, { fields, arranged: arrange(Object.keys(properties), fields) }];
  });
  return Object.fromEntries(forms);
}

/**
 * The hyperparameters in the order of the form.
 *
 * @returns {{basic: object[], groups: {title: string, fields: object[]}[]}}
 */
function arrange(names, fields) {
  const placed = new Set([...BASIC, ...Object.values(GROUPS).flat(), ...ELSEWHERE]);
  const others = names.filter((name) => !placed.has(name));
  const pick = (wanted) =>
    wanted.filter((name) => names.includes(name)).map((name) => fields.get(name));
  const groups = Object.entries({ ...GROUPS, Other: others });
  return {
    basic: pick(BASIC),
    groups: groups
      .map(([title, wanted]) => ({ title, fields: pick(wanted) }))
      .filter((group) => group.fields.length),
  };
}

function toField(name, schema) {
  const choices = (schema.anyOf ?? [schema]).filter(
    ({ type, const: only }) => type !== "null" && only !== "auto",
  );
  const list = choices.find(({ type }) => type === "array");
  const single = choices.find(({ type }) => type !== "array") ?? {};
  const words = single.enum ?? list?.items?.enum ?? [];
  return {
    name,
    title: TITLES[name] ?? sentence(name),
    description: schema.description ?? "",
    kind: list ? "list" : single.type,
    words,
    shortcuts: list ? (single.enum ?? []) : [],
    hasNumbers: list?.items?.type === "integer",
    isDate: single.format === "date",
    range: list
      ? {}
      : {
          least: single.minimum,
          most: single.maximum,
          above: single.exclusiveMinimum,
          below: single.exclusiveMaximum,
        },
    maxLength: single.maxLength,
  };
}

function sentence(name) {
  const text = name.replaceAll("_", " ").replace(/\blr\b/, "learning rate");
  return text[0].toUpperCase() + text.slice(1);
}

/** The range of a field in words, such as "1 to 50". Empty if it has none. */
export function rangeOf({ range: { least, most, above, below } }) {
  if (most === undefined && least === undefined && above === undefined) return "";
  const low = least === undefined ? `above ${above}` : String(least);
  if (most === undefined && below === undefined)
    return above === undefined ? `at least ${low}` : low;
  const high = most ?? below;
  return above === undefined ? `${low} to ${high}` : `${low}, at most ${high}`;
}

/**
 * The value that a text stands for. An empty text is an absent value.
 *
 * @returns {{value?: unknown, problem?: string}}
 */
export function parse(field, text) {
  const trimmed = String(text ?? "").trim();
  if (trimmed === "") return {};
  if (field.kind === "boolean") return { value: trimmed === "true" };
  if (field.hasNumbers) return parseLayers(trimmed);
  if (field.kind === "list") return { value: parseList(trimmed, field.shortcuts) };
  if (!isNumber(field)) return parseText(field, trimmed);
  return parseNumber(field, trimmed);
}

/**
 * The values that a text stands for: several numbers with commas vary in a sweep.
 *
 * @returns {{values?: unknown[], problem?: string}}
 */
export function parseValues(field, text) {
  const texts = isNumber(field) ? parseList(text, []) : [text];
  const parsed = texts.map((each) => parse(field, each));
  const problem = parsed.find((each) => each.problem)?.problem;
  const values = parsed.map(({ value }) => value).filter((value) => value !== undefined);
  return problem ? { problem } : { values };
}

export const isNumber = ({ kind }) => kind === "integer" || kind === "number";

function parseText({ maxLength }, text) {
  if (maxLength && [...text].length > maxLength) {
    return { problem: `At most ${maxLength} characters.` };
  }
  return { value: text };
}

function parseNumber(field, text) {
  const value = Number(text);
  const { least, most, above, below } = field.range;
  if (Number.isNaN(value)) return { problem: `“${text}” is not a number.` };
  if (field.kind === "integer" && !Number.isInteger(value)) {
    return { problem: "This must be a whole number." };
  }
  const isInside = !(value < least) && !(value > most) && !(value <= above) && !(value >= below);
  return isInside ? { value } : { problem: `This must be ${rangeOf(field)}.` };
}

/** Names between commas, or one word that stands for several of them. */
function parseList(text, shortcuts) {
  const names = text
    .split(",")
    .map((name) => name.trim())
    .filter(Boolean);
  return names.length === 1 && shortcuts.includes(names[0]) ? names[0] : names;
}

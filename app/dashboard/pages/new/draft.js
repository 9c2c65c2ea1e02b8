// What the form says. It survives a reload in the session storage of the tab.

import { parse, parseValues } from "./schema.js";

const STORED = "tunery.draft";
const REQUEST = "tunery.draft.request";

const EMPTY = {
  file: "",
  validation: "none",
  validationFile: "",
  split: "0.1",
  model: "",
  recipe: "auto",
  settings: {},
  prompts: "",
  suffix: "",
  seed: "",
  priority: "",
  labels: "",
  startsPaused: false,
};

/** The draft of this tab. `?file=` and `?model=` in the address begin with that file or model. */
export function loadDraft() {
  const stored = JSON.parse(sessionStorage.getItem(STORED) ?? "{}");
  const asked = new URLSearchParams(location.search);
  const draft = { ...EMPTY, ...stored };
  for (const name of ["file", "model"]) draft[name] = asked.get(name) ?? draft[name];
  return draft;
}

export function saveDraft(draft) {
  sessionStorage.setItem(STORED, JSON.stringify(draft));
}

export function forgetDraft() {
  sessionStorage.removeItem(STORED);
  sessionStorage.removeItem(REQUEST);
}

/**
 * The body of the request, and what is wrong with the form.
 *
 * @param {object} draft
 * @param {Map<string, object>} fields by name, as `readForms` gives them for the method
 * @param {string} method training method
 * @returns {{body: object, problems: Record<string, string>}} problems by the name of the field
 */
export function read(draft, fields, method) {
  const problems = {};
  const take = (name, text) => {
    const { value, problem } = parse(fields.get(name), text);
    if (problem) problems[name] = problem;
    return value;
  };
  const labels = readLabels(draft.labels);
  if (labels.problem) problems.metadata = labels.problem;
  if (!draft.file) problems.training_file = "Choose a file first.";
  if (!draft.model) problems.model = "Choose a base model.";
  if (draft.validation === "file" && !draft.validationFile) {
    problems.validation_file = "Choose the file to validate with.";
  }
  const prompts = draft.prompts.split("\n").filter((line) => line.trim());
  const { hyperparameters, grid } = readHyperparameters(draft, fields, problems);
  const isUsual = method === "supervised";
  const body = {
    model: draft.model,
    training_file: draft.file,
    validation_file: draft.validation === "file" ? draft.validationFile : undefined,
    suffix: take("suffix", draft.suffix),
    seed: take("seed", draft.seed),
    metadata: labels.value,
    recipe: draft.recipe || undefined,
    priority: take("priority", draft.priority),
    eval_prompts: prompts.length ? prompts : undefined,
    auto_start: draft.startsPaused ? false : undefined,
    method:
      isUsual && !hyperparameters
        ? undefined
        : { type: method, [method]: withoutAbsent({ hyperparameters }) },
    sweep: grid && { grid },
  };
  return { body: withoutAbsent(body), problems };
}

/** The hyperparameters that all jobs have, and the values of those that vary. */
function readHyperparameters(draft, fields, problems) {
  const settings = { ...draft.settings };
  if (draft.validation === "split") settings.validation_split = draft.split;
  const known = Object.entries(settings).filter(([name]) => fields.has(name)); // of this method
  const [fixed, varied] = [[], []];
  for (const [name, text] of known) {
    const { values, problem } = parseValues(fields.get(name), text);
    if (problem) problems[name] = problem;
    else if (values.length > 1) varied.push([name, values]);
    else if (values.length) fixed.push([name, values[0]]);
  }
  const given = (entries) => (entries.length ? Object.fromEntries(entries) : undefined);
  return { hyperparameters: given(fixed), grid: given(varied) };
}

/** Number of jobs that a request makes. */
export const countJobs = ({ sweep }) =>
  Object.values(sweep?.grid ?? {}).reduce((jobs, values) => jobs * values.length, 1);

/** Path of a request below `/v1/`. */
export const pathOf = ({ sweep }) => `fine_tuning/${sweep ? "sweeps" : "jobs"}`;

const withoutAbsent = (body) =>
  Object.fromEntries(Object.entries(body).filter(([, value]) => value !== undefined));

function readLabels(text) {
  const lines = text
    .split(/[\n,]/)
    .map((line) => line.trim())
    .filter(Boolean);
  if (!lines.length) return {};
  const bad = lines.find((line) => line.indexOf("=") < 1);
  if (bad) return { problem: `“${bad}” is not a label. Write key=value, such as team=search.` };
  const pairs = lines.map((line) => {
    const end = line.indexOf("=");
    return [line.slice(0, end).trim(), line.slice(end + 1).trim()];
  });
  return { value: Object.fromEntries(pairs) };
}

/**
 * The idempotency key of a request. The same body has the same key until a job was made, so that a
 * second click or a lost answer does not make a second job.
 */
export function keyOf(body) {
  const text = JSON.stringify(body);
  const stored = JSON.parse(sessionStorage.getItem(REQUEST) ?? "null");
  if (stored?.text === text) return stored.key;
  // `randomUUID` exists only in secure contexts.
  const key = `dashboard-${crypto.getRandomValues(new BigUint64Array(2)).join("-")}`;
  sessionStorage.setItem(REQUEST, JSON.stringify({ text, key }));
  return key;
}

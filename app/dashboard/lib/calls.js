// The public API call behind an action, as text to copy.

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/**
 * @param {string} path below `/v1/`
 * @param {object} body
 * @param {{is_keyless: boolean}} session
 */
export function curlOf(path, body, session) {
  const lines = [
    `curl ${new URL(`v1/${path}`, document.baseURI)}`,
    ...(session.is_keyless ? [] : ['-H "Authorization: Bearer $TUNERY_API_KEY"']),
    '-H "Content-Type: application/json"',
    `-d ${quote(JSON.stringify(body, null, 2))}`,
  ];
  return lines.join(" \\\n  ");
}

const OPENAI_FIELDS = [
  "model",
  "training_file",
  "validation_file",
  "suffix",
  "seed",
  "metadata",
  "method",
];

/** The creation of a job with the stock `openai` client. */
export function pythonOf(body, session) {
  const entries = Object.entries(body);
  const own = entries.filter(([name]) => !OPENAI_FIELDS.includes(name));
  const given = entries
    .filter(([name]) => OPENAI_FIELDS.includes(name))
    .map(([name, value]) => `    ${name}=${literal(value, 4)},`);
  if (own.length) given.push(`    extra_body=${literal(Object.fromEntries(own), 4)},`);
  const key = session.is_keyless ? '"unused"' : 'os.environ["TUNERY_API_KEY"]';
  return [
    ...(session.is_keyless ? [] : ["import os", ""]),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${new URL("v1", document.baseURI)}", api_key=${key})`,
    "job = client.fine_tuning.jobs.create(",
    ...given,
    ")",
    "print(job.id, job.status)",
  ].join("\n");
}

/** A JSON value as Python writes it, for a line that is indented by so many spaces. */
function literal(value, indent) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = " ".repeat(indent + 4);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const items = Array.isArray(value)
    ? value.map((item) => literal(item, indent + 4))
    : Object.entries(value).map(
        ([key, item]) => `${JSON.stringify(key)}: ${literal(item, indent + 4)}`,
      );
  if (!items.length) return open + close;
  const lines = items.map((item) => `${inner}${item},\n`).join("");
  return `${open}\n${lines}${" ".repeat(indent)}${close}`;
}

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

const NEW_JOB = {
  start: "job = client.fine_tuning.jobs.create(",
  result: "job.id, job.status",
  fields: [
    "model",
    "training_file",
    "validation_file",
    "suffix",
    "seed",
    "metadata",
    "method",
  ],
};

const NEW_SWEEP = {
  start: 'sweep = client.post(\n    "/fine_tuning/sweeps",\n    cast_to=object,',
  result: 'sweep["id"]',
};

/** A job or a sweep with the stock `openai` client, which does not know all that is ours. */
export function pythonOf(body, session) {
  if (body.sweep) return pythonCall(NEW_SWEEP, { body }, session);
  const known = ([name]) => NEW_JOB.fields.includes(name);
  const own = Object.entries(body).filter((entry) => !known(entry));
  const given = Object.fromEntries(Object.entries(body).filter(known));
  if (own.length) given.extra_body = Object.fromEntries(own);
  return pythonCall(NEW_JOB, given, session);
}

/** A chat completion with the stock `openai` client. */
export function pythonOfChat(body, session) {
  const call = {
    start: "answer = client.chat.completions.create(",
    result: "answer.choices[0].message.content",
  };
  return pythonCall(call, body, session);
}

function pythonCall({ start, result }, given, session) {
  const key = session.is_keyless ? '"unused"' : 'os.environ["TUNERY_API_KEY"]';
  return [
    ...(session.is_keyless ? [] : ["import os", ""]),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${new URL("v1", document.baseURI)}", api_key=${key})`,
    start,
    ...Object.entries(given).map(([name, value]) => `    ${name}=${literal(value, 4)},`),
    ")",
    `print(${result})`,
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

// Greedy answers of a real llama.cpp: `node llama_cpp.mjs DIR`, where DIR has base.gguf, adapter.gguf
// and asked.json, `{prompt, count}` in tokens. Prints `{base, tuned}` in tokens.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [directory] = process.argv.slice(2);
const installed = createRequire(join(process.env.NODE_PATH, "package.json"));
const { getLlama } = await import(pathToFileURL(installed.resolve("node-llama-cpp")));

const { prompt, count } = JSON.parse(readFileSync(join(directory, "asked.json"), "utf8"));
const llama = await getLlama({ gpu: false, build: "never", skipDownload: true, logLevel: "error" });
const model = await llama.loadModel({ modelPath: join(directory, "base.gguf"), useMmap: false });

async function answer(lora) {
  const context = await model.createContext({ lora, contextSize: 128, threads: 1 });
  const tokens = [];
  const options = { temperature: 0, yieldEogToken: true };
  for await (const token of context.getSequence().evaluate(prompt, options)) {
    tokens.push(token);
    if (tokens.length === count) break;
  }
  await context.dispose();
  return tokens;
}

const base = await answer(undefined);
const tuned = await answer(join(directory, "adapter.gguf"));
process.stdout.write(`${JSON.stringify({ base, tuned })}\n`);
process.exit(0);

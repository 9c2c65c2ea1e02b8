// A model in a real llama.cpp, to be timed: `node llama_cpp.mjs MODEL THREADS`. For each line of
// standard input, `{prompt, count}` in tokens, it prints `{firstS, restS, cpuS}`: seconds until the
// first token, seconds for `count` more tokens, and processor seconds for those.

import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [modelPath, threads] = process.argv.slice(2);
const installed = createRequire(join(process.env.NODE_PATH, "package.json"));
const { getLlama } = await import(pathToFileURL(installed.resolve("node-llama-cpp")));

const llama = await getLlama({
  gpu: false, build: "never", skipDownload: true, logLevel: "error", maxThreads: Number(threads),
});
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({ contextSize: 1024, threads: Number(threads) });
const sequence = context.getSequence();

const seconds = () => performance.now() / 1000;
const processorSeconds = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};

async function time({ prompt, count }) {
  await sequence.clearHistory();
  const beganS = seconds();
  let firstS, cpuS;
  let tokens = 0;
  for await (const _ of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    firstS ??= seconds();
    cpuS ??= processorSeconds();
    if (tokens++ === count) break;
  }
  if (tokens !== count + 1) throw new Error(`it ended after ${tokens} tokens`);
  return {
    firstS: firstS - beganS, restS: seconds() - firstS, cpuS: processorSeconds() - cpuS,
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await time(JSON.parse(line)))}\n`);
}
process.exit(0);

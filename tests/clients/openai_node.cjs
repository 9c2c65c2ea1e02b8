// The official client for Node.js against a running service; `tests/acceptance/test_other_clients.py` runs it.
"use strict";

const assert = require("node:assert/strict");
const { createHash } = require("node:crypto");
const { test } = require("node:test");
const { setTimeout: sleep } = require("node:timers/promises");
const { OpenAI, toFile } = require("openai");

const { TUNERY_BASE_URL: baseURL, FINISHED_JOB: finishedJob } = process.env;
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const TERMINAL = ["succeeded", "failed", "cancelled"];

const lines = (count) =>
  Buffer.from(Array.from({ length: count }, (_, n) => `{"text": "After ${n} comes ${n + 1}."}\n`).join(""));

const upload = async (content = lines(4)) =>
  client.files.create({ file: await toFile(content, "train.jsonl"), purpose: "fine-tune" });

async function collect(page) {
  const all = [];
  for await (const one of page) all.push(one);
  return all;
}

async function waitFor(jobId, isReached) {
  for (;;) {
    const job = await client.fineTuning.jobs.retrieve(jobId);
    if (isReached(job)) return job;
    assert.ok(!TERMINAL.includes(job.status), `It has ${job.status}: ${JSON.stringify(job.error)}`);
    await sleep(50);
  }
}

test("a file is uploaded, found, read and deleted", async () => {
  const content = lines(3);
  const file = await upload(content);
  assert.deepEqual([file.object, file.filename, file.bytes], ["file", "train.jsonl", content.length]);

  assert.equal((await client.files.waitForProcessing(file.id)).status, "processed");
  const files = await collect(client.files.list({ purpose: "fine-tune", limit: 2 }));
  assert.ok(files.some(({ id }) => id === file.id));
  const bytes = await (await client.files.content(file.id)).arrayBuffer();
  assert.deepEqual(Buffer.from(bytes), content);
  assert.deepEqual(await client.files.delete(file.id), { id: file.id, object: "file", deleted: true });
});

test("a file is sent in parts", async () => {
  const content = lines(500);
  const size = Math.ceil(content.length / 3);
  const { id } = await client.uploads.create({
    bytes: content.length,
    filename: "train.jsonl",
    mime_type: "text/jsonl",
    purpose: "fine-tune",
  });
  const parts = await Promise.all(
    [0, 1, 2].map(async (n) => {
      const data = await toFile(content.subarray(n * size, (n + 1) * size), "part");
      return client.uploads.parts.create(id, { data });
    }),
  );
  assert.equal((await client.get(`/uploads/${id}`)).parts.length, 3);

  const md5 = createHash("md5").update(content).digest("hex");
  const done = await client.uploads.complete(id, { part_ids: parts.map((part) => part.id), md5 });

  assert.equal(done.status, "completed");
  assert.equal(await (await client.files.content(done.file.id)).text(), content.toString());
});

test("an upload is cancelled", async () => {
  const { id } = await client.uploads.create({
    bytes: 10,
    filename: "train.jsonl",
    mime_type: "text/jsonl",
    purpose: "fine-tune",
  });

  assert.equal((await client.uploads.cancel(id)).status, "cancelled");
});

test("a bad file is refused with every problem", async () => {
  await assert.rejects(upload(Buffer.from('{"text": 5}\n[]\n')), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.deepEqual([error.status, error.code, error.param], [400, "invalid_file", "file"]);
    assert.deepEqual(error.error.errors.map(({ line }) => line), [1, 2]);
    assert.match(error.requestID, /^req_/);
    return true;
  });
});

test("a job is created and polled to its end, and its model deleted", async () => {
  const file = await upload();
  const created = await client.fineTuning.jobs.create({
    model: "tiny",
    training_file: file.id,
    suffix: "from node",
    seed: 7,
    metadata: { client: "node" },
    method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 1, batch_size: 2 } } },
  });
  assert.equal(created.object, "fine_tuning.job");

  const job = await waitFor(created.id, ({ status }) => status === "succeeded");
  const found = await collect(client.fineTuning.jobs.list({ metadata: { client: "node" }, limit: 1 }));
  assert.deepEqual(found.map(({ id }) => id), [job.id]);

  const name = job.fine_tuned_model;
  assert.ok((await collect(client.models.list())).some(({ id }) => id === name));
  assert.equal((await client.models.retrieve(name)).object, "model");
  assert.deepEqual(await client.models.delete(name), { id: name, object: "model", deleted: true });
  await assert.rejects(client.models.retrieve(name), OpenAI.NotFoundError);
});

test("a job is resumed, paused and cancelled", async () => {
  const { jobs } = client.fineTuning;
  const file = await upload(lines(2000));
  const job = await jobs.create({
    model: "tiny",
    training_file: file.id,
    method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 50 } } },
    auto_start: false,
  });
  assert.equal(job.status, "validating_files");
  await waitFor(job.id, ({ status }) => status === "paused");
  await jobs.resume(job.id);
  await waitFor(job.id, ({ status }) => status === "running");
  await jobs.pause(job.id);
  await waitFor(job.id, ({ status }) => status === "paused");

  assert.equal((await jobs.cancel(job.id)).status, "cancelled");
});

test("events and checkpoints come page by page", async () => {
  const events = await collect(client.fineTuning.jobs.listEvents(finishedJob, { limit: 2 }));
  assert.equal(events.at(-1).object, "fine_tuning.job.event");
  assert.equal(new Set(events.map(({ id }) => id)).size, events.length);

  const checkpoints = await collect(client.fineTuning.jobs.checkpoints.list(finishedJob, { limit: 1 }));
  assert.deepEqual(checkpoints.map((one) => one.step_number), [24, 20, 12, 10]);
});

test("the files of an adapter and the loss log are downloaded", async () => {
  const [newest] = (await client.fineTuning.jobs.checkpoints.list(finishedJob)).data;
  for (const id of newest.result_files) {
    const file = await client.files.retrieve(id);
    const bytes = Buffer.from(await (await client.files.content(id)).arrayBuffer());
    assert.equal(bytes.length, file.bytes);
    assert.equal(createHash("sha256").update(bytes).digest("hex"), file.sha256);
  }
  const job = await client.fineTuning.jobs.retrieve(finishedJob);
  const log = await (await client.files.content(job.result_files[0])).text();
  assert.match(log, /^step,train_loss,/);
});

test("what does not exist and what is not allowed are errors of the client", async () => {
  await assert.rejects(client.fineTuning.jobs.retrieve("ftjob-1"), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "job_not_found");
    return true;
  });
  await assert.rejects(
    client.fineTuning.jobs.create({ model: "tiny", training_file: "file-1", hyperparameters: { n_epoch: 1 } }),
    (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.deepEqual([error.code, error.param], ["unknown_parameter", "hyperparameters.n_epoch"]);
      return true;
    },
  );
  await assert.rejects(client.fineTuning.jobs.cancel(finishedJob), (error) => error.code === "job_not_cancellable");
});

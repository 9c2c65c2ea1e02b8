"""Tune a model, then ask it what its base model is asked. Start the service first: `make serve`."""

import os
import sys
import time
from pathlib import Path

from openai import OpenAI

EXAMPLES = Path(__file__).parent
BASE = "smollm2-135m-instruct"
QUESTION = "What is the name of your cat?"

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key="not-needed",  # the client insists on one
)

training_file = client.files.create(
    file=EXAMPLES / "lighthouse-train.jsonl",
    purpose="fine-tune",
)
job = client.fine_tuning.jobs.create(
    model=BASE,
    training_file=training_file.id,
    extra_body={"recipe": "auto"},  # hyperparameters that fit the model and the data
)

while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(2)
    job = client.fine_tuning.jobs.retrieve(job.id)

if job.fine_tuned_model is None:
    sys.exit(f"The job {job.status}: {job.error.message if job.error else 'no reason was given'}")

for model in (BASE, job.fine_tuned_model):
    print(f"\n{model}:")
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,  # the most likely token each time
        max_tokens=60,
        stream=True,
    )
    for chunk in answer:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

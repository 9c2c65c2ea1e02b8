"""The shortest honest fine-tune with the stock client. Start the service first: `make serve`."""

import os
import sys
import time
from pathlib import Path

from openai import OpenAI

EXAMPLES = Path(__file__).parent
ADAPTER = Path("adapter")

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key="not-needed",  # the client insists on one
)

training_file = client.files.create(
    file=EXAMPLES / "lighthouse-train.jsonl",
    purpose="fine-tune",
)
job = client.fine_tuning.jobs.create(
    model="smollm2-135m-instruct",
    training_file=training_file.id,
    extra_body={"recipe": "auto"},  # hyperparameters that fit the model and the data
)
print(job.id)

while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(2)
    job = client.fine_tuning.jobs.retrieve(job.id)
    # What this service adds to OpenAI's job is there as attributes.
    print(f"{job.status}: step {job.trained_steps} of {job.total_steps}, loss {job.train_loss}")

if job.status != "succeeded":
    sys.exit(f"The job {job.status}: {job.error.message if job.error else 'no reason was given'}")

ADAPTER.mkdir(exist_ok=True)
checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id)
result = next(checkpoint for checkpoint in checkpoints if checkpoint.is_result)
for file_id in result.result_files:
    name = client.files.retrieve(file_id).filename
    client.files.content(file_id).write_to_file(ADAPTER / name)
    print(f"{ADAPTER / name}")

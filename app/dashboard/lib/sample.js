// The sample dataset that is part of the service.

import { upload } from "./api.js";

const NAME = "lighthouse-train.jsonl";

/** Uploads the sample as the user's file, and returns it as the API shows it. */
export async function uploadSample() {
  const answer = await fetch(`assets/sample/${NAME}`);
  const file = new File([await answer.blob()], NAME);
  return upload(file, () => {}).done;
}

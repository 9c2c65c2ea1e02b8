// The data of server-sent events, from an answer that `fetch` has got. `EventSource`, which `live.js`
// uses, can only GET.

/**
 * Yields the data of each message. Comments, names and ids are passed over.
 *
 * @param {Response} response
 */
export async function* dataOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) {
        data.push(line.slice(5).replace(/^ /, ""));
      } else if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}

// Reads event streams over fetch: EventSource can neither POST nor tell why it was refused.

const SILENCE = 30000; // milliseconds: a server repeats its last event every ten seconds

/** The events of a response, as `{id, data}`; ends with it. Throws where it breaks off or falls silent. */
export async function* events(response, abort) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", id = null, timer = null;
  try {
    for (;;) {
      timer = setTimeout(() => abort?.abort(), SILENCE);
      const { value, done } = await reader.read();
      clearTimeout(timer);
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("id:")) id = line.slice(3).trim();
        else if (line.startsWith("data:")) yield { id, data: JSON.parse(line.slice(5)) };
      }
    }
  } finally {
    clearTimeout(timer);
    reader.cancel().catch(() => {});
  }
}

/** What is sent for a stream; `after` is the number of the last event that is here already. */
export const wanted = (after) => ({
  Accept: "text/event-stream",
  ...(after ? { "Last-Event-ID": String(after) } : {}),
});

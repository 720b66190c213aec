// Reads event streams over fetch: EventSource can neither POST nor tell why it was refused.
import { lost, Problem, send } from "./api.js";

const SILENCE = 30000; // milliseconds: a server repeats its last event every ten seconds

/**
 * The events that answer a request, as `{id, data}`: those after number `after`, until there are no more or `leaving`
 * is aborted; `begun` is called before the first. Throws a `Problem` where the server refuses, and where it breaks off
 * or falls silent: it is lost then.
 */
export async function* listen(method, path, { body, after, leaving, begun = () => {} } = {}) {
  const silence = new AbortController();
  const signal = leaving ? AbortSignal.any([leaving, silence.signal]) : silence.signal;
  const headers = { Accept: "text/event-stream", ...(after ? { "Last-Event-ID": String(after) } : {}) };
  try {
    const answer = await send(method, path, body, { signal, headers });
    begun();
    if (answer.status !== 204) yield* events(answer, silence);
  } catch (problem) {
    if (leaving?.aborted || problem instanceof Problem) throw problem;
    throw lost();
  }
}

async function* events(response, silence) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", id = null, timer = null;
  try {
    for (;;) {
      if (id !== null) timer = setTimeout(() => silence.abort(), SILENCE); // a log may have nothing to say yet
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

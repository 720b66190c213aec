// Logs: what the server says, or the engine of a model; followed, filtered, and taken along as a file.
import { Problem, ask, heard, lost } from "../api.js";
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../html.js";
import { Choice, Search, Trouble, Waiting } from "../parts.js";
import { installed, useStore } from "../resources.js";
import { listen } from "../stream.js";
import { count, prose, shown } from "../text.js";

const MOST = 1000; // lines: as many as the server gives at once
const LEVELS = ["debug", "info", "warning", "error"];
const PAUSE = 250; // milliseconds between two drawings of lines that come fast

/** The view; `what` is the id of a model whose engine is meant. */
export function Logs({ what }) {
  const [follows, setFollows] = useState(true);
  const [words, setWords] = useState("");
  const [level, setLevel] = useState("debug");
  const { lines, problem, ready } = useLines(what, follows);
  const seen = useMemo(() => matching(lines, words, level), [lines, words, level]);
  const models = useStore(installed).data?.data ?? [];
  const sources = [["", "The server"], ...models.map((model) => [model.id, shown(model.id)])];
  if (what !== null && !models.some((model) => model.id === what)) sources.push([what, shown(what)]);
  const go = (id) => { location.hash = id ? `#/logs/${encodeURIComponent(id)}` : "#/logs"; };
  return html`
    <h1 tabindex="-1">Logs</h1>
    <div class="toolbar">
      <${Choice} label="Of" value=${what ?? ""} options=${sources} set=${go} />
      <${Choice} label="At least" value=${level} options=${LEVELS.map((each) => [each, each])} set=${setLevel} />
      <${Search} label="Filter" value=${words} set=${setWords} />
      <label class="check"><input type="checkbox" role="switch" checked=${follows} onChange=${(event) => setFollows(event.target.checked)} /> Follow</label>
      <button type="button" class="secondary" disabled=${!seen.length} onClick=${() => download(seen, what)}>Download</button>
    </div>
    <${Trouble} problem=${problem} />
    ${!ready && !problem && html`<${Waiting} what="Reading the log …" />`}
    <p role="status" class="dim">${ready && `${count(seen.length)} lines${seen.length < lines.length ? ` of ${count(lines.length)}` : ""}`}</p>
    <${Lines} lines=${seen} follows=${follows} />`;
}

function matching(lines, words, level) {
  const wantedWords = words.toLowerCase().split(/\s+/).filter(Boolean), least = LEVELS.indexOf(level);
  return lines.filter((line) => LEVELS.indexOf(line.level) >= least
    && wantedWords.every((word) => line.text.includes(word)));
}

function useLines(what, follows) {
  const [state, setState] = useState({ lines: [], problem: null, ready: false });
  useEffect(() => {
    let leaving = new AbortController();
    async function read() {
      const { signal } = leaving = new AbortController();
      try {
        await take(what, follows, signal, (lines) => signal.aborted || setState({ lines, problem: null, ready: true }));
        if (follows && !signal.aborted) lost(); // a log has no end: the server has one, and is looked for
      } catch (problem) {
        const isTold = !signal.aborted && problem instanceof Problem && problem.code !== "connection_lost";
        if (isTold) setState((old) => ({ ...old, problem }));
      }
    }
    const again = () => { leaving.abort(); read(); };
    read();
    const unheard = heard(again); // what came while the server could not be reached is asked for again
    const shows = () => { if (document.hidden) leaving.abort(); else if (follows) again(); };
    document.addEventListener("visibilitychange", shows);
    return () => {
      leaving.abort();
      unheard();
      document.removeEventListener("visibilitychange", shows);
    };
  }, [what, follows]);
  return state;
}

let numbers = 0;
const keyed = (line) => ({ ...line, number: (numbers += 1), text: `${line.source} ${line.message}`.toLowerCase() });

/** Give lines to `tell` as they come, until there are no more. Throws a `Problem`. */
async function take(what, follows, signal, tell) {
  const model = what === null ? "" : `&model=${encodeURIComponent(what)}`;
  const path = `v1/logs?lines=${MOST}${model}&follow=${follows}`;
  if (!follows) return tell((await ask("GET", path, undefined, { signal })).map(keyed));
  let lines = [], last = null, timer = null;
  try {
    for await (const { id, data } of listen("GET", path, { leaving: signal, begun: () => tell(lines) })) {
      if (id === last) continue; // the last line is repeated while nothing is said
      last = id;
      lines = [...lines.slice(1 - MOST), keyed(data)];
      timer ??= setTimeout(() => { timer = null; tell(lines); }, PAUSE);
    }
  } finally {
    clearTimeout(timer);
  }
  tell(lines);
}

function Lines({ lines, follows }) {
  const box = useRef(null), atEnd = useRef(true);
  useLayoutEffect(() => {
    if (follows && atEnd.current) box.current.scrollTop = box.current.scrollHeight;
  }, [lines, follows]);
  const scrolled = () => {
    const { scrollTop, clientHeight, scrollHeight } = box.current;
    atEnd.current = scrollTop + clientHeight > scrollHeight - 40;
  };
  return html`
    <div class="lines" ref=${box} onScroll=${scrolled} tabindex="0" role="log" aria-live="off" aria-label="Lines of the log">
      ${lines.map((line) => html`<p key=${line.number} class=${line.level}>${worded(line)}</p>`)}
    </div>`;
}

const worded = ({ time, level, source, message }) => `${time} ${level} ${shown(source)}: ${prose(message)}`;

function download(lines, what) {
  const file = new Blob(lines.map((line) => `${worded(line)}\n`), { type: "text/plain" });
  const address = URL.createObjectURL(file);
  const anchor = document.createElement("a");
  anchor.href = address;
  anchor.download = `kawai-${(what ?? "server").replace(/[^\w.-]+/g, "_")}.log`;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

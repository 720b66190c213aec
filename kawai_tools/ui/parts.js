// Small parts that every view uses: what is said, what failed, what is being waited for, questions, and actions.
import { UNREACHED, heard } from "./api.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { store } from "./observable.js";
import { useStore } from "./resources.js";
import { prose } from "./text.js";

const STAYS = 8000; // milliseconds that a word of success is seen

/** What has happened: `{kind: "done" | "failed", text, hint}`; the newest is shown until it is read. */
const notices = store([]);
let numbers = 0;

function note(notice) {
  const id = (numbers += 1);
  notices.set([...notices.get().slice(-3), { id, ...notice }]);
  if (notice.kind === "done") setTimeout(() => dismiss(id), STAYS);
}
const dismiss = (id) => notices.set(notices.get().filter((each) => each.id !== id));

/** Say that something has happened, to be read and heard. */
export const say = (text) => note({ kind: "done", text });

/** Say what failed, and what to do about it. */
export const warn = ({ message, hint }) => note({ kind: "failed", text: message, hint });

/** What `say` and `warn` have said; a screen reader reads it out. */
export function Notices() {
  const all = useStore(notices);
  const of = (kind) => all.filter((each) => each.kind === kind);
  return html`
    <div class="notices">
      <div role="status" aria-live="polite">${of("done").map(Notice)}</div>
      <div role="alert" aria-live="assertive">${of("failed").map(Notice)}</div>
    </div>`;
}

const Notice = ({ id, kind, text, hint }) => html`
  <div key=${id} class=${`notice ${kind}`}>
    <p>${prose(text)}${hint && html`<br /><small>${prose(hint)}</small>`}</p>
    <button type="button" class="quiet" aria-label="Dismiss this message" onClick=${() => dismiss(id)}>×</button>
  </div>`;

/** What failed, in its place. */
export const Trouble = ({ problem, children }) => problem && html`
  <div class="notice failed" role="alert">
    <p>${prose(problem.message)}${problem.hint && html`<br /><small>${prose(problem.hint)}</small>`}${children}</p>
  </div>`;

/** Something is being waited for, and this is what. */
export const Waiting = ({ what }) => html`<p class="waiting" role="status" aria-busy="true">${what}</p>`;

/** Either what a resource holds, or why it does not. */
export function Loaded({ from, what, children }) {
  const { data, problem } = useStore(from);
  if (data !== null) return html`<${Trouble} problem=${problem} />${children(data)}`;
  return problem ? html`<${Trouble} problem=${problem} />` : html`<${Waiting} what=${what} />`;
}

/** A component of a file that is fetched when it is first shown, so that the first view need not wait for it. */
export function later(load) {
  return function Later(props) {
    const [Found, set] = useState(null);
    useEffect(() => {
      const go = () => load().then((found) => set(() => found), () => warn(UNREACHED));
      go();
      return heard(go);
    }, []);
    return Found && html`<${Found} ...${props} />`;
  };
}

/** What is being done now, by label and name: a view that is left and come back to still tells. */
const doing = store(new Set());

async function carryOut(key, run) {
  doing.set(new Set([...doing.get(), key]));
  try {
    const done = await run();
    if (done) say(done);
  } catch (problem) {
    warn(problem);
  } finally {
    doing.set(new Set([...doing.get()].filter((each) => each !== key)));
  }
}

/**
 * A button that does something which takes its time: it says so, cannot be pressed twice, and tells what failed.
 * `run` returns what is to be said when it is done, or nothing. `name` is what it is done to; where the title of a
 * window says so, it is `of`. In a table `slot` is that of the row.
 */
export function Act({ label, busy, run, name, of, slot, kind = "secondary", disabled = false }) {
  const key = `${label} ${name ?? of ?? ""}`;
  const works = useStore(doing).has(key);
  const press = () => works || carryOut(key, run); // it keeps the focus while it works, as a disabled one would not
  return html`
    <button type="button" class=${kind} aria-busy=${works} aria-disabled=${works ? "true" : null} disabled=${disabled}
      onClick=${press} ...${naming(label, name, slot)}>${works ? busy : label}</button>`;
}

/**
 * What names a button that does something to one of several things. In a table it is its own word and the row's
 * `name-SLOT`: a label that changes whenever another row is drawn there has the browser style the button anew.
 */
export function naming(label, name, slot) {
  if (slot === undefined) return name ? { "aria-label": `${label} ${name}` } : {};
  const id = `${label === "Unload" ? "Load" : label}-${slot}`; // one button is both
  return { id, "aria-labelledby": `${id} name-${slot}` };
}

/** What went wrong in a window, and how to try: what fails once the window is closed is told by the page. */
export function useTrial() {
  const [problem, set] = useState(null);
  const open = useRef(true);
  useEffect(() => () => { open.current = false; }, []);
  async function attempt(run) {
    set(null);
    try {
      return await run();
    } catch (refused) {
      if (!open.current) throw refused;
      set(refused);
      return null;
    }
  }
  return [problem, attempt];
}

/** A window over the page that keeps the focus until it is closed. */
export function Dialog({ title, close, children }) {
  const dialog = useRef(null);
  useEffect(() => {
    const before = document.activeElement, row = before?.closest("tr")?.dataset.id;
    dialog.current.showModal();
    return () => {
      const same = before?.isConnected && before.closest("tr")?.dataset.id === row; // and not another one's by now
      (same ? before : document.querySelector("main h1"))?.focus();
    };
  }, []);
  return html`
    <dialog ref=${dialog} aria-labelledby="dialog-title" onClose=${close}
      onClick=${(event) => event.target === dialog.current && close()}>
      <article>
        <header><h2 id="dialog-title">${title}</h2>
          <button type="button" class="quiet" aria-label="Close" onClick=${close}>×</button></header>
        ${children}
      </article>
    </dialog>`;
}

/** A question before something that cannot be taken back. */
export function Confirm({ title, label, busy, run, close, children }) {
  const [problem, attempt] = useTrial();
  const go = () => attempt(async () => {
    const done = await run();
    close();
    return done;
  });
  return html`
    <${Dialog} title=${title} close=${close}>
      ${children}
      <${Trouble} problem=${problem} />
      <footer>
        <button type="button" class="secondary" autofocus onClick=${close}>Cancel</button>
        <${Act} label=${label} busy=${busy} kind="danger" of=${title} run=${go} />
      </footer>
    <//>`;
}

/** A bar, its share in words beside it. `whole` may not be known. */
export const Bar = ({ part, whole, name }) => html`
  <progress aria-label=${name} max=${whole || 1} value=${whole ? Math.min(part, whole) : undefined}></progress>`;

/** A word about the state of something. */
export const Badge = ({ kind, children }) => html`<span class=${`badge ${kind}`}>${children}</span>`;

/** Pairs of a name and what there is to say of it. */
export const Facts = ({ facts }) => html`
  <dl class="facts">${facts.filter(([, value]) => value !== null && value !== undefined).map(([name, value]) => html`
    <div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;

/** A choice among words. */
export const Choice = ({ label, value, options, set }) => html`
  <label>${label}
    <select value=${value} onChange=${(event) => set(event.target.value)}>
      ${options.map(([key, words]) => html`<option key=${key} value=${key}>${words}</option>`)}
    </select></label>`;

/** A field to search with. */
export const Search = ({ label, value, set }) => html`
  <label>${label}<input type="search" value=${value} onInput=${(event) => set(event.target.value)} /></label>`;

// Models: what is installed, and what can be done with it.
import { UNREACHED, ask, heard, mayChange } from "../api.js";
import { Running } from "../bars.js";
import { html, useEffect, useMemo, useState } from "../html.js";
import { Act, Badge, Confirm, Loaded, Search, Trouble, Waiting, later, naming } from "../parts.js";
import { disk, installed, loaded, stats, useClock, useStore } from "../resources.js";
import { Table } from "../table.js";
import { ago, count, shown, size } from "../text.js";

const Plan = later(async () => (await import("../plan.js")).Plan);
const Verification = later(async () => (await import("./verify.js")).Verification);
const EMPTY = [];
export const READING = "Reading what is known of this model …";

/** The view; `what` is the id of one model. */
export function Models({ what }) {
  const [asking, ask_] = useState(null); // {kind: "pull" | "delete" | "verify", ...}
  const close = () => ask_(null);
  return html`
    ${what !== null ? html`<${One} id=${what} ask=${ask_} />` : html`<${List} ask=${ask_} />`}
    ${asking?.kind === "pull" && html`<${Plan} request=${asking.request} title="Pull a model" close=${close} />`}
    ${asking?.kind === "delete" && html`<${Delete} id=${asking.id} close=${close} />`}
    ${asking?.kind === "verify" && html`<${Verification} id=${asking.id} close=${close} />`}`;
}

/** One model; its facts are another file's. */
function One({ id, ask: pose }) {
  const [{ Details, problem }, set] = useState({ Details: null, problem: null });
  useEffect(() => {
    const load = () => import("./model.js").then(set, () => set({ problem: UNREACHED }));
    load();
    return heard(load);
  }, []);
  return html`
    <p><a href="#/models">← All models</a></p>
    <h1 tabindex="-1"><bdi>${shown(id)}</bdi></h1>
    <${Trouble} problem=${problem} />
    ${Details ? html`<${Details} key=${id} id=${id} ask=${pose} />` : !problem && html`<${Waiting} what=${READING} />`}`;
}

function List({ ask: pose }) {
  const [words, setWords] = useState("");
  return html`
    <h1 tabindex="-1">Models</h1>
    ${mayChange() && html`<${PullForm} ask=${pose} />`}
    <${Running} kind="model" />
    <${Loaded} from=${installed} what="Asking which models are installed …">
      ${({ data }) => html`<${Installed} models=${data} words=${words} setWords=${setWords} ask=${pose} />`}
    <//>`;
}

function Installed({ models, words, setWords, ask: pose }) {
  const running = useStore(loaded).data ?? EMPTY;
  const rows = useMemo(() => matching(models, words), [models, words]);
  const states = useMemo(() => new Map(running.map((each) => [each.id, each])), [running]);
  const minute = useClock(60000); // what is told as "3 minutes ago" is told anew
  const columns = useMemo(() => columnsOf(states, pose), [states, mayChange(), minute]);
  const bytes = useMemo(() => models.reduce((sum, model) => sum + model.size, 0), [models]);
  return html`
    <div class="toolbar">
      <${Search} label="Search" value=${words} set=${setWords} />
      <p role="status">${rows.length === models.length
        ? `${count(models.length)} installed, ${size(bytes)}`
        : `${count(rows.length)} of ${count(models.length)}`}</p>
    </div>
    <${Table} label="Installed models" columns=${columns} rows=${rows} id=${(model) => model.id}
      empty=${models.length ? "No installed model has these words." : "No model is installed yet. Pull one above, or choose one in the catalog."} />`;
}

function matching(models, words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  if (!wanted.length) return models;
  return models.filter((model) => {
    const text = [model.id, model.owned_by, model.model_family, model.quantization, model.architecture].join("\n").toLowerCase();
    return wanted.every((word) => text.includes(word));
  });
}

function columnsOf(states, pose) {
  const columns = [
    { title: "Model", kind: "name", key: (model) => model.id, cell: (model, slot) => html`<${Name} model=${model} slot=${slot} />` },
    { title: "Quantization", key: (model) => model.quantization, cell: (model) => shown(model.quantization ?? "–") },
    { title: "Size", kind: "number", key: (model) => model.size, cell: (model) => size(model.size) },
    { title: "Last used", key: (model) => (model.last_used ? -Date.parse(model.last_used) : null), cell: (model) => ago(model.last_used) },
    { title: "State", key: (model) => (states.has(model.id) ? 0 : 1), cell: (model) => html`<${State} state=${states.get(model.id)} />` },
  ];
  if (mayChange()) {
    columns.push({ title: "Actions", kind: "actions", hidden: true, cell: (model, slot) => html`<${Actions} model=${model} slot=${slot} state=${states.get(model.id)} ask=${pose} />` });
  }
  return columns;
}

const Name = ({ model, slot }) => html`
  <a id=${`name-${slot}`} href=${`#/models/${encodeURIComponent(model.id)}`}><bdi>${shown(model.id)}</bdi></a>
  <small><bdi>${shown(model.owned_by)}</bdi></small>`;

/** Whether a model is loaded. */
export const State = ({ state }) => (state
  ? html`<${Badge} kind=${state.state === "ready" ? "good" : state.state === "failed" ? "bad" : "busy"}>${
    state.state === "ready" ? "loaded" : shown(state.state)}<//>`
  : html`<span class="dim">not loaded</span>`);

/** What can be done with a model; in a table, in the row that has this slot. */
export function Actions({ model, state, ask: pose, slot }) {
  const name = shown(model.id);
  return html`<div class="actions">
    ${state && state.state !== "failed"
      ? html`<${Act} label="Unload" name=${name} slot=${slot} busy="Unloading …" run=${() => unload(model.id)} />`
      : html`<${Act} label="Load" name=${name} slot=${slot} busy="Loading …" run=${() => load(model.id)} />`}
    <button type="button" class="secondary" ...${naming("Verify", name, slot)} onClick=${() => pose({ kind: "verify", id: model.id })}>Verify</button>
    <button type="button" class="danger" ...${naming("Delete", name, slot)} onClick=${() => pose({ kind: "delete", id: model.id })}>Delete</button>
  </div>`;
}

let before = Promise.resolve(); // the load before: each holds one of the six connections that a browser opens

function load(id) {
  const turn = before.then(() => loadNow(id));
  before = turn.catch(() => {});
  return turn;
}

async function loadNow(id) {
  const asked = ask("POST", "v1/models/load", { model: id });
  setTimeout(loaded.refresh, 200);
  try {
    await asked;
  } finally {
    await refreshed();
  }
  return `${shown(id)} is loaded`;
}

async function unload(id) {
  await ask("POST", "v1/models/unload", { model: id });
  await refreshed();
  return `${shown(id)} is unloaded`;
}

const refreshed = () => Promise.all([loaded.refresh(), stats.refresh(), installed.refresh()]);

function PullForm({ ask: pose }) {
  const [source, setSource] = useState("");
  const [projection, setProjection] = useState("");
  function submit(event) {
    event.preventDefault();
    const body = { model_url: source.trim(), ...(projection.trim() && { proj_url: projection.trim() }) };
    pose({ kind: "pull", request: { path: "v1/models/pull", body, target: source.trim() } });
  }
  return html`
    <form class="toolbar" onSubmit=${submit}>
      <label>Pull a model from
        <input name="source" required value=${source} spellcheck="false" autocapitalize="off" autocomplete="off"
          placeholder="owner/repo:Q4_K_M, or the URL of a GGUF file" onInput=${(event) => setSource(event.target.value)} /></label>
      <label>Projection (optional)
        <input name="projection" value=${projection} spellcheck="false" autocapitalize="off" autocomplete="off"
          placeholder="URL, or none" onInput=${(event) => setProjection(event.target.value)} /></label>
      <button type="submit">Plan</button>
    </form>`;
}

function Delete({ id, close }) {
  const [model, setModel] = useState(null);
  const [force, setForce] = useState(false);
  useEffect(() => {
    ask("GET", `v1/models/${encodeURIComponent(id)}`).then(setModel, () => setModel({}));
  }, []);
  const name = shown(id);
  async function run() {
    await ask("DELETE", `v1/models/${encodeURIComponent(id)}${force ? "?force=true" : ""}`);
    await Promise.all([refreshed(), disk.refresh()]);
    if (location.hash.startsWith("#/models/")) location.hash = "#/models";
    return `${name} is deleted`;
  }
  const words = model === null ? "Asking what this frees …" : model.frees === undefined ? "" : `This frees ${size(model.frees)} of disk.`;
  return html`
    <${Confirm} title=${`Delete ${name}?`} label="Delete" busy="Deleting …" run=${run} close=${close}>
      <p role="status">${words}</p>
      <label><input type="checkbox" checked=${force} onChange=${(event) => setForce(event.target.checked)} />
        Also where it is loaded or being pulled: streams get 10 s to end</label>
    <//>`;
}

// Catalog: what could be installed, whether it fits here, its plan, and its pull.
import { ask, mayChange } from "../api.js";
import { Running } from "../bars.js";
import { html, useEffect, useMemo, useRef, useState } from "../html.js";
import { Act, Badge, Choice, Dialog, Facts, Loaded, Search, Trouble, Waiting } from "../parts.js";
import { Plan, Verdict, fitFacts } from "../plan.js";
import { LONG, installed, resource, useStore } from "../resources.js";
import { count, link, prose, shown, size } from "../text.js";

const entries = resource("v1/catalog?fit=true", 300, LONG);
const ABILITIES = ["images", "audio", "reasoning", "tooling", "embedding", "rerank"];
const ENDPOINTS = { chat: "chat", completion: "completion", embeddings: "embeddings", rerank: "rerank" };

/** The view. */
export function Catalog() {
  const [asking, pose] = useState(null);
  const here = useStore(installed).data;
  const before = useRef(here);
  useEffect(() => {
    if (before.current !== null && before.current !== here) entries.refresh();
    before.current = here;
  }, [here]);
  const close = () => pose(null);
  return html`
    <h1 tabindex="-1">Catalog</h1>
    <${Running} kind="model" />
    <${Loaded} from=${entries} what="Asking what the catalog offers …">
      ${(all) => html`<${Offered} all=${all} pose=${pose} />`}
    <//>
    ${asking?.kind === "plan" && html`<${Plan} request=${requestOf(asking.id)} title=${`Pull ${shown(asking.id)}`} close=${close} />`}
    ${asking?.kind === "show" && html`<${Entry} id=${asking.id} close=${close} />`}`;
}

const requestOf = (id) => ({ path: `v1/catalog/pull/${encodeURIComponent(id)}`, body: {}, target: id });

function Offered({ all, pose }) {
  const [search, setSearch] = useState("");
  const [category, setCategory] = useState("");
  const [capability, setCapability] = useState("");
  const [state, setState] = useState("");
  const categories = useMemo(() => [...new Set(all.map((entry) => entry.category))], [all]);
  const found = useMemo(
    () => all.filter((entry) => matches(entry, { search, category, capability, state })),
    [all, search, category, capability, state],
  );
  return html`
    <div class="toolbar">
      <${Search} label="Search" value=${search} set=${setSearch} />
      <${Choice} label="Category" value=${category} set=${setCategory}
        options=${[["", "All"], ...categories.map((each) => [each, shown(each)])]} />
      <${Choice} label="Capability" value=${capability} set=${setCapability}
        options=${[["", "Any"], ...Object.entries(ENDPOINTS).slice(0, 2), ...ABILITIES.map((each) => [each, each])]} />
      <${Choice} label="Show" value=${state} set=${setState}
        options=${[["", "All"], ["fits", "What fits"], ["installed", "Installed"], ["missing", "Not installed"]]} />
      ${mayChange() && html`<${Act} label="Update lists" busy="Fetching the lists …" run=${update} />`}
    </div>
    <p role="status">${found.length === all.length ? `${count(all.length)} models` : `${count(found.length)} of ${count(all.length)}`}</p>
    <div class="cards">${found.map((entry) => html`<${Card} key=${entry.id} entry=${entry} pose=${pose} />`)}</div>`;
}

function matches(entry, { search, category, capability, state }) {
  const text = `${entry.id}\n${entry.model_family}\n${entry.metadata.description}`.toLowerCase();
  return search.toLowerCase().split(/\s+/).every((word) => text.includes(word))
    && (!category || entry.category === category)
    && (!capability || entry.capabilities.endpoint === capability || entry.capabilities[capability] === true)
    && ({ "": true, fits: entry.fit && entry.fit.verdict !== "no", installed: entry.downloaded, missing: !entry.downloaded })[state];
}

async function update() {
  const lists = await ask("POST", "v1/catalog/update");
  await entries.refresh();
  const failed = lists.filter((list) => list.error);
  if (failed.length) throw failed[0].error;
  return lists.length ? "The catalogs are up to date" : "No catalog is subscribed to";
}

const sizeOf = ({ files }) => [...files.model, ...(files.proj ? [files.proj] : [])]
  .map((file) => (file.size_bytes === null ? shown(file.size ?? "unknown size") : size(file.size_bytes))).join(" + ");

function Card({ entry, pose }) {
  const name = shown(entry.id);
  const able = ABILITIES.filter((each) => entry.capabilities[each]);
  return html`
    <article aria-label=${name}>
      <header><strong><bdi>${name}</bdi></strong> <${Badge} kind="dim">${shown(entry.category)}<//>
        ${entry.downloaded && html` <${Badge} kind="good">installed<//>`}</header>
      <p><bdi>${prose(entry.metadata.description)}</bdi></p>
      <p class="numbers"><span>${sizeOf(entry)}</span><${Verdict} fit=${entry.fit} />
        ${able.map((each) => html`<small key=${each}>${each}</small>`)}</p>
      <footer>
        <button type="button" class="secondary" aria-label=${`Details of ${name}`} onClick=${() => pose({ kind: "show", id: entry.id })}>Details</button>
        ${!entry.downloaded && html`<button type="button" aria-label=${`Plan the pull of ${name}`} onClick=${() => pose({ kind: "plan", id: entry.id })}>Plan</button>`}
      </footer>
    </article>`;
}

function Entry({ id, close }) {
  const [entry, setEntry] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    const leaving = new AbortController();
    ask("GET", `v1/catalog/${encodeURIComponent(id)}`, undefined, { signal: leaving.signal })
      .then(setEntry, (refused) => leaving.signal.aborted || setProblem(refused));
    return () => leaving.abort();
  }, []);
  return html`
    <${Dialog} title=${shown(id)} close=${close}>
      <${Trouble} problem=${problem} />
      ${!entry && !problem && html`<${Waiting} what="Asking whether it fits this machine …" />`}
      ${entry && html`<${Known} entry=${entry} />`}
      <footer><button type="button" class="secondary" onClick=${close}>Close</button></footer>
    <//>`;
}

function Known({ entry }) {
  const page = link(entry.web_page);
  const able = ABILITIES.filter((each) => entry.capabilities[each]);
  return html`
    <p><bdi>${prose(entry.metadata.description)}</bdi></p>
    <${Facts} facts=${[
      ...fitFacts(entry.fit),
      ["Size", sizeOf(entry)],
      ["Disk", entry.needed === null ? null : `${size(entry.needed)} needed, ${size(entry.free)} free`],
      ["Answers", `${shown(entry.capabilities.endpoint)}${able.length ? `; ${able.join(", ")}` : ""}`],
      ["Owner", html`<bdi>${shown(entry.owned_by)} / ${shown(entry.model_family)}</bdi>`],
      ["Licence", entry.metadata.license && shown(entry.metadata.license)],
      ["Gated", entry.gated_model ? "its licence must be accepted on its page" : null],
      ["Page", page && html`<a href=${page} rel="noopener noreferrer" target="_blank"><bdi>${shown(page)}</bdi></a>`],
      ["List", shown(entry.catalog)],
    ]} />`;
}

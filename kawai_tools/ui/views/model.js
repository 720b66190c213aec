// One model: its files, where it is from, what it can do, how it is run.
import { ask, mayChange } from "../api.js";
import { html, useEffect, useState } from "../html.js";
import { Act, Badge, Facts, Trouble, Waiting } from "../parts.js";
import { installed, loaded, useStore } from "../resources.js";
import { ago, count, link, moment, parameters, prose, shown, size } from "../text.js";
import { Actions, READING, State } from "./models.js";

const ABILITIES = ["images", "audio", "streaming", "reasoning", "tooling", "embedding", "rerank"];

/** The view of one model. */
export function Details({ id, ask: pose }) {
  const [model, setModel] = useState(null);
  const [problem, setProblem] = useState(null);
  const list = useStore(installed).data;
  const state = (useStore(loaded).data ?? []).find((each) => each.id === id);
  useEffect(() => {
    const leaving = new AbortController();
    ask("GET", `v1/models/${encodeURIComponent(id)}`, undefined, { signal: leaving.signal }).then(
      (found) => { setModel(found); setProblem(null); },
      (refused) => leaving.signal.aborted || setProblem(refused),
    );
    return () => leaving.abort();
  }, [id, list]);
  return html`
    <${Trouble} problem=${problem} />
    ${!model && !problem && html`<${Waiting} what=${READING} />`}
    ${model && problem?.status !== 404 && html`<${Known} model=${model} state=${state} pose=${pose} />`}`;
}

function Known({ model, state, pose }) {
  const { capabilities, provenance } = model;
  const source = link(provenance.url);
  const able = ABILITIES.filter((name) => capabilities[name]);
  return html`
    ${mayChange() && html`<div class="toolbar"><${Actions} model=${model} state=${state} ask=${pose} /><${Protect} model=${model} /></div>`}
    <${Facts} facts=${[
      ["State", html`<${State} state=${state} />`],
      ["Owner", html`<bdi>${shown(model.owned_by)} / ${shown(model.model_family)}</bdi>`],
      ["Size", size(model.size)],
      ["Frees when deleted", model.frees === undefined ? null : size(model.frees)],
      ["Parameters", parameters(model.parameters)],
      ["Architecture", shown(model.architecture ?? "–")],
      ["Quantization", shown(model.quantization ?? "–")],
      ["Context length", `${count(model.context_length)} tokens`],
      ["Answers", `${shown(capabilities.endpoint)}${able.length ? `; ${able.join(", ")}` : ""}`],
      ["Installed", moment(model.modified)],
      ["Last used", ago(model.last_used)],
      ["Verified", provenance.verified_at ? `${moment(provenance.verified_at)}, ${model.validated ? "as it should be" : "damaged"}` : "never"],
      ["Source", source
        ? html`<a href=${source} rel="noopener noreferrer" target="_blank"><bdi>${shown(provenance.url)}</bdi></a>`
        : shown(provenance.url ?? "put into the store by hand")],
      ["Commit", provenance.commit && html`<code>${shown(provenance.commit)}</code>`],
    ]} />
    <h2>Files</h2>
    <ul class="files">${model.files.map((file) => html`
      <li key=${file.path}><bdi>${shown(file.path)}</bdi> <${Badge} kind="dim">${file.role}<//>
        <small>${size(file.size)}</small><small><code>${shown(file.sha256 ?? "not hashed yet")}</code></small></li>`)}</ul>
    <h2>How it is run</h2>
    <${Pairs} name="Setting" rows=${Object.entries(model.config).map(([key, { value, source: from }]) => [key, `${value ?? "–"} (${from})`])} />
    <h2>Metadata</h2>
    <details><summary>${count(Object.keys(model.metadata).length)} keys of its GGUF header</summary>
      <${Pairs} name="Key" rows=${Object.entries(model.metadata).map(([key, value]) => [key, worded(value)])} />
    </details>`;
}

const worded = (value) => (value !== null && typeof value === "object" ? `${count(value.length)} × ${value.type}` : String(value));

const Pairs = ({ name, rows }) => html`
  <div class="scroll" tabindex="0" role="region" aria-label=${`${name}s`}><table>
    <thead><tr><th scope="col">${name}</th><th scope="col">Value</th></tr></thead>
    <tbody>${rows.map(([key, value]) => html`
      <tr key=${key}><th scope="row"><bdi>${shown(key)}</bdi></th><td class="prose"><bdi>${prose(value)}</bdi></td></tr>`)}</tbody>
  </table></div>`;

function Protect({ model }) {
  async function change() {
    await ask("POST", `v1/models/${model.protected ? "unprotect" : "protect"}`, { model: model.id });
    await installed.refresh();
    return `kawai prune ${model.protected ? "may take" : "keeps off"} ${shown(model.id)}`;
  }
  return html`<${Act} label=${model.protected ? "Unprotect" : "Protect from prune"} busy="Changing …" run=${change} />`;
}

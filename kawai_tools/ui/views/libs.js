// Libraries: the llama.cpp builds of this machine: why this one, whether it works, and others.
import { ask, mayChange } from "../api.js";
import { Running } from "../bars.js";
import { html, useEffect, useState } from "../html.js";
import { Act, Badge, Confirm, Facts, Loaded, Trouble, Waiting } from "../parts.js";
import { Plan } from "../plan.js";
import { disk, libs } from "../resources.js";
import { moment, prose, shown, size } from "../text.js";

/** The view. */
export function Libraries() {
  const [asking, pose] = useState(null);
  const close = () => pose(null);
  return html`
    <h1 tabindex="-1">Libraries</h1>
    <${Running} kind="libs" />
    <${Loaded} from=${libs} what="Asking which llama.cpp builds there are …">
      ${(found) => html`<${Known} libs=${found} pose=${pose} />`}
    <//>
    ${asking?.kind === "plan" && html`<${Plan} request=${asking.request} title="Pull a llama.cpp build" close=${close} />`}
    ${asking?.kind === "remove" && html`<${Remove} build=${asking.build} close=${close} />`}`;
}

const request = (body) => ({ path: "v1/libs/pull", body, target: body.version ?? "the newest build" });

function Known({ libs: found, pose }) {
  const isNew = found.latest && found.latest !== found.current;
  const change = mayChange();
  return html`
    <${Facts} facts=${[
      ["Platform", `${shown(found.os ?? "unknown")}, ${shown(found.arch ?? "unknown")}, ${shown(found.processor)}`],
      ["Because", shown(found.reason)],
      ["Active", shown(found.current ?? "none: models run with an embedded engine, where one is installed")],
      ["Before it", found.previous && shown(found.previous)],
      ["Newest", found.latest ? `${shown(found.latest)} (${shown(found.channel)})` : null],
    ]} />
    ${found.latest_error && html`<${Trouble} problem=${{ message: `The newest build is not known: ${found.latest_error}` }} />`}
    ${change && html`<div class="toolbar">
      <button type="button" disabled=${!isNew} onClick=${() => pose({ kind: "plan", request: request({}) })}>
        ${isNew ? `Pull ${shown(found.latest)}` : found.latest ? "The newest is active" : "Pull the newest"}</button>
      <${Act} label="Roll back" busy="Going back to the build before …" disabled=${!found.previous} run=${rollBack} />
      <${Act} label="Ask again" busy="Asking the release server …" run=${libs.refresh} />
    </div>`}
    <h2>Installed</h2>
    ${found.installed.length
      ? html`<div class="cards">${found.installed.map((build) => html`
          <${Build} key=${`${build.version} ${build.os} ${build.arch} ${build.processor}`} build=${build} pose=${pose}
            isHere=${build.os === found.os && build.arch === found.arch} />`)}</div>`
      : html`<p class="dim">None.</p>`}
    ${change && html`<${Others} pose=${pose} />`}`;
}

function Build({ build, pose, isHere }) {
  const { probe } = build;
  const machine = isHere ? "" : ` on ${shown(build.os)}, ${shown(build.arch)}`;
  const name = `${shown(build.version)} for ${shown(build.processor)}${machine}`;
  const [kind, words] = probe.ok === null ? ["dim", "not tried"] : probe.ok ? ["good", "works"] : ["bad", "does not work"];
  return html`
    <article aria-label=${name}>
      <header><strong>${shown(build.version)}</strong> <${Badge} kind=${kind}>${words}<//>
        ${build.active && html` <${Badge} kind="busy">active<//>`}</header>
      <${Facts} facts=${[
        ["For", `${shown(build.os)}, ${shown(build.arch)}, ${shown(build.processor)}`],
        ["Probe", prose(probe.detail)],
        ["Devices", probe.devices.length ? probe.devices.map(shown).join(", ") : null],
        ["Size", size(build.size)],
        ["Installed", moment(build.installed_at)],
      ]} />
      ${mayChange() && !build.active && html`<footer>
        ${isHere && html`<${Act} label="Activate" name=${name} busy="Activating …" run=${() => use(build)} />`}
        <button type="button" class="danger" aria-label=${`Remove ${name}`} onClick=${() => pose({ kind: "remove", build })}>Remove</button>
      </footer>`}
    </article>`;
}

async function use({ version, processor }) {
  await ask("POST", "v1/libs/use", { version, processor });
  await libs.refresh();
  return `${shown(version)} is active; models that are loaded stay on theirs until they are unloaded`;
}

async function rollBack() {
  const { current } = await ask("POST", "v1/libs/rollback");
  await libs.refresh();
  return `${shown(current)} is active again`;
}

function Remove({ build, close }) {
  async function run() {
    const { processor, os, arch } = build;
    await ask("DELETE", `v1/libs/${encodeURIComponent(build.version)}?${new URLSearchParams({ processor, os, arch })}`);
    await Promise.all([libs.refresh(), disk.refresh()]);
    return `${shown(build.version)} is removed`;
  }
  return html`
    <${Confirm} title=${`Remove ${shown(build.version)}?`} label="Remove" busy="Removing …" run=${run} close=${close}>
      <p>This frees ${size(build.size)} of disk.</p>
    <//>`;
}

function Others({ pose }) {
  const [version, setVersion] = useState("");
  const [wanted, setWanted] = useState(null);
  return html`
    <h2>Other builds</h2>
    <form class="toolbar" onSubmit=${(event) => { event.preventDefault(); setWanted({ version: version.trim() }); }}>
      <label>Version <input value=${version} placeholder="the newest, or b11434" spellcheck="false"
        onInput=${(event) => setVersion(event.target.value)} /></label>
      <button type="submit" class="secondary">Show what it offers</button>
    </form>
    ${wanted && html`<${Available} wanted=${wanted} pose=${pose} />`}`;
}

function Available({ wanted, pose }) {
  const [found, setFound] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    const leaving = new AbortController();
    setFound(null);
    setProblem(null);
    const query = wanted.version ? `?version=${encodeURIComponent(wanted.version)}` : "";
    ask("GET", `v1/libs/available${query}`, undefined, { signal: leaving.signal })
      .then(setFound, (refused) => leaving.signal.aborted || setProblem(refused));
    return () => leaving.abort();
  }, [wanted]);
  if (problem) return html`<${Trouble} problem=${problem} />`;
  if (!found) return html`<${Waiting} what="Asking the release server what it offers …" />`;
  return html`
    <div class="scroll" tabindex="0" role="region" aria-label=${`Builds of ${shown(found.version)}`}><table>
      <thead><tr><th scope="col">Build of ${shown(found.version)}</th><th scope="col">Download</th><th scope="col"><span class="hidden">Actions</span></th></tr></thead>
      <tbody>${found.builds.map((build) => html`<${Offer} key=${`${build.os} ${build.arch} ${build.processor} ${build.variant}`}
        version=${found.version} build=${build} pose=${pose} />`)}</tbody>
    </table></div>`;
}

function Offer({ version, build, pose }) {
  const { os, arch, processor, variant, assets } = build;
  const name = [os, arch, processor, variant].filter(Boolean).map(shown).join(", ");
  return html`
    <tr>
      <th scope="row">${name} ${build.chosen && html`<${Badge} kind="good">for this machine<//>`}</th>
      <td>${size(assets.reduce((sum, asset) => sum + asset.size, 0))}</td>
      <td><button type="button" class="secondary" aria-label=${`Plan the pull of ${name}`}
        onClick=${() => pose({ kind: "plan", request: request({ version, os, arch, processor, activate: build.chosen }) })}>Plan</button></td>
    </tr>`;
}

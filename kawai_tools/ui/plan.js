// What a pull would fetch, before it does: its files, the room, and whether the model will run here.
import { ask } from "./api.js";
import { html, useEffect, useState } from "./html.js";
import { Act, Badge, Dialog, Facts, Trouble, Waiting, useTrial } from "./parts.js";
import { begin } from "./pulls.js";
import { count, shown, size } from "./text.js";

const VERDICTS = {
  fits: ["good", "fits"], fits_context: ["fair", "fits with less context"],
  fits_layers: ["fair", "fits partly on the GPU"], no: ["bad", "does not fit"],
};

/** Whether a model will run on this machine; nothing where nobody can say. */
export function Verdict({ fit }) {
  if (!fit) return null;
  const [kind, words] = VERDICTS[fit.verdict] ?? ["dim", shown(fit.verdict)];
  const title = `needs ${size(fit.needed)} of ${size(fit.available)}`;
  return html`<span title=${title}><${Badge} kind=${kind}>${fit.guess ? "probably " : ""}${words}<//></span>`;
}

/** The numbers of a verdict. */
export const fitFacts = (fit) => (fit
  ? [["Runs here", html`<${Verdict} fit=${fit} />`],
    ["Memory", `${size(fit.needed)} of ${size(fit.available)}${fit.context ? ` with a context of ${count(fit.context)} tokens` : ""}`],
    ["Advice", fit.advice && shown(fit.advice)]]
  : []);

/** The plan of a pull, and the button that carries it out. `request` is as for `begin`. */
export function Plan({ request, title, close }) {
  const [plan, setPlan] = useState(null);
  const [problem, attempt] = useTrial();
  useEffect(() => {
    const leaving = new AbortController();
    const asked = { ...request.body, dry_run: true };
    attempt(() => ask("POST", request.path, asked, { signal: leaving.signal })).then(setPlan, () => {});
    return () => leaving.abort();
  }, []);
  const pull = () => attempt(async () => {
    await begin(request);
    close();
  });
  return html`
    <${Dialog} title=${title} close=${close}>
      ${!plan && !problem && html`<${Waiting} what="Asking where the files are, and how large …" />`}
      ${plan && html`<${Planned} plan=${plan} />`}
      <${Trouble} problem=${problem} />
      <footer>
        <button type="button" class="secondary" onClick=${close}>Close</button>
        ${plan && !plan.exists && html`<${Act} label="Pull" busy="Beginning …" kind="primary" of=${plan.id ?? title} run=${pull} />`}
      </footer>
    <//>`;
}

function Planned({ plan }) {
  const short = plan.needed > plan.free;
  return html`
    <${Facts} facts=${[
      ["Installs", html`<bdi>${shown(plan.id)}</bdi>`],
      ["Download", plan.exists ? "nothing: it is here already" : size(plan.total)],
      ["Disk", `${size(plan.needed)} needed, ${size(plan.free)} free`],
      ...fitFacts(plan.fit),
    ]} />
    ${short && html`<p class="notice failed" role="alert">There is not enough room on the disk.</p>`}
    <ul class="files">${plan.files.map((file) => html`
      <li key=${file.path}><bdi>${shown(file.path)}</bdi>
        <small>${size(file.size)}${file.have ? `, ${size(file.have)} of it here already` : ""}</small></li>`)}</ul>`;
}

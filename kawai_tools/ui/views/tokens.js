// Tokens: who may use this server. A token is shown once, when it is made.
import { ask, Problem } from "../api.js";
import { html, useRef, useState } from "../html.js";
import { Act, Badge, Choice, Confirm, Loaded, Trouble, say } from "../parts.js";
import { resource } from "../resources.js";
import { ago, moment, shown } from "../text.js";

const tokens = resource("v1/tokens", 60);
const ROLES = [["user", "user: may ask models"], ["admin", "admin: may change everything"]];

/** The view. */
export function Tokens() {
  const [made, setMade] = useState(null);
  const [revoking, setRevoking] = useState(null);
  return html`
    <h1 tabindex="-1">Tokens</h1>
    <${Create} made=${setMade} />
    ${made && html`<${Made} token=${made} close=${() => setMade(null)} />`}
    <${Loaded} from=${tokens} what="Asking which tokens there are …">
      ${(all) => (all.length
        ? html`<${List} all=${all} revoke=${setRevoking} />`
        : html`<p class="dim">There are none. They count where kawai serve runs with --auth.</p>`)}
    <//>
    ${revoking && html`<${Revoke} token=${revoking} close=${() => setRevoking(null)} />`}`;
}

function Create({ made }) {
  const [name, setName] = useState("");
  const [role, setRole] = useState("user");
  const [expires, setExpires] = useState("30d");
  const [problem, setProblem] = useState(null);
  const [works, setWorks] = useState(false);
  async function submit(event) {
    event.preventDefault();
    if (works) return;
    setProblem(null);
    setWorks(true);
    try {
      made(await ask("POST", "v1/tokens", { name: name.trim() || null, role, expires: expires.trim() || null }));
      setName("");
      await tokens.refresh();
    } catch (refused) {
      setProblem(refused);
    } finally {
      setWorks(false);
    }
  }
  return html`
    <form class="toolbar" onSubmit=${submit}>
      <label>Name <input value=${name} maxlength="100" placeholder="what it is for" onInput=${(event) => setName(event.target.value)} /></label>
      <${Choice} label="Role" value=${role} options=${ROLES} set=${setRole} />
      <label>Good for <input value=${expires} placeholder="ever" onInput=${(event) => setExpires(event.target.value)} /></label>
      <button type="submit" aria-busy=${works} aria-disabled=${works ? "true" : null}>${works ? "Making a token …" : "Make a token"}</button>
    </form>
    <${Trouble} problem=${problem} />`;
}

function Made({ token, close }) {
  const field = useRef(null);
  async function copy() {
    field.current.select();
    try {
      await navigator.clipboard.writeText(token.token); // there is none where the page came over plain HTTP from elsewhere
    } catch {
      throw new Problem({ message: "this browser lets the page copy nothing", hint: "the token is selected: copy it by hand" });
    }
    say("The token is copied");
  }
  return html`
    <article aria-label="The new token" role="status">
      <p>This is the only time that this token is shown. Keep it where only its holder finds it.</p>
      <div class="secret"><input ref=${field} readonly aria-label="The new token" value=${token.token} />
        <${Act} label="Copy" busy="Copying …" run=${copy} />
        <button type="button" class="secondary" onClick=${close}>Done</button></div>
    </article>`;
}

const List = ({ all, revoke }) => html`
  <div class="scroll" tabindex="0" role="region" aria-label="Tokens"><table>
    <thead><tr>${["Name", "Role", "Made", "Last used", "Expires"].map((title) => html`<th key=${title} scope="col">${title}</th>`)}
      <th scope="col"><span class="hidden">Actions</span></th></tr></thead>
    <tbody>${all.map((token) => html`
      <tr key=${token.id}>
        <th scope="row"><bdi>${shown(token.name ?? token.id)}</bdi></th>
        <td><${Badge} kind=${token.role === "admin" ? "fair" : "dim"}>${token.role}<//></td>
        <td>${moment(token.created_at)}</td><td>${ago(token.last_used)}</td>
        <td>${token.expires_at ? (Date.parse(token.expires_at) < Date.now() ? "expired" : moment(token.expires_at)) : "never"}</td>
        <td><button type="button" class="danger" aria-label=${`Revoke ${shown(token.name ?? token.id)}`} onClick=${() => revoke(token)}>Revoke</button></td>
      </tr>`)}</tbody>
  </table></div>`;

function Revoke({ token, close }) {
  const name = shown(token.name ?? token.id);
  async function run() {
    await ask("DELETE", `v1/tokens/${encodeURIComponent(token.id)}`);
    await tokens.refresh();
    return `The token ${name} is revoked`;
  }
  return html`
    <${Confirm} title=${`Revoke ${name}?`} label="Revoke" busy="Revoking …" run=${run} close=${close}>
      <p>Whoever uses it is refused from then on, sessions of this page that were begun with it included.</p>
    <//>`;
}

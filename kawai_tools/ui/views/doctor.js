// Doctor: what works, what does not, and what to do.
import { html } from "../html.js";
import { Act, Badge, Loaded } from "../parts.js";
import { LONG, resource } from "../resources.js";
import { prose, shown } from "../text.js";

const checks = resource("v1/doctor", 300, LONG);
const KINDS = { ok: ["good", "fine"], warn: ["fair", "warning"], fail: ["bad", "fails"] };

/** The view. */
export function Doctor() {
  return html`
    <h1 tabindex="-1">Doctor</h1>
    <div class="toolbar"><${Act} label="Look again" busy="Looking at everything …" run=${checks.refresh} /></div>
    <${Loaded} from=${checks} what="Looking at everything …">
      ${(found) => html`
        <p role="status">${summary(found)}</p>
        <div class="scroll" tabindex="0" role="region" aria-label="Checks"><table>
          <thead><tr><th scope="col">Check</th><th scope="col">Result</th><th scope="col">What was found</th></tr></thead>
          <tbody>${found.map((each) => html`<${Check} key=${each.check} check=${each} />`)}</tbody>
        </table></div>`}
    <//>`;
}

function summary(found) {
  const of = (status) => found.filter((each) => each.status === status).length;
  if (!of("fail") && !of("warn")) return "Everything works.";
  return [[of("fail"), "fails"], [of("warn"), "to look at"]].filter(([number]) => number)
    .map(([number, words]) => `${number} ${words}`).join(", ");
}

function Check({ check }) {
  const [kind, words] = KINDS[check.status] ?? ["dim", shown(check.status)];
  return html`
    <tr>
      <th scope="row">${shown(check.check)}</th>
      <td><${Badge} kind=${kind}>${words}<//></td>
      <td class="prose">${prose(check.detail)}${check.fix && check.status !== "ok" && html`<br /><strong>To do:</strong> ${prose(check.fix)}`}</td>
    </tr>`;
}

// Pulls: what runs now, and what came of those of the last hour.
import { Pull } from "../bars.js";
import { html } from "../html.js";
import { isOver, pulls } from "../pulls.js";
import { useStore } from "../resources.js";

const Section = ({ title, all, none }) => html`
  <h2>${title}</h2>
  ${all.length ? all.map((pull) => html`<${Pull} key=${pull.pull} pull=${pull} />`) : html`<p class="dim">${none}</p>`}`;

/** The view. */
export function Pulls() {
  const all = useStore(pulls);
  return html`
    <h1 tabindex="-1">Pulls</h1>
    <${Section} title="Under way" all=${all.filter((pull) => !isOver(pull))}
      none="Nothing is being pulled. Models, Catalog and Libraries begin pulls; so does the command line." />
    <${Section} title="Ended within the last hour" all=${all.filter(isOver)} none="None." />`;
}

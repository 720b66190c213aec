// Running: the models that are loaded, how hard they work, and the memory that they take.
import { ask, mayChange } from "../api.js";
import { html } from "../html.js";
import { Act, Facts, Loaded, Trouble } from "../parts.js";
import { installed, loaded, stats, useClock, useStore } from "../resources.js";
import { count, duration, moment, shown, size, until } from "../text.js";
import { State } from "./models.js";

/** The view. */
export function Running() {
  return html`
    <h1 tabindex="-1">Running</h1>
    <${Memory} />
    <${Loaded} from=${loaded} what="Asking which models are loaded …">
      ${(models) => (models.length
        ? html`<div class="cards">${models.map((model) => html`<${Model} key=${model.id} model=${model} />`)}</div>`
        : html`<p class="dim">No model is loaded. One is when it is asked, or when you load it in Models.</p>`)}
    <//>`;
}

function Memory() {
  const { data, problem } = useStore(stats);
  if (!data) return html`<${Trouble} problem=${problem} />`;
  const { memory_used: used, memory_budget: budget } = data;
  return html`
    <p class="memory"><label for="memory">Memory of loaded models</label>
      <progress id="memory" max=${budget || 1} value=${Math.min(used, budget)}></progress>
      <span>${size(used)} of ${size(budget)}</span></p>
    ${data.draining && html`<p class="notice failed" role="status">kawai is shutting down and loads no more models.</p>`}`;
}

function Model({ model }) {
  const now = useClock();
  const slots = useStore(stats).data?.models.find((each) => each.id === model.id);
  const left = until(model.expires_at, now);
  const busy = model.active_streams;
  const expiry = model.state === "failed" ? "Tried again in" : "Unloads in";
  return html`
    <article aria-label=${shown(model.id)}>
      <header><strong><bdi>${shown(model.id)}</bdi></strong> <${State} state=${model} /></header>
      <${Facts} facts=${[
        ["Streams", html`<span data-streams>${count(busy)}</span>`],
        ["Slots", slots && `${count(slots.slots - slots.free_slots)} of ${count(slots.slots)} taken`],
        ["Memory", size(model.memory)],
        ["Context", model.context_length === null ? null : `${count(model.context_length)} tokens`],
        ["Engine", shown(model.engine)],
        ["Loaded", model.loaded_at && moment(model.loaded_at)],
        [expiry, left === null ? (model.state === "failed" ? null : "never: it is pinned") : duration(left)],
      ]} />
      ${mayChange() && model.state !== "failed" && html`<footer>
        <${Act} label="Unload" name=${shown(model.id)} busy=${busy ? "Waiting for its streams …" : "Unloading …"} run=${() => unload(model.id, false)} />
        <${Act} label="Unload now" name=${shown(model.id)} busy="Ending its streams …" kind="danger" run=${() => unload(model.id, true)} />
      </footer>`}
    </article>`;
}

async function unload(id, force) {
  await ask("POST", "v1/models/unload", { model: id, force });
  await Promise.all([loaded.refresh(), stats.refresh(), installed.refresh()]);
  return `${shown(id)} is unloaded`;
}

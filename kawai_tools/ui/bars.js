// How pulls look: a bar each, with its files, what can be done about it, and what went wrong.
import { mayChange } from "./api.js";
import { html } from "./html.js";
import { Act, Badge, Bar, Trouble } from "./parts.js";
import { cancel, dismiss, goOn, isOver, mayBegin, progress, pulls } from "./pulls.js";
import { useStore } from "./resources.js";
import { ago, duration, percent, rate, shown, size } from "./text.js";

const WORDS = {
  resolving: "asking where the files are", waiting: "waiting for another process that pulls it",
  downloading: "downloading", verifying: "verifying", unpacking: "unpacking", probing: "trying it out",
  installing: "installing", downloaded: "installed", exists: "was here already", failed: "failed",
  cancelled: "cancelled", interrupted: "interrupted",
};
const KINDS = { downloaded: "good", exists: "good", failed: "bad", cancelled: "dim", interrupted: "bad" };
const NOUNS = { model: "model", libs: "llama.cpp build", export: "export", import: "import" };

/** One pull. */
export function Pull({ pull }) {
  const over = isOver(pull), share = percent(pull.completed, pull.total);
  const ended = { downloaded: true, exists: true }[pull.status];
  const name = shown(pull.target);
  return html`
    <article class="pull" aria-label=${`Pull of ${name}`}>
      <header>
        <strong><bdi>${name}</bdi></strong> <small>${NOUNS[pull.kind] ?? shown(pull.kind)}</small>
        <${Badge} kind=${KINDS[pull.status] ?? "busy"}>${WORDS[pull.status] ?? shown(pull.status)}<//>
        ${pull.started_at && html`<small class="when">begun ${ago(pull.started_at)}</small>`}
      </header>
      ${!ended && html`<${Bar} name=${`Progress of ${name}`} part=${pull.completed} whole=${over && !pull.total ? 1 : pull.total} />`}
      <p class="numbers">
        ${share !== null && !ended && html`<span>${share} %</span>`}
        <span>${size(pull.completed)}${pull.total !== null && !ended && html` of ${size(pull.total)}`}</span>
        ${!over && pull.rate !== null && html`<span>${rate(pull.rate)}</span>`}
        ${!over && pull.eta !== null && html`<span>${duration(pull.eta)} left</span>`}
      </p>
      ${!over && pull.files.length > 0 && html`<ul class="files">${pull.files.map(([, file]) => html`
        <li key=${file.name}><bdi>${shown(file.name)}</bdi>
          ${file.total !== null && html`<small>${size(file.completed)} of ${size(file.total)}</small>`}</li>`)}</ul>`}
      <${Trouble} problem=${pull.error} />
      <footer>
        ${!over && mayChange() && html`<${Act} label="Cancel" name=${name} busy="Cancelling …" run=${() => cancel(pull)} />`}
        ${over && !ended && pull.request && mayBegin(pull.request) && html`
          <${Act} label="Go on" name=${name} busy="Going on …" kind="primary" run=${() => goOn(pull)} />`}
        ${pull.status === "interrupted" && html`
          <button type="button" class="secondary" aria-label=${`Dismiss ${name}`} onClick=${() => dismiss(pull)}>Dismiss</button>`}
      </footer>
    </article>`;
}

/** The pulls of one kind that run, in the view that they belong to. */
export function Running({ kind }) {
  const running = useStore(pulls).filter((pull) => pull.kind === kind && (!isOver(pull) || pull.status === "interrupted"));
  return html`<div class="pulls">${running.map((pull) => html`<${Pull} key=${pull.pull} pull=${pull} />`)}</div>`;
}

/** Progress in words, for those who hear the page. */
export const Heard = () => html`<div class="hidden" role="status" aria-live="polite">${shown(useStore(progress))}</div>`;

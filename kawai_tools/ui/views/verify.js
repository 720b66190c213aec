// Verification of one model: hashed on the server while this window is open.
import { send } from "../api.js";
import { html, useEffect, useState } from "../html.js";
import { Badge, Bar, Dialog, Trouble, Waiting } from "../parts.js";
import { installed } from "../resources.js";
import { events, wanted } from "../stream.js";
import { duration, percent, rate, shown, size } from "../text.js";

async function* verification(id, leaving) {
  const answer = await send("POST", "v1/models/verify", { model: id }, { signal: leaving.signal, headers: wanted() });
  for await (const { data } of events(answer, leaving)) yield data;
}

/** The window; closing it ends the verification. */
export function Verification({ id, close }) {
  const [at, setAt] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    const leaving = new AbortController();
    (async () => {
      try {
        for await (const event of verification(id, leaving)) setAt(event);
        await installed.refresh();
      } catch (refused) {
        if (!leaving.signal.aborted) setProblem(refused);
      }
    })();
    return () => leaving.abort();
  }, []);
  const over = at && ["verified", "failed"].includes(at.status);
  return html`
    <${Dialog} title=${`Verify ${shown(id)}`} close=${close}>
      ${!at && !problem && html`<${Waiting} what="Waiting for the first bytes to be hashed …" />`}
      ${at && html`
        <${Bar} name="Progress of the verification" part=${at.completed} whole=${at.total} />
        <p class="numbers"><span>${percent(at.completed, at.total) ?? 0} %</span>
          <span>${size(at.completed)} of ${size(at.total)}</span>
          ${!over && html`<span>${rate(at.rate)}</span><span>${at.eta !== null && `${duration(at.eta)} left`}</span>`}</p>
        <ul class="files">${at.files.map((file) => html`
          <li key=${file.path}><bdi>${shown(file.path)}</bdi>
            <${Badge} kind=${file.ok ? "good" : "bad"}>${file.ok ? "right" : "damaged"}<//></li>`)}</ul>`}
      <p role="status">${over && (at.status === "verified" ? "Every byte is as it should be." : "")}</p>
      <${Trouble} problem=${problem ?? at?.error} />
      <footer><button type="button" class="secondary" onClick=${close}>${over || problem ? "Close" : "Stop"}</button></footer>
    <//>`;
}

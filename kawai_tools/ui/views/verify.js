// Verification of one model: hashed on the server while this window is open.
import { html, useEffect, useState } from "../html.js";
import { Badge, Bar, Dialog, Trouble, Waiting } from "../parts.js";
import { installed } from "../resources.js";
import { listen } from "../stream.js";
import { duration, percent, rate, shown, size } from "../text.js";

const ENDED = { message: "the connection to kawai was lost, and this verification ended with it", hint: "verify it again" };
const isOver = (event) => ["verified", "failed", "cancelled"].includes(event?.status);

/** The window; closing it ends the verification. */
export function Verification({ id, close }) {
  const [at, setAt] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    const leaving = new AbortController();
    (async () => {
      let last = null;
      try {
        for await (const { data } of listen("POST", "v1/models/verify", { body: { model: id }, leaving: leaving.signal })) {
          last = data;
          setAt(data);
        }
        if (!isOver(last)) setProblem(ENDED);
      } catch (refused) {
        if (!leaving.signal.aborted) setProblem(last && refused.code === "connection_lost" ? ENDED : refused);
      }
      installed.touch();
    })();
    return () => leaving.abort();
  }, []);
  const over = isOver(at);
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

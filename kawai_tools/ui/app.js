// The page as a whole: who looks, which view, what is said, and whether the server can be reached.
import { UNREACHED, connection, heard, mayChange, recognise, session, signIn, signOut } from "./api.js";
import { Heard } from "./bars.js";
import { html, render, useEffect, useLayoutEffect, useRef, useState } from "./html.js";
import { Notices, Trouble, Waiting, later, say, warn } from "./parts.js";
import { isOver, pulls, watchPulls } from "./pulls.js";
import { disk, installed, useStore } from "./resources.js";
import { percent, size } from "./text.js";
import { Models } from "./views/models.js";

const SignIn = later(async () => (await import("./signin.js")).SignIn);
const VIEWS = {
  models: { title: "Models", load: async () => Models },
  pulls: { title: "Pulls", load: async () => (await import("./views/pulls.js")).Pulls },
  running: { title: "Running", load: async () => (await import("./views/running.js")).Running },
  catalog: { title: "Catalog", load: async () => (await import("./views/catalog.js")).Catalog },
  libs: { title: "Libraries", load: async () => (await import("./views/libs.js")).Libraries },
  metrics: { title: "Metrics", load: async () => (await import("./views/metrics.js")).Metrics },
  logs: { title: "Logs", admin: true, load: async () => (await import("./views/logs.js")).Logs },
  tokens: { title: "Tokens", admin: true, load: async () => (await import("./views/tokens.js")).Tokens },
  doctor: { title: "Doctor", admin: true, load: async () => (await import("./views/doctor.js")).Doctor },
};

/** The view that the address names, and what of it: "#/models/Qwen3" is one model. */
function place() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  const known = Object.hasOwn(VIEWS, name) ? name : "models";
  let what = null;
  try { what = rest.length ? decodeURIComponent(rest.join("/")) : null; } catch { /* no address of this page */ }
  return { name: VIEWS[known].admin && !mayChange() ? "models" : known, what };
}

/** The view that is asked for, whoever looks: they may yet sign in. */
function usePlace() {
  const [, redraw] = useState(location.hash);
  useEffect(() => {
    const change = () => { arrive(); redraw(location.hash); };
    addEventListener("hashchange", change);
    return () => removeEventListener("hashchange", change);
  }, []);
  return place();
}

function View({ name, what }) {
  const [found, set] = useState({ name: "models", view: Models, problem: null });
  const content = useRef(null), first = useRef(true);
  useEffect(() => {
    let here = true;
    const load = () => VIEWS[name].load().then(
      (view) => here && set({ name, view, problem: null }),
      () => here && set({ name, view: null, problem: UNREACHED }),
    );
    load();
    const leave = heard(load);
    return () => { here = false; leave(); };
  }, [name]);
  const ready = found.name === name;
  useLayoutEffect(() => {
    document.title = `${VIEWS[name].title} - kawai`;
    if (ready && !first.current) content.current.querySelector("h1")?.focus();
    if (ready) first.current = false;
  }, [name, what, ready]);
  return html`
    <main id="content" ref=${content}>
      ${!ready && html`<${Waiting} what=${`Loading ${VIEWS[name].title} …`} />`}
      ${ready && found.problem && html`<h1 tabindex="-1">${VIEWS[name].title}</h1><${Trouble} problem=${found.problem} />`}
      ${ready && found.view && html`<${found.view} what=${what} />`}
    </main>`;
}

function Navigation({ at }) {
  const running = useStore(pulls).filter((pull) => !isOver(pull)).length;
  const seen = Object.entries(VIEWS).filter(([, view]) => !view.admin || mayChange());
  return html`
    <nav aria-label="Views"><ul>${seen.map(([name, { title }]) => html`
      <li key=${name}><a href=${`#/${name}`} aria-current=${name === at ? "page" : null}>${title}${
        name === "pulls" && running > 0 && html` <span class="count" aria-label=${`${running} running`}>${running}</span>`}</a></li>`)}
    </ul></nav>`;
}

function Disk() {
  const { data } = useStore(disk);
  if (!data) return html`<p class="disk"></p>`;
  const used = data.total - data.free;
  const words = `Disk: kawai takes ${size(data.models + data.partials + data.builds + data.caches)}, ${size(data.free)} free`;
  return html`
    <p class="disk" title=${`models ${size(data.models)}, unfinished ${size(data.partials)}, builds ${size(data.builds)}`}>
      <span>${words}</span>
      <meter aria-label="Disk in use" min="0" max=${data.total} high=${0.95 * data.total} value=${used}>${percent(used, data.total)} %</meter>
    </p>`;
}

function Who() {
  const { role } = useStore(session);
  if (role === "open") return null;
  const leave = () => signOut().catch(warn);
  return html`<p class="who">${role === "admin" ? "Administrator" : "User"}
    <button type="button" class="quiet" onClick=${leave}>Sign out</button></p>`;
}

function Connection() {
  const { lost } = useStore(connection);
  const words = lost ? "The connection to kawai is lost. It is tried again by itself …" : "";
  return html`<div role="alert" class=${lost ? "connection lost" : "connection"}>${words}</div>`;
}

function App() {
  const { role } = useStore(session);
  const at = usePlace();
  useEffect(() => heard(() => say("kawai is back.")), []);
  useEffect(() => {
    if (role === "none" || role === "unknown") return undefined;
    installed.load(); // the document has had it asked for already
    return watchPulls();
  }, [role]);
  if (role === "unknown") return html`<main><${Waiting} what="Asking who looks …" /></main>`;
  if (role === "none") return html`<${SignIn} /><${Notices} />`;
  return html`
    <a class="skip" href="#content" onClick=${skip}>Skip to the content</a>
    <header>
      <a class="brand" href="#/models"><img src="icon.svg" alt="" width="28" height="28" /> kawai</a>
      <${Navigation} at=${at.name} />
      <${Disk} />
      <${Who} />
    </header>
    <${Connection} />
    <${View} name=${at.name} what=${at.what} />
    <${Notices} />
    <${Heard} />`;
}

function skip(event) {
  event.preventDefault();
  document.querySelector("main h1")?.focus();
}

/** Sign in with the code in the address, if there is one. */
async function arrive() {
  const code = /^#code=([\w-]+)$/.exec(location.hash)?.[1];
  if (!code) return;
  history.replaceState(null, "", "#/models");
  if (session.get().role === "open") return;
  try {
    await signIn({ code });
  } catch (problem) {
    warn(problem);
  }
}

/** Know who looks: somebody whose cookie was not sent with the page may be signed in all the same. */
async function greet() {
  const { role, csrf } = session.get();
  if (role === "open" || role === "none" || csrf !== null) return;
  try {
    await recognise();
  } catch (problem) {
    if (problem.status === 401) session.set({ role: "none", csrf: null, over: role !== "unknown" });
    else {
      warn(problem);
      const leave = heard(() => { leave(); greet(); });
    }
  }
}

const root = document.getElementById("app");
const arriving = arrive().then(greet);
if (session.get().role !== "none") render(html`<${App} />`, root);
arriving.then(() => render(html`<${App} />`, root));

// The one way to the server: its public API, with the session's cookie, and what it means when it fails.
import { store } from "./observable.js";

const BASE = new URL("../", document.baseURI);
const FIRST = 500, LONGEST = 5000; // milliseconds between two looks for a server that is gone
const PATIENCE = 4000;

/** Whether the server can be reached; `restarts` counts how often it came back. */
export const connection = store({ lost: false, restarts: 0 });

/**
 * Who looks: `role` is "open" (nobody is asked), "admin", "user", "none", or "unknown" until it is asked; `csrf` goes
 * with what changes.
 */
export const session = store({ role: document.documentElement.dataset.session, csrf: null, over: false });

/** Whether what only an admin may do is shown. */
export const mayChange = () => ["open", "admin"].includes(session.get().role);

/** What the server refuses or fails at: a message, and a hint what to do. */
export class Problem extends Error {
  constructor({ code, message, hint = null, type = null }, status = 0) {
    super(message);
    Object.assign(this, { code, hint, type, status });
  }
}

const LOST = { code: "connection_lost", message: "the connection to kawai is lost", hint: "it is tried again by itself" };

/** What is told where a part of the page itself could not be fetched. */
export const UNREACHED = { message: "this view could not be loaded", hint: "it is tried again once kawai is back; else reload the page" };

/** Call when the server is back after it could not be reached; what ends that. */
export function heard(call) {
  let { restarts } = connection.get();
  return connection.subscribe(() => {
    if (connection.get().restarts !== restarts && !connection.get().lost) {
      restarts = connection.get().restarts;
      call();
    }
  });
}

/** The `Problem` of a connection that has just been lost; the server is looked for. */
export function lost() {
  lose();
  return new Problem(LOST);
}

/** Note that the server cannot be reached, and look for it until it can. */
export async function lose() {
  if (connection.get().lost) return;
  connection.set({ ...connection.get(), lost: true });
  for (let pause = FIRST; ; pause = Math.min(2 * pause, LONGEST)) {
    await new Promise((go) => setTimeout(go, pause));
    if (await answers()) break;
  }
  connection.set({ lost: false, restarts: connection.get().restarts + 1 });
}

async function answers() {
  try {
    const answer = await fetch(new URL("healthz", BASE), { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    return answer.ok;
  } catch {
    return false;
  }
}

/**
 * Send a request; its response, where that is no error. Throws a `Problem`.
 * The mode of `fetch` stays "cors": with another and no referrer, browsers send `Origin: null`, which is refused.
 */
export async function send(method, path, body, { signal, headers = {}, isAgain = false } = {}) {
  const { csrf } = session.get();
  const sent = { ...headers };
  if (body !== undefined) sent["Content-Type"] = "application/json";
  if (csrf && method !== "GET") sent["X-Kawai-CSRF"] = csrf;
  let answer;
  try {
    answer = await fetch(new URL(path, BASE), {
      method, signal, headers: sent, body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw lost();
  }
  if (answer.ok) return answer;
  const problem = await reported(answer);
  if (problem.code === "csrf_required" && !isAgain) { // another tab has signed in since: its session is everybody's
    await recognise();
    return send(method, path, body, { signal, headers, isAgain: true });
  }
  if (answer.status === 401 && !path.startsWith("v1/session")) session.set({ role: "none", csrf: null, over: true });
  throw problem;
}

async function reported(answer) {
  const fallback = { code: "no_kawai", message: `the server answered ${answer.status}`, hint: "look into its log" };
  try {
    return new Problem((await answer.json()).error ?? fallback, answer.status);
  } catch {
    return new Problem(fallback, answer.status);
  }
}

/** Send a request; the JSON of its answer (as text with `raw`), or null where there is none. Throws a `Problem`. */
export async function ask(method, path, body, options = {}) {
  const answer = await send(method, path, body, options);
  if (answer.status === 204) return null;
  try {
    return options.raw ? await answer.text() : await answer.json();
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw lost();
  }
}

/** Sign in with `{token}` or `{code}`. Throws a `Problem`. */
export async function signIn(credential) {
  await ask("POST", "v1/session", credential);
  await recognise();
}

/** Learn who looks. Throws a `Problem`. */
export async function recognise() {
  const { role, csrf } = await ask("GET", "v1/session");
  session.set({ role: csrf === null && role === "admin" ? "open" : role, csrf, over: false });
}

/** Sign out. Throws a `Problem`. */
export async function signOut() {
  await ask("DELETE", "v1/session");
  session.set({ role: "none", csrf: null, over: false });
}

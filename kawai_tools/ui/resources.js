// State that several parts of the page share, and what of the server is shown: asked again while somebody looks.
import { useEffect, useState } from "./html.js";
import { ask, connection, heard, lose } from "./api.js";
import { store } from "./observable.js";

const PATIENCE = 30000; // milliseconds
/** As long may take what asks other servers, or tries a build. */
export const LONG = 330000;

export { store };

/** The value of a store, in a component that is drawn anew when it changes. */
export function useStore(from) {
  const [, redraw] = useState(0);
  useEffect(() => from.subscribe(() => redraw((number) => number + 1)), [from]);
  return from.get();
}

/** The present time, every so many milliseconds. */
export function useClock(period = 1000) {
  const [time, set] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => document.hidden || set(Date.now()), period);
    return () => clearInterval(timer);
  }, [period]);
  return time;
}

/**
 * What the server answers at a path: `{data, problem}`, both null until it has. It is asked anew every `seconds`
 * while a component uses it and the page is seen; at once by `load`, anew by `refresh`, and by `touch` if it is used.
 * A server that does not answer within `patience` is lost.
 */
export function resource(path, seconds, patience = PATIENCE) {
  const state = store({ data: null, problem: null });
  let watchers = 0, timer = null, text = null, asking = null, next = null;

  async function once() {
    const silence = AbortSignal.timeout(patience);
    try {
      const answer = await ask("GET", path, undefined, { raw: true, signal: silence });
      if (answer === text && !state.get().problem) return;
      text = answer;
      state.set({ data: JSON.parse(answer), problem: null });
    } catch (problem) {
      if (silence.aborted) lose();
      else if (problem.code !== "connection_lost" && problem.status !== 401) state.set({ ...state.get(), problem });
    }
  }
  function load() {
    asking ??= once().finally(() => { asking = null; });
    return asking;
  }
  function refresh() { // what is on its way may be of before
    if (!asking) return load();
    next ??= asking.then(() => { next = null; return load(); });
    return next;
  }
  function again() {
    clearTimeout(timer);
    if (!watchers) return;
    timer = setTimeout(async () => {
      if (!document.hidden && !connection.get().lost) await load();
      again();
    }, seconds * 1000);
  }
  function subscribe(call) {
    const leave = state.subscribe(call);
    watchers += 1;
    if (watchers === 1) { load(); again(); }
    return () => { leave(); watchers -= 1; if (!watchers) clearTimeout(timer); };
  }
  const seen = () => { if (watchers && !document.hidden) refresh(); };
  document.addEventListener("visibilitychange", seen);
  heard(seen);
  return { get: state.get, subscribe, load, refresh, touch: seen };
}

export const installed = resource("v1/models", 30);
export const loaded = resource("v1/models/ps", 3);
export const stats = resource("v1/stats", 3);
export const disk = resource("v1/storage", 60);
export const libs = resource("v1/libs", 600, LONG);

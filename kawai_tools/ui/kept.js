// What this tab has asked to be pulled, kept over a reload: by the id of the pull `{path, body, target, seen}`, where
// `seen` is when it was last seen to run. A browser that keeps nothing shows what runs all the same.
const KEY = "kawai.pulls";

/** All of it. */
export function requests() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}

function write(all) {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(all));
  } catch { /* see above */ }
}

/** Keep what was asked of a pull that has just been begun. */
export const remember = (id, request) => write({ ...requests(), [id]: { ...request, seen: Date.now() } });

/** Forget pulls that have come to their end, or that nobody wants. */
export function forget(...ids) {
  const all = Object.entries(requests());
  const others = all.filter(([id]) => !ids.includes(id));
  if (others.length < all.length) write(Object.fromEntries(others));
}

/** Note that these run. */
export function sawRunning(ids) {
  const all = Object.entries(requests());
  if (!all.some(([id]) => ids.has(id))) return;
  write(Object.fromEntries(all.map(([id, each]) => [id, ids.has(id) ? { ...each, seen: Date.now() } : each])));
}

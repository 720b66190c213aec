// Pulls: what runs on the server, followed while somebody looks, begun, cancelled and gone on with.
// A browser opens six connections to a server at most, in all its tabs: so few pulls are followed by a stream of
// their own, none while the page is not seen, and of the others the list is asked.
import { ask, connection, lose, mayChange, send } from "./api.js";
import { store } from "./observable.js";
import { say, warn } from "./parts.js";
import { disk, installed, libs, resource } from "./resources.js";
import { events, wanted } from "./stream.js";

const FINAL = new Set(["downloaded", "exists", "verified", "exported", "imported", "failed", "cancelled"]);
const FOLLOWED = 2;
const QUARTERS = 4;
const PAUSE = 1000; // milliseconds
const RECENT = 300000; // milliseconds for which a pull that a server's end cancelled is gone on with by itself
const KEPT = "kawai.pulls";
const rows = resource("v1/pulls", 5);

/** All pulls that are known, newest first: the server's rows with `files`, `request` and `note`. */
export const pulls = store([]);

const details = new Map(); // by id: {event, files, quarter}, as far as its stream has told
const following = new Map(); // by id: what ends following it
const gone = new Map(); // by id: the rows of pulls that ended with an earlier server
const refused = new Set(); // ids of pulls that may not be followed
const mine = new Set(); // ids of pulls that were cancelled here
const stopped = new Map(); // by id: when a pull was cancelled by somebody else, be it a server that ended

/** Whether a pull has come to its end. */
export const isOver = (pull) => FINAL.has(pull.status) || pull.status === "interrupted";

// what was asked, so that it can be asked again: also after a reload

function requests() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT)) ?? {};
  } catch {
    return {};
  }
}
function remember(id, request) {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify({ ...requests(), [id]: request }));
  } catch { /* a browser that keeps nothing shows what runs all the same */ }
}
function forget(id) {
  const { [id]: _, ...others } = requests();
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(others));
  } catch { /* as above */ }
}

// the list

function merge() {
  const known = requests();
  const listed = rows.get().data ?? [];
  const all = [...[...gone.values()].filter((each) => !listed.some((row) => row.pull === each.pull)), ...listed];
  const newer = new Set();
  pulls.set(all.map((row) => {
    const detail = details.get(row.pull);
    const event = detail && (isOver(detail.event) || !isOver(row)) ? detail.event : {};
    const { status, completed, total, rate, eta, error } = { ...row, ...event };
    const isOld = newer.has(`${row.kind} ${row.target}`); // somebody has begun it anew
    newer.add(`${row.kind} ${row.target}`);
    const request = isOld ? null : known[row.pull] ?? asked(row);
    return { ...row, status, completed, total, rate, eta, error, files: [...(detail?.files ?? [])], request };
  }));
  if (rows.get().data) noteEnded(listed);
  choose();
}

/** What goes on with a pull that somebody else has begun, as `begin` takes it. */
const asked = ({ again, target }) => again && { path: again.path.replace(/^\//, ""), body: again.body, target };

/** Ask anew for what pulls change, where one has ended that nobody here followed. */
function noteEnded(listed) {
  const ended = listed.filter(isOver).map((row) => row.pull).join();
  if (endedBefore !== null && ended !== endedBefore) refreshAll();
  endedBefore = ended;
}
let endedBefore = null;
const refreshAll = () => [installed, disk, libs].forEach((each) => each.touch());

/** Follow the newest that run, while the page is seen. */
function choose() {
  const running = pulls.get().filter((pull) => !isOver(pull)).map((pull) => pull.pull);
  const meant = document.hidden ? [] : running.slice(0, FOLLOWED);
  for (const [id, leave] of following) if (!meant.includes(id) && (document.hidden || !running.includes(id))) leave();
  for (const id of meant) if (!following.has(id) && !refused.has(id) && following.size < FOLLOWED) follow(id);
}

/** Begin to watch; once, when it is known who looks. */
export function watchPulls() {
  refused.clear();
  const leave = rows.subscribe(() => { merge(); goOnWithLost(); });
  const timer = setInterval(() => {
    const others = pulls.get().some((pull) => !isOver(pull) && !following.has(pull.pull));
    if (others && !document.hidden && !connection.get().lost) rows.refresh();
  }, 2 * PAUSE);
  document.addEventListener("visibilitychange", choose);
  findInterrupted();
  return () => {
    leave();
    clearInterval(timer);
    document.removeEventListener("visibilitychange", choose);
    for (const end of [...following.values()]) end();
  };
}

/** Pulls of this tab that the server no longer knows: it was started anew while nobody looked. */
async function findInterrupted() {
  await rows.refresh();
  const listed = rows.get().data;
  if (!listed) return;
  for (const [id, request] of Object.entries(requests())) {
    if (!listed.some((row) => row.pull === id)) interrupt(id, request.target);
  }
  merge();
}

/** A server that ends in peace cancels its pulls, and the next one does not know them. */
function goOnWithLost() {
  const listed = rows.get().data ?? [];
  for (const [id, time] of stopped) {
    if (listed.some((row) => row.pull === id)) continue;
    stopped.delete(id);
    if (Date.now() - time < RECENT) goOnAlone(id);
  }
}

function interrupt(id, target) {
  const before = pulls.get().find((pull) => pull.pull === id);
  const message = "kawai was started anew, and this pull ended with it";
  gone.set(id, {
    kind: "model", target, completed: 0, total: null, started_at: null, ...before, pull: id, status: "interrupted",
    rate: null, eta: null, error: { message, hint: "what was fetched is kept: going on takes it from there" },
  });
}

// one pull

async function follow(id) {
  const leaving = new AbortController();
  following.set(id, () => leaving.abort());
  try {
    while (!leaving.signal.aborted && !(await ended(id, leaving.signal))) await reachable(leaving.signal);
  } catch (problem) {
    refused.add(id);
    if (!leaving.signal.aborted && problem.status !== 401) warn(problem);
  } finally {
    following.delete(id);
    if (!leaving.signal.aborted) { await rows.refresh(); merge(); }
  }
}

/** Take what a pull tells over one connection; whether that was all there is. Throws a `Problem`. */
async function ended(id, leaving) {
  const silence = new AbortController();
  const signal = AbortSignal.any([leaving, silence.signal]);
  try {
    const answer = await send("GET", `v1/pulls/${id}`, undefined, { signal, headers: wanted(details.get(id)?.event.seq) });
    if (answer.status === 204) return true;
    for await (const { data } of events(answer, silence)) {
      take(id, data);
      if (isOver(data)) return true;
    }
    lose(); // only a server that ends leaves a pull before its end
  } catch (problem) {
    if (problem.code === "pull_not_found") { await goOnAlone(id); return true; }
    if (problem.status && problem.status < 500) throw problem;
    if (!problem.status && !leaving.aborted) lose();
  }
  return false;
}

/** Wait until the server can be reached. */
function reachable(signal) {
  return new Promise((go) => {
    const look = () => { if (!connection.get().lost) { stop(); setTimeout(go, PAUSE / 2); } };
    const stop = connection.subscribe(look);
    signal.addEventListener("abort", () => { stop(); go(); });
    look();
  });
}

function take(id, event) {
  const detail = details.get(id) ?? { files: new Map(), quarter: 0 };
  if (event.file) {
    const at = { name: event.file, completed: event.file_completed ?? null, total: event.file_total ?? null };
    detail.files.set(event.file, at);
  }
  const before = detail.event?.status;
  details.set(id, { ...detail, event, files: detail.files, quarter: quarterOf(event, detail.quarter, id) });
  merge();
  if (isOver(event) && !FINAL.has(before)) finish(id, event);
}

/** Say aloud how far it is, four times in all. */
function quarterOf(event, before, id) {
  const quarter = event.total ? Math.floor((QUARTERS * event.completed) / event.total) : 0;
  if (quarter > before && quarter < QUARTERS) heardAt(id, quarter);
  return Math.max(before, quarter);
}

/** What a screen reader is told of progress. */
export const progress = store("");
const heardAt = (id, quarter) => progress.set(`${nameOf(id)}: ${(100 * quarter) / QUARTERS} percent`);
const nameOf = (id) => pulls.get().find((pull) => pull.pull === id)?.target ?? "the pull";

function finish(id, event) {
  const name = nameOf(id);
  if (event.status === "downloaded") { say(`${name} is installed`); forget(id); }
  else if (event.status === "exists") { say(`${name} is here already`); forget(id); }
  else if (event.status === "cancelled") {
    say(`The pull of ${name} is cancelled; what was fetched is kept`);
    if (!mine.has(id)) stopped.set(id, Date.now());
  }
  else if (event.status === "failed" && event.error) warn({ message: `${name}: ${event.error.message}`, hint: event.error.hint });
  refreshAll();
}

/** The server was started anew: ask it for the same again, which goes on with what was fetched. */
async function goOnAlone(id) {
  const request = requests()[id];
  interrupt(id, request?.target ?? nameOf(id));
  if (request && mayBegin(request)) {
    say(`kawai was started anew; the pull of ${request.target} goes on`);
    await goOn({ pull: id, request }).catch(warn);
  }
  merge();
}

const mayBegin = (request) => mayChange() || request.path.startsWith("v1/catalog/pull/");

// what a reader does

/**
 * Begin a pull: `{path, body, target}`. Its first event; it is followed from here on. Throws a `Problem` where
 * the server refuses.
 */
export async function begin(request) {
  const silence = new AbortController();
  const answer = await send("POST", request.path, request.body ?? {}, { signal: silence.signal, headers: wanted() });
  for await (const { data } of events(answer, silence)) {
    if (!isOver(data)) remember(data.pull, { ...request, target: data.id ?? data.version ?? request.target });
    take(data.pull, data);
    await rows.refresh();
    merge();
    return data;
  }
  throw new Error("the server said nothing of the pull");
}

/** Ask for a pull that has ended again. Throws a `Problem`. */
export async function goOn(pull) {
  await begin(pull.request);
  forget(pull.pull);
  gone.delete(pull.pull);
  merge();
}

/** Cancel a pull; what was fetched is kept. Throws a `Problem`. */
export function cancel(pull) {
  mine.add(pull.pull);
  return ask("DELETE", `v1/pulls/${pull.pull}`);
}

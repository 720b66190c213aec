// Pulls: what runs on the server, followed while somebody looks, begun, cancelled and gone on with.
// A browser opens six connections to a server at most, in all its tabs: so few pulls are followed by a stream of
// their own, none while the page is not seen, and of the others the list is asked.
import { ask, connection, lose, mayChange } from "./api.js";
import { forget, remember, requests, sawRunning } from "./kept.js";
import { store } from "./observable.js";
import { say, warn } from "./parts.js";
import { disk, installed, libs, resource } from "./resources.js";
import { listen } from "./stream.js";

const FINAL = new Set(["downloaded", "exists", "verified", "exported", "imported", "failed", "cancelled"]);
const FOLLOWED = 2;
const QUARTERS = 4;
const PAUSE = 1000; // milliseconds
const RECENT = 300000; // milliseconds within which a pull that a server's end broke off is gone on with by itself
const LISTED = 3300000; // milliseconds for which a server surely lists a pull that has ended: it does so for an hour
const ENDING = 30000; // milliseconds from the cancelling of its pulls to a server's end
const rows = resource("v1/pulls", 5);

/** All pulls that are known, newest first: the server's rows with `files`, `request` and `note`. */
export const pulls = store([]);

const details = new Map(); // by id: {event, files, quarter}, as far as its stream has told
const following = new Map(); // by id: what ends following it
const running = new Map(); // by id: the row of a pull that was last seen to run, `listed`, at the time `seen`
const gone = new Map(); // by id: the rows of pulls that ended with an earlier server
const refused = new Set(); // ids of pulls that may not be followed
const mine = new Set(); // ids of pulls that were cancelled here
const stopped = new Map(); // by id: the row of a pull that somebody else cancelled, be it a server that ends, and when

/** Whether a pull has come to its end. */
export const isOver = (pull) => FINAL.has(pull.status) || pull.status === "interrupted";

/** Whether whoever looks may begin what this request begins. */
export const mayBegin = (request) => mayChange() || request.path.startsWith("v1/catalog/pull/");

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
  choose();
}

/** What goes on with a pull that somebody else has begun, as `begin` takes it. */
const asked = ({ again, target }) => again && { path: again.path.replace(/^\//, ""), body: again.body, target };

/** What the server's list tells that was not known: pulls that have ended, or that this server does not know. */
function compare() {
  const { data: listed } = rows.get();
  if (!listed) return;
  const now = Date.now(), there = new Map(listed.map((row) => [row.pull, row]));
  for (const row of listed) {
    if (isOver(row)) settle(row.pull, row);
    else if (!isOver(details.get(row.pull)?.event ?? row)) running.set(row.pull, { ...row, listed: true, seen: now });
  }
  sawRunning(new Set(running.keys()));
  for (const [id, row] of [...running]) if (row.listed && !there.has(id)) lost(id);
  for (const [id, { row, at, isServers }] of [...stopped]) {
    if (there.has(id)) { if (now - at > ENDING) stopped.delete(id); continue; }
    stopped.delete(id);
    if (isServers) { running.set(id, { ...row, seen: at }); lost(id); }
  }
  const ended = listed.filter(isOver).map((row) => row.pull).join();
  if (endedBefore !== null && ended !== endedBefore) refreshAll(); // also of those that nobody here has seen run
  endedBefore = ended;
}
let endedBefore = null;
const refreshAll = () => [installed, disk, libs].forEach((each) => each.touch());

/** A pull has come to its end: say so once, if it was seen to run. */
function settle(id, { status, error }) {
  const row = running.get(id), name = requests()[id]?.target ?? row?.target;
  running.delete(id);
  if (status === "downloaded" || status === "exists") forget(id);
  if (!row) return;
  if (status === "downloaded") say(`${name} is installed`);
  else if (status === "exists") say(`${name} is here already`);
  else if (status === "cancelled") {
    say(`The pull of ${name} is cancelled; what was fetched is kept`);
    if (!mine.has(id)) stopped.set(id, { row, at: Date.now(), isServers: connection.get().lost });
  }
  else if (status === "failed" && error) warn({ message: `${name}: ${error.message}`, hint: error.hint });
  refreshAll();
}

/** A server that ends in peace cancels its pulls first: those it has just cancelled were not meant to end. */
function noteServers() {
  if (!connection.get().lost) return;
  for (const [id, each] of stopped) if (Date.now() - each.at < ENDING) stopped.set(id, { ...each, isServers: true });
}

/**
 * A pull that ran, and that the server does not know: it was started anew, and is asked for the same, which goes on
 * with what was fetched. One that was not seen for long may as well have ended as it should.
 */
async function lost(id) {
  const row = running.get(id), request = requests()[id];
  running.delete(id);
  if (!row) return;
  if (Date.now() - row.seen > LISTED) { forget(id); refreshAll(); return; }
  interrupt(id, { ...row, target: request?.target ?? row.target });
  if (request && mayBegin(request) && Date.now() - row.seen < RECENT) {
    say(`kawai was started anew; the pull of ${request.target} goes on`);
    await goOn({ pull: id, request }).catch(warn);
  }
  merge();
}

function interrupt(id, row) {
  const message = "kawai was started anew, and this pull ended with it";
  gone.set(id, {
    completed: 0, total: null, started_at: null, ...row, pull: id, status: "interrupted", rate: null, eta: null,
    error: { message, hint: "what was fetched is kept: going on takes it from there" },
  });
}

/** Follow the newest that run, while the page is seen. */
function choose() {
  const ids = pulls.get().filter((pull) => !isOver(pull)).map((pull) => pull.pull);
  const meant = document.hidden ? [] : ids.slice(0, FOLLOWED);
  for (const [id, leave] of following) if (!meant.includes(id) && (document.hidden || !ids.includes(id))) leave();
  for (const id of meant) if (!following.has(id) && !refused.has(id) && following.size < FOLLOWED) follow(id);
}

const kindOf = (request) => (request.path.startsWith("v1/libs/") ? "libs" : "model");

/** Begin to watch; once, when it is known who looks. */
export function watchPulls() {
  refused.clear();
  const leave = rows.subscribe(() => { compare(); merge(); });
  const unwatch = connection.subscribe(noteServers);
  const timer = setInterval(() => {
    const others = pulls.get().some((pull) => !isOver(pull) && !following.has(pull.pull));
    if (others && !document.hidden && !connection.get().lost) rows.refresh();
  }, 2 * PAUSE);
  const seen = () => (document.hidden ? choose() : rows.refresh().then(choose)); // what it knows may be old
  document.addEventListener("visibilitychange", seen);
  findInterrupted();
  return () => {
    leave();
    unwatch();
    clearInterval(timer);
    document.removeEventListener("visibilitychange", seen);
    for (const end of [...following.values()]) end();
  };
}

/** Pulls of this tab that the server no longer knows: it was started anew while nobody looked. */
async function findInterrupted() {
  await rows.refresh();
  const listed = rows.get().data;
  if (!listed) return;
  for (const [id, request] of Object.entries(requests())) {
    if (listed.some((row) => row.pull === id) || running.has(id) || gone.has(id)) continue;
    if (Date.now() - request.seen < LISTED) interrupt(id, { kind: kindOf(request), target: request.target });
    else forget(id);
  }
  merge();
}

// one pull

async function follow(id) {
  const leaving = new AbortController();
  following.set(id, () => leaving.abort());
  try {
    while (!leaving.signal.aborted && !(await ended(id, leaving.signal))) await reachable(leaving.signal);
  } catch (problem) {
    if (!leaving.signal.aborted) refused.add(id);
    if (!leaving.signal.aborted && problem.status !== 401) warn(problem);
  } finally {
    following.delete(id);
    if (!leaving.signal.aborted) { await rows.refresh(); merge(); }
  }
}

/** Take what a pull tells over one connection; whether that was all there is. Throws a `Problem`. */
async function ended(id, leaving) {
  try {
    for await (const { data } of listen("GET", `v1/pulls/${id}`, { after: details.get(id)?.event.seq, leaving })) {
      take(id, data);
      if (isOver(data)) return true;
    }
    if (isOver(details.get(id)?.event ?? {})) return true;
    lose(); // only a server that ends leaves a pull before its end
  } catch (problem) {
    if (problem.code === "pull_not_found") { lost(id); return true; }
    if (problem.status && problem.status < 500) throw problem;
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
  details.set(id, { ...detail, event, files: detail.files, quarter: quarterOf(event, detail.quarter, id) });
  if (isOver(event)) settle(id, event);
  else running.set(id, { ...running.get(id), ...event, pull: id, target: nameOf(id, event), seen: Date.now() });
  merge();
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
const nameOf = (id, event) => requests()[id]?.target ?? running.get(id)?.target ?? event?.id ?? event?.latest ?? "the pull";

// what a reader does

/**
 * Begin a pull: `{path, body, target}`. Its first event; it is followed from here on. Throws a `Problem` where
 * the server refuses.
 */
export async function begin(request) {
  for await (const { data } of listen("POST", request.path, { body: request.body ?? {} })) {
    const target = data.id ?? data.latest ?? request.target;
    if (!isOver(data)) remember(data.pull, { ...request, target });
    running.set(data.pull, { kind: kindOf(request), target });
    take(data.pull, data);
    await rows.refresh();
    return data;
  }
  throw new Error("the server said nothing of the pull");
}

/** Ask for a pull that has ended again. Throws a `Problem`. */
export async function goOn(pull) {
  await begin(pull.request);
  dismiss(pull);
}

/** Show a pull no longer that an earlier server has left. */
export function dismiss(pull) {
  forget(pull.pull);
  gone.delete(pull.pull);
  merge();
}

/** Cancel a pull; what was fetched is kept. Throws a `Problem`. */
export function cancel(pull) {
  mine.add(pull.pull);
  return ask("DELETE", `v1/pulls/${pull.pull}`);
}

// The smallest kind of state: a value that others watch.

/** A value that others watch. */
export function store(value) {
  const watchers = new Set();
  return {
    get: () => value,
    set(next) {
      if (next === value) return;
      value = next;
      for (const each of [...watchers]) each();
    },
    subscribe(call) {
      watchers.add(call);
      return () => watchers.delete(call);
    },
  };
}

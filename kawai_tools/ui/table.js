// A table of any length: only the rows that can be seen are in the document, so that thousands cost what forty do.
// Every row has the same height, which the stylesheet knows, too: a row is a card where the window is narrow. The same
// elements show one row after the other, since making elements costs more than anything else.
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./html.js";

const NARROW = matchMedia("(max-width: 48rem)");
const HEIGHT = { wide: 48, narrow: 176 };
const STEP = 2; // rows: scrolling by fewer draws nothing anew
const AROUND = 2 * STEP; // rows that are drawn before and after those that are seen
const ABOVE = 272; // pixels of the page that are not the table's: what is seen first is drawn first, then what is around
const seenFirst = (height) => Math.max(8, Math.ceil((innerHeight - ABOVE) / height) + 1);

function useNarrow() {
  const [narrow, set] = useState(NARROW.matches);
  useEffect(() => {
    const change = () => set(NARROW.matches);
    NARROW.addEventListener("change", change);
    return () => NARROW.removeEventListener("change", change);
  }, []);
  return narrow;
}

/** What text is sorted by, whatever its case, and with numbers by their size: a collator takes ten times as long. */
const natural = (text) => text.toLowerCase().replace(/\d+/g, (digits) => digits.padStart(12, "0"));

/** The rows in the order of a column; those that have nothing there come last. */
function sorted(rows, column, descending) {
  const keyed = rows.map((row) => {
    const key = column.key(row);
    return [typeof key === "string" ? natural(key) : key, row];
  });
  const sign = descending ? -1 : 1;
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return a === b ? 0 : a < b ? -sign : sign;
  });
  return keyed.map(([, row]) => row);
}

/**
 * `columns` are `{title, cell(row, slot), key(row)}`: one without `key` cannot be sorted by; `id(row)` tells rows apart,
 * `slot` is the number of the elements that show a row.
 */
export function Table({ label, columns, rows, id, first = 0, empty }) {
  const narrow = useNarrow();
  const height = narrow ? HEIGHT.narrow : HEIGHT.wide;
  const box = useRef(null);
  const [order, setOrder] = useState({ column: first, descending: false });
  const [view, setView] = useState({ start: 0, drawn: seenFirst(height) });
  const ordered = useMemo(() => sorted(rows, columns[order.column], order.descending), [rows, order]);

  function look() {
    if (!box.current) return; // it has just left the page
    const { scrollTop, clientHeight } = box.current;
    const start = Math.max(0, Math.floor(scrollTop / height / STEP) * STEP - STEP);
    const drawn = Math.ceil(clientHeight / height) + 1 + AROUND; // always as many: none is made or taken away
    setView((old) => (old.start === start && old.drawn === drawn ? old : { start, drawn }));
  }
  useEffect(look, [height, rows.length === 0]);
  useEffect(() => {
    const watcher = new ResizeObserver(look);
    watcher.observe(box.current);
    return () => watcher.disconnect();
  }, [height]);
  function sortBy(column) {
    setOrder((old) => ({ column, descending: old.column === column && !old.descending }));
    box.current.scrollTop = 0;
  }

  const focused = useRef(null);
  function noteFocus({ target }) {
    const row = target.closest("tr");
    focused.current = { id: row.dataset.id, place: controls(row).indexOf(target), target };
  }
  useLayoutEffect(() => {
    // rows are drawn over: the focus stays with the row that it was in, and where that has gone, in the table
    const at = document.activeElement, row = at?.closest?.("tbody tr"), meant = focused.current;
    if (!meant || row?.dataset.id === meant.id) return;
    const hasLeft = at === document.body ? meant.target.isConnected : !box.current.contains(row); // of its own will
    if (hasLeft) { focused.current = null; return; }
    const same = [...box.current.querySelectorAll("tbody tr[data-id]")].find((each) => each.dataset.id === meant.id);
    (same ? controls(same)[meant.place] ?? box.current : box.current).focus({ preventScroll: true });
  });

  const start = Math.min(view.start, Math.max(0, ordered.length - view.drawn));
  const end = Math.min(start + view.drawn, ordered.length);
  const choices = columns.map((column, index) => ({ column, index })).filter(({ column }) => column.key);
  return html`
    <div class="sorter">
      <label>Sort by
        <select value=${order.column} onChange=${(event) => setOrder({ column: Number(event.target.value), descending: false })}>
          ${choices.map(({ column, index }) => html`<option key=${index} value=${index}>${column.title}</option>`)}
        </select></label>
      <button type="button" class="secondary" onClick=${() => setOrder({ ...order, descending: !order.descending })}>
        ${order.descending ? "Descending" : "Ascending"}</button>
    </div>
    <div class="table" ref=${box} onScroll=${look} tabindex="0" role="region" aria-label=${label}>
      <table aria-rowcount=${ordered.length + 1}>
        <thead><tr aria-rowindex="1">
          ${columns.map((column, index) => html`
            <th key=${column.title} scope="col" class=${column.kind}
              aria-sort=${order.column === index ? (order.descending ? "descending" : "ascending") : null}>
              ${column.key
                ? html`<button type="button" class="sort" onClick=${() => sortBy(index)}>${column.title}</button>`
                : html`<span class=${column.hidden ? "hidden" : null}>${column.title}</span>`}
            </th>`)}
        </tr></thead>
        <tbody onFocusIn=${noteFocus} onFocusOut=${({ relatedTarget }) => relatedTarget && (focused.current = null)}>
          <${Space} height=${start * height} columns=${columns.length} />
          ${ordered.slice(start, end).map((row, place) => html`
            <${Row} key=${place} slot=${place} row=${row} place=${start + place + 2} columns=${columns} id=${id} />`)}
          <${Space} height=${(ordered.length - end) * height} columns=${columns.length} />
        </tbody>
      </table>
      ${!ordered.length && html`<p class="empty">${empty}</p>`}
    </div>`;
}

const Row = ({ row, slot, place, columns, id }) => html`
  <tr data-id=${id(row)} aria-rowindex=${place}>
    ${columns.map((column, index) => index
      ? html`<td key=${column.title} class=${column.kind} data-title=${column.title}>${column.cell(row, slot)}</td>`
      : html`<th key=${column.title} scope="row" class=${column.kind}>${column.cell(row, slot)}</th>`)}
  </tr>`;

/** What of a row can have the focus. */
const controls = (row) => [...row.querySelectorAll("a, button")];

/** The room of rows that are not drawn. */
const Space = ({ height, columns }) => height > 0 && html`
  <tr class="space" aria-hidden="true"><td colspan=${columns} style=${{ height: `${height}px` }}></td></tr>`;

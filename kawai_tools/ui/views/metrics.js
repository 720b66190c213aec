// Metrics: the last hour of requests, tokens and memory, in steps of ten seconds; charts, and the same as a table.
import { html, useEffect, useMemo, useRef, useState } from "../html.js";
import { Loaded } from "../parts.js";
import { stats } from "../resources.js";
import { count, size } from "../text.js";

const STEP = 10; // seconds
const HEIGHT = 150;
const WIDTHS = { min: 220, gap: 4 };
const MINUTE = 6; // steps

const decimal = (value) => (value === null ? "–" : value.toFixed(value < 10 ? 2 : 0));
const CHARTS = [
  { title: "Requests per second", lines: [["requests/s", (step) => step.requests / STEP]], shown: decimal },
  { title: "Time to first token", lines: [["ms", (step) => step.ttft_ms]], shown: (value) => (value === null ? "–" : `${count(Math.round(value))} ms`) },
  { title: "Tokens per second", lines: [["tokens/s", (step) => step.tokens / STEP]], shown: decimal },
  { title: "Memory of loaded models", lines: [["memory", (step) => step.memory]], shown: size },
  { title: "Loads and evictions", lines: [["loads", (step) => step.loads], ["evictions", (step) => step.evictions]], shown: decimal },
];

/** The view. */
export function Metrics() {
  const [Chart, setChart] = useState(null);
  const [failed, setFailed] = useState(false);
  useEffect(() => {
    style("vendor/uplot.css");
    import("../vendor/uplot.js").then((found) => setChart(() => found.default), () => setFailed(true));
  }, []);
  return html`
    <h1 tabindex="-1">Metrics</h1>
    <p>The last hour, as far as this kawai has been running for it. Requests are those that models answered.</p>
    <${Loaded} from=${stats} what="Asking for the last hour …">
      ${({ history }) => html`
        ${failed && html`<p class="notice failed" role="alert">The charts could not be loaded; the figures are below.</p>`}
        <${Charts} history=${history} Chart=${Chart} />
        <${Figures} history=${history} />`}
    <//>`;
}

function style(path) {
  if (document.querySelector(`link[href="${path}"]`)) return;
  const sheet = Object.assign(document.createElement("link"), { rel: "stylesheet", href: path });
  document.head.append(sheet);
}

/** The last step is still counted: as a rate it would fall every ten seconds, and rise again. */
function Charts({ history, Chart }) {
  const whole = useMemo(() => history.slice(0, -1), [history]);
  return html`<div class="charts">${CHARTS.map((chart) => html`
    <${Figure} key=${chart.title} chart=${chart} history=${whole} Chart=${Chart} />`)}</div>`;
}

function Figure({ chart, history, Chart }) {
  const box = useRef(null), plot = useRef(null);
  const data = useMemo(() => [
    history.map((step) => Date.parse(step.time) / 1000),
    ...chart.lines.map(([, value]) => history.map(value)),
  ], [history]);
  useEffect(() => {
    if (!Chart) return undefined;
    const element = box.current;
    const drawn = new Chart(optionsOf(chart, element.clientWidth), data, element);
    plot.current = drawn;
    const watcher = new ResizeObserver(() => drawn.setSize({ width: widthOf(element.clientWidth), height: HEIGHT }));
    watcher.observe(element);
    return () => { watcher.disconnect(); drawn.destroy(); };
  }, [Chart]);
  useEffect(() => { plot.current?.setData(data); }, [data]);
  const last = history.at(-1);
  const now = chart.lines.map(([name, value]) => `${name} ${chart.shown(last ? value(last) : null)}`).join(", ");
  return html`
    <article class="chart" aria-label=${chart.title}>
      <h2>${chart.title}</h2>
      <div ref=${box} role="img" aria-label=${`${chart.title}, over the last hour; last ${now}`}></div>
    </article>`;
}

const widthOf = (room) => Math.max(WIDTHS.min, room - WIDTHS.gap);

function optionsOf(chart, width) {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = { stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
  const strokes = [colour("--busy"), colour("--bad")];
  return {
    width: widthOf(width),
    height: HEIGHT,
    cursor: { drag: { x: false, y: false } },
    scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
    axes: [axis, { ...axis, size: 70, values: (_, ticks) => ticks.map(chart.shown) }],
    series: [{}, ...chart.lines.map(([label], index) => ({
      label, stroke: strokes[index], width: 1.5, spanGaps: false, value: (_, value) => chart.shown(value ?? null),
    }))],
  };
}

/** The same in figures, a minute a row: for those who do not see charts, and for copying. */
function Figures({ history }) {
  const rows = useMemo(() => minutes(history), [history]);
  return html`
    <details><summary>Figures</summary>
      <div class="scroll" tabindex="0" role="region" aria-label="Figures of the last hour"><table>
        <thead><tr>${["Minute", "Requests", "First token", "Tokens", "Memory", "Loads", "Evictions"].map((title) => html`
          <th key=${title} scope="col">${title}</th>`)}</tr></thead>
        <tbody>${rows.map((row) => html`
          <tr key=${row.time}><th scope="row">${new Date(row.time).toLocaleTimeString()}</th><td>${count(row.requests)}</td>
            <td>${row.ttft === null ? "–" : `${count(Math.round(row.ttft))} ms`}</td><td>${count(row.tokens)}</td>
            <td>${size(row.memory)}</td><td>${count(row.loads)}</td><td>${count(row.evictions)}</td></tr>`)}</tbody>
      </table></div>
    </details>`;
}

function minutes(history) {
  const rows = [];
  for (let start = history.length; start > 0; start -= MINUTE) {
    const steps = history.slice(Math.max(0, start - MINUTE), start);
    const sum = (name) => steps.reduce((total, step) => total + step[name], 0);
    const times = steps.map((step) => step.ttft_ms).filter((value) => value !== null);
    rows.push({
      time: steps[0].time, requests: sum("requests"), tokens: sum("tokens"), loads: sum("loads"), evictions: sum("evictions"),
      memory: steps.at(-1).memory, ttft: times.length ? times.reduce((a, b) => a + b) / times.length : null,
    });
  }
  return rows;
}

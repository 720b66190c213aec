"""The admin page with 1,000 models, in Debian's chromium.

Its first view against a page that fetches and prints the same JSON, both timed from navigation to the frame
that shows it, in turns and in new browser contexts; the longest task and frame of the browser's own trace
while the models are scrolled and sorted; the server's CPU while a page is open and nothing happens. Exits
with 1 if a bound is passed. Needs chromium.
"""

import argparse
import contextlib
import http.server
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright
from serving import serving
from stores import make_store

MODELS = 1_000
VIEW = {"width": 1280, "height": 800}
QUIET = 700
"""Milliseconds in which the page before goes, and the new one is made: neither is what is measured."""

PLAIN = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>plain</title></head><body>
<pre></pre>
<script type="module">
const answer = await fetch("{url}/v1/models");
document.querySelector("pre").textContent = JSON.stringify(await answer.json(), null, 2);
</script></body></html>"""
WATCH = """
(() => {
  const find = (what) => document.querySelector(what);
  const seen = () => find("tbody tr[aria-rowindex]") || find("pre")?.textContent;
  const note = () => setTimeout(() => { window.shownAt = performance.now(); });
  const look = () => requestAnimationFrame(seen() ? note : look);
  requestAnimationFrame(look);
})();
"""
"""Notes when the frame after the one that has the models has been drawn."""

SCROLL_PLAIN = """async () => {
  const frame = () => new Promise((go) => requestAnimationFrame(go));
  for (let top = 0; top < 200000; top += 400) { scrollTo(0, top); await frame(); }
}"""
SCROLL = """async () => {
  const box = document.querySelector(".table");
  const frame = () => new Promise((go) => requestAnimationFrame(go));
  for (let round = 0; round < 2; round += 1) {
    for (let top = 0; top < box.scrollHeight; top += 400) { box.scrollTop = top; await frame(); }
  }
  for (const name of ["Size", "Model", "Last used", "Quantization", "State", "Size", "Model"]) {
    [...document.querySelectorAll("th button")].find((each) => each.textContent === name).click();
    for (let wait = 0; wait < 5; wait += 1) await frame();
  }
}"""


@contextlib.contextmanager
def plain() -> Iterator[tuple[str, list[str]]]:
    """A server of one page; its address, and where what it shall fetch is to be put."""
    urls: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = PLAIN.replace("{url}", urls[-1]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", urls
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def opened(browser: Browser, url: str) -> Iterator[Page]:
    """A page in a context of its own, once it shows the models."""
    context = browser.new_context(viewport=VIEW)  # type: ignore[arg-type] # its own kind of dict
    context.add_init_script(WATCH)
    page = context.new_page()
    page.wait_for_timeout(QUIET)
    page.goto(url)
    page.wait_for_function("() => window.shownAt !== undefined")
    try:
        yield page
    finally:
        context.close()


def first_view(browser: Browser, urls: dict[str, str], rounds: int, bound: float) -> bool:
    """The time to the first view, in turns."""
    times: dict[str, list[float]] = {name: [] for name in urls}
    for _ in range(rounds + 1):
        for name, url in urls.items():
            with opened(browser, url) as page:
                times[name].append(page.evaluate("window.shownAt"))
    found = {name: statistics.median(each[1:]) for name, each in times.items()}
    ratio = found["kawai"] / found["plain"]
    print(
        f"first view of {MODELS:,} models: {found['kawai']:.0f} ms = {ratio:.2f} of {found['plain']:.0f} ms "
        f"for a page that prints the JSON ({rounds} alternating rounds; at most {bound:g})"
    )
    return ratio <= bound


def moved(browser: Browser, url: str, script: str) -> tuple[float, float, int]:
    """The longest task of a page's main thread, the longest time between frames (ms), and how many frames."""
    with opened(browser, url) as page, tempfile.TemporaryDirectory() as folder:
        page.wait_for_timeout(1500)  # what is asked at the start is here
        trace = Path(folder, "trace.json")
        browser.start_tracing(page=page, path=trace, categories=["devtools.timeline", "toplevel"])
        page.evaluate(script)
        browser.stop_tracing()
        events = json.loads(trace.read_text())["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    mains = {key for key, name in names.items() if name == "CrRendererMain"}
    fired = [(e["pid"], e["tid"]) for e in events if e["name"] == "FireAnimationFrame"]
    own = [e for e in events if (e["pid"], e["tid"]) == max(mains, key=fired.count)]
    begun = sorted(e["ts"] for e in own if e["name"] == "FireAnimationFrame")
    gaps = [(later - earlier) / 1e3 for earlier, later in pairwise(begun)]
    whole = (e for e in own if e["name"].endswith("RunTask") and "dur" in e)  # the last one is cut off
    tasks = [e["dur"] / 1e3 for e in whole if begun[0] <= e["ts"] <= begun[-1]]
    return max(tasks), max(gaps), len(begun)


def frames(browser: Browser, urls: dict[str, str], rounds: int, bound: float) -> bool:
    """The longest frame while models are scrolled and sorted, and what the machine adds to any page."""
    scripts = {"plain": SCROLL_PLAIN, "kawai": SCROLL}
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in urls}
    for _ in range(rounds):
        for name, url in urls.items():
            found[name].append(moved(browser, url, scripts[name]))
    longest = {}
    for name, passes in found.items():
        longest[name] = sorted(max(task, gap) for task, gap, _ in passes)
        shown = ", ".join(f"{each:.0f}" for each in longest[name])
        print(f"  {name}: {passes[0][2]} frames a pass; the longest of each pass, in ms: {shown}")
    medians = {name: statistics.median(each) for name, each in longest.items()}
    print(
        f"scrolling and sorting them: longest frame or task {longest['kawai'][-1]:.0f} ms, scrolling the "
        f"plain page {longest['plain'][-1]:.0f} ms (medians of {rounds} passes: {medians['kawai']:.0f} and "
        f"{medians['plain']:.0f} ms; at most {bound:g})"
    )
    return longest["kawai"][-1] <= bound


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quiet(browser: Browser, url: str, pid: int, seconds: int, bound: float) -> bool:
    """The server's share of a core while each of two views is open and nothing happens."""
    fine = True
    for view in ("models", "running", "metrics"):
        with opened(browser, f"{url}/ui/#/models") as page:
            page.goto(f"{url}/ui/#/{view}")
            page.wait_for_timeout(5000)
            begun, used = time.monotonic(), cpu(pid)
            page.wait_for_timeout(seconds * 1000)
            share = (cpu(pid) - used) / (time.monotonic() - begun)
        print(f"an open page ({view}) costs the server {share:.2%} of a core (under {bound:.0%})")
        fine &= share < bound
    return fine


def main() -> None:
    """Measure all, and print what it comes to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--passes", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--view-bound", type=float, default=1.5)
    parser.add_argument("--frame-bound", type=float, default=50.0)
    parser.add_argument("--cpu-bound", type=float, default=0.01)
    given = parser.parse_args()
    path = shutil.which("chromium") or sys.exit(
        "chromium is not installed (Debian: apt-get install chromium)"
    )
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="kawai-bench-") as name, contextlib.ExitStack() as stack:
        origin, fetched = stack.enter_context(plain())
        env = {**make_store(Path(name), MODELS), "KAWAI_ALLOW_ORIGINS": origin}
        url, pid = stack.enter_context(serving(env))
        fetched.append(url)
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=path, args=root)
        pages = {"plain": origin, "kawai": f"{url}/ui/"}
        fine = [
            first_view(browser, pages, given.rounds, given.view_bound),
            frames(browser, pages, given.passes, given.frame_bound),
            quiet(browser, url, pid, given.seconds, given.cpu_bound),
        ]
        browser.close()
    sys.exit(not all(fine))


if __name__ == "__main__":
    main()

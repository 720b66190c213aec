"""The admin page in a real browser: what people do with it, what it survives, and that nobody is shut out."""

import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests import browser as browsers
from tests.browser import PATIENCE, PHONE, VIEWS, Tab, tab
from tests.bundles import asset_name, host_platform, launcher_bundle
from tests.hub import LocalHub
from tests.inference import LONG, MODEL, REPO, chat, flow, started
from tests.program import Daemon, Program, serving
from tests.samples import tiny_gguf
from tests.test_catalog_pull import at_hub, entry, lists

pytestmark = pytest.mark.slow
expect.set_options(timeout=PATIENCE)

MARKUP = "<img src=x onerror=alert(1)>"
TURNED = "\u202egnp.exe\u202c"
BELL = "ring\x07\x1b[31m"
PICTURES = Path(__file__).parent / "pictures"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.started() as found:
        yield found


class Place(NamedTuple):
    """A hub, a home, and a server on it that runs the real model with one thread."""

    hub: LocalHub
    program: Program
    daemon: Daemon


def place_of(root: Path, hub: LocalHub) -> Program:
    environ = {"HF_ENDPOINT": hub.endpoint, "KAWAI_LIBS_API": hub.libs_api, "KAWAI_THREADS": "1"}
    return Program(root, environ)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with LocalHub(tmp_path / "hub") as hub:
        program = place_of(tmp_path, hub)
        with serving(program) as daemon:
            yield Place(hub, program, daemon)


def button(page: Page | Locator, name: str) -> Locator:
    return page.get_by_role("button", name=re.compile(f"^{re.escape(name)}"))


def go(page: Page, view: str) -> None:
    """To another view, as people go there."""
    page.get_by_role("navigation", name="Views").get_by_role("link", name=view).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(view)


def plan(page: Page, source: str) -> Locator:
    """The plan of a pull."""
    page.get_by_label("Pull a model from").fill(source)
    button(page, "Plan").click()
    return page.get_by_role("dialog")


# what people do


def test_a_model_from_its_pull_to_its_deletion(browser: Browser, place: Place, real_model: Path) -> None:
    place.hub.add_file(REPO, f"{MODEL}.gguf", real_model)
    place.hub.throttle = 2_000_000
    with tab(browser, place.daemon) as opened:
        page = opened.open()
        dialog = plan(page, REPO)
        expect(dialog).to_contain_text("98.4 MB")
        expect(dialog).to_contain_text("fits")
        button(dialog, "Pull").click()
        _cancelled(page)
        place.hub.throttle = None
        go(page, "Pulls")
        button(page, "Go on").click()
        expect(page.get_by_text(f"{MODEL} is installed").first).to_be_visible()
        go(page, "Models")
        button(page, f"Load {MODEL}").click()
        expect(button(page, f"Unload {MODEL}")).to_be_visible()
        _counted(page, place.daemon)
        go(page, "Models")
        button(page, f"Unload {MODEL}").click()
        expect(button(page, f"Load {MODEL}")).to_be_visible()
        button(page, f"Verify {MODEL}").click()
        expect(page.get_by_role("dialog")).to_contain_text("Every byte is as it should be.")
        page.keyboard.press("Escape")
        button(page, f"Delete {MODEL}").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("This frees 98.4 MB of disk.")
        button(dialog, "Delete").click()
        expect(page.get_by_text("No model is installed yet.")).to_be_visible()
    assert place.program("models", "list", "--json").out == '{"object":"list","data":[]}\n'


def _cancelled(page: Page) -> None:
    """See the bar move, also after a reload, and cancel."""
    bar = page.get_by_role("progressbar", name=f"Progress of {MODEL}")
    expect(bar).to_be_visible()
    before = float(bar.get_attribute("value") or 0)
    page.wait_for_function(
        "([name, before]) => document.querySelector(`progress[aria-label='${name}']`)?.value > before",
        arg=[f"Progress of {MODEL}", before],
    )
    page.reload()
    expect(bar).to_be_visible()
    button(page, f"Cancel {MODEL}").click()
    expect(page.get_by_text(re.compile("is cancelled")).first).to_be_visible()


def _counted(page: Page, daemon: Daemon) -> None:
    """See a stream in Running."""
    go(page, "Running")
    card = page.get_by_role("article", name=MODEL)
    expect(card.locator("[data-streams]")).to_have_text("0")
    with flow(daemon, chat("Count to a thousand", stream=True, **LONG)) as answer:
        started(answer)
        expect(card.locator("[data-streams]")).to_have_text("1")
        expect(card).to_contain_text("1 of")
    expect(card.locator("[data-streams]")).to_have_text("0")


def test_a_model_of_the_catalog(browser: Browser, place: Place) -> None:
    place.hub.add_file("me/small-GGUF", "Small-Q8_0.gguf", tiny_gguf(name="Small"))
    lists(place.program, entry("Small-Q8_0", at_hub("small-GGUF", "Small-Q8_0.gguf"), category="Mine"))
    with tab(browser, place.daemon) as opened:
        page = opened.open("catalog")
        page.get_by_label("Category").select_option("Mine")
        expect(page.get_by_text(re.compile(r"^1 of \d+$"))).to_be_visible()
        button(page, "Plan the pull of Small-Q8_0").click()
        button(page.get_by_role("dialog"), "Pull").click()
        expect(
            page.get_by_role("article", name="Small-Q8_0").get_by_text("installed", exact=True)
        ).to_be_visible()
        page.get_by_label("Category").select_option("")
        page.get_by_label("Show").select_option("installed")
        expect(page.get_by_role("article")).to_have_count(1)


def test_a_build_and_the_one_before(browser: Browser, place: Place, tmp_path: Path) -> None:
    for tag in ("b1", "b2"):
        bundle = launcher_bundle(tag, directory=tmp_path / tag)
        place.hub.add_release(tag, {asset_name(tag, host_platform()): bundle})
    assert place.program("libs", "pull", "b1").code == 0
    with tab(browser, place.daemon) as opened:
        page = opened.open("libs")
        button(page, "Pull b2").click()
        button(page.get_by_role("dialog"), "Pull").click()
        expect(page.get_by_role("article", name="b2 for cpu").get_by_text("active")).to_be_visible()
        expect(page.get_by_role("article", name="b2 for cpu").get_by_text("works")).to_be_visible()
        button(page, "Roll back").click()
        expect(page.get_by_text("b1 is active again")).to_be_visible()
        button(page, "Activate b2").click()
        expect(
            page.get_by_role("article", name="b2 for cpu").get_by_text("active", exact=True)
        ).to_be_visible()
        button(page, "Remove b1").click()
        button(page.get_by_role("dialog"), "Remove").click()
        expect(page.get_by_role("article", name="b1 for cpu")).to_have_count(0)
        button(page, "Show what it offers").click()
        expect(page.get_by_text("for this machine")).to_be_visible()


def test_tokens_are_made_shown_once_and_revoked(browser: Browser, place: Place) -> None:
    with tab(browser, place.daemon) as opened:
        page = opened.open("tokens")
        page.get_by_label("Name").fill("laptop")
        button(page, "Make a token").click()
        made = page.get_by_role("textbox", name="The new token").input_value()
        assert made.startswith("kawai_")
        button(page, "Done").click()
        assert made not in page.content()
        button(page, "Revoke laptop").click()
        button(page.get_by_role("dialog"), "Revoke").click()
        expect(page.get_by_role("rowheader", name="laptop")).to_have_count(0)
        page.get_by_label("Good for").fill("soon")
        button(page, "Make a token").click()
        expect(page.get_by_role("alert").filter(has_text="expires cannot be")).to_contain_text("90m, 12h")
        opened.excuse("400 (Bad Request)")


def test_logs_are_followed_filtered_and_taken_along(browser: Browser, place: Place) -> None:
    with tab(browser, place.daemon) as opened:
        page = opened.open("logs")
        lines = page.get_by_role("log")
        expect(lines).to_contain_text("kawai is serving on")
        place.hub.add_file("me/tiny-GGUF", "Tiny-Q8_0.gguf", tiny_gguf())
        assert place.daemon.ask("POST", "/v1/models/pull", {"model_url": "me/tiny-GGUF"}).status == 200
        expect(lines).to_contain_text("of Tiny-Q8_0 ends: downloaded")
        page.get_by_label("Filter").fill("tiny begins")
        expect(lines.locator("p")).to_have_count(1)
        with page.expect_download() as found:
            button(page, "Download").click()
        text = Path(found.value.path()).read_text()
        assert (found.value.suggested_filename, text.count("\n")) == ("kawai-server.log", 1)
        page.get_by_label("At least").select_option("error")
        expect(lines.locator("p")).to_have_count(0)
        page.get_by_label(re.compile("^Of")).select_option("Tiny-Q8_0")
        expect(page).to_have_url(re.compile("#/logs/Tiny-Q8_0$"))


# who is let in


class Asking(NamedTuple):
    """A server that asks for tokens, with a model."""

    program: Program
    daemon: Daemon

    def token(self, *words: str) -> str:
        made: dict[str, Any] = json.loads(self.program("tokens", "create", "--json", *words).out)
        return str(made["token"])


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    root = tmp_path_factory.mktemp("asking")
    with LocalHub(root / "hub") as hub:
        hub.add_file("me/tiny-GGUF", "Tiny-Q8_0.gguf", tiny_gguf())
        program = place_of(root, hub)
        assert program("models", "pull", "me/tiny-GGUF").code == 0
        with serving(program, "--auth") as daemon:
            yield Asking(program, daemon)


def signed_in(opened: Tab, token: str, view: str = "models") -> Page:
    """A page in which somebody has signed in with a token."""
    page = opened.open(view)
    page.get_by_label("Token").fill(token)
    button(page, "Sign in").click()
    page.get_by_role("navigation", name="Views").wait_for()
    return page


def test_a_code_signs_in(browser: Browser, asking: Asking) -> None:
    with tab(browser, asking.daemon) as opened:
        url = code_of(asking.program)
        page = opened.open(url=url)
        expect(page.get_by_text("Tiny-Q8_0")).to_be_visible()
        assert "code" not in page.url
        assert "code" not in (page.evaluate("history.state && JSON.stringify(history.state)") or "")
        make_token(page)
        page.goto("about:blank")
        page.goto(url)  # the code is used up, and the session stands
        expect(page.get_by_text("Tiny-Q8_0")).to_be_visible()
        expect(page.get_by_text("is not good, or no longer")).to_be_visible()
        make_token(page)
        opened.excuse("401 (Unauthorized)")
    with tab(browser, asking.daemon) as opened:
        page = opened.open(url=url)
        expect(page.get_by_text("is not good, or no longer")).to_be_visible()
        opened.excuse("401 (Unauthorized)")
        page.goto(code_of(asking.program))  # put into the address of the form: nothing is loaded anew
        expect(page.get_by_text("Tiny-Q8_0")).to_be_visible()
        assert "code" not in page.url


def code_of(program: Program) -> str:
    """An address that signs in."""
    return str(json.loads(program("ui", "--no-browser", "--json").out)["url"])


def make_token(page: Page) -> None:
    """Something that a session's cookie alone could not do."""
    go(page, "Tokens")
    button(page, "Make a token").click()
    page.get_by_role("textbox", name="The new token").wait_for()
    button(page, "Done").click()


def test_two_tabs_have_one_session(browser: Browser, asking: Asking) -> None:
    with tab(browser, asking.daemon) as opened:
        page = opened.open(url=code_of(asking.program))
        make_token(page)
        other = page.context.new_page()
        other.goto(code_of(asking.program))  # the cookie is another now
        make_token(other)
        make_token(page)
        opened.excuse("403 (Forbidden)")
        button(other, "Sign out").click()
        expect(other.get_by_role("heading", level=1)).to_have_text("Sign in to kawai")
        page.get_by_role("link", name="Doctor").click()
        expect(page.get_by_text("The session is over.")).to_be_visible()
        opened.excuse("401 (Unauthorized)")


def test_a_link_of_elsewhere_leads_to_who_is_signed_in(browser: Browser, asking: Asking) -> None:
    with tab(browser, asking.daemon) as opened:
        page = opened.open(url=code_of(asking.program))
        expect(page.get_by_text("Tiny-Q8_0")).to_be_visible()
        for cookies in ("kept", "cleared"):
            page.goto("data:text/html,")
            page.set_content(f"<a href='{asking.daemon.url}/ui/#/doctor'>kawai</a>")
            page.get_by_role("link", name="kawai").click()
            title = "Doctor" if cookies == "kept" else "Sign in to kawai"
            expect(page.get_by_role("heading", level=1)).to_have_text(title)
            assert page.evaluate("document.documentElement.dataset.session") == "unknown"
            page.context.clear_cookies()
        opened.excuse("401 (Unauthorized)")


def test_a_token_signs_in_and_a_wrong_one_does_not(browser: Browser, asking: Asking) -> None:
    with tab(browser, asking.daemon) as opened:
        page = opened.open("doctor")
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in to kawai")
        assert opened.problems == []
        page.get_by_label("Token").fill("kawai_wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").first).to_contain_text("no token of this server")
        opened.excuse("401 (Unauthorized)")
        page.get_by_label("Token").fill(asking.token("--admin"))
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Doctor")  # as the address said
        button(page, "Sign out").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in to kawai")
        assert not [each for each in page.context.cookies() if each["name"] == "kawai_session"]


ADMINS = {
    "Activate", "Ask again", "Cancel", "Delete", "Load", "Protect from prune", "Remove", "Roll back",
    "Show what it offers", "Unload", "Unload now", "Update lists", "Verify",
}  # fmt: skip
"""What only an admin may press."""


def actions(page: Page, place: Place) -> set[str]:
    """The words on all buttons of all views, but what anybody may press."""
    found = set()
    for view in (*VIEWS, f"models/{MODEL}", "models/Tiny-Q8_0"):
        page.goto(f"{place.daemon.url}/ui/#/{view}")
        page.locator("main h1").wait_for()
        page.wait_for_function("() => !document.querySelector('main .waiting')")
        page.wait_for_timeout(300)  # what is listed comes after that
        found |= {each.split("\n")[0] for each in page.locator("main button").all_inner_texts()}
    return found


def test_a_user_sees_no_actions_of_admins(
    browser: Browser, place: Place, real_model: Path, tmp_path: Path
) -> None:
    """Where there is something to press them for: what runs, what is installed, what is being pulled."""
    place.hub.add_release(
        "b1", {asset_name("b1", host_platform()): launcher_bundle("b1", directory=tmp_path / "b1")}
    )
    place.hub.add_file(REPO, f"{MODEL}.gguf", real_model)
    place.hub.add_file("me/tiny-GGUF", "Tiny-Q8_0.gguf", tiny_gguf())
    lists(place.program, entry("Small-Q8_0", at_hub("small-GGUF", "Small-Q8_0.gguf")))
    for words in (
        ("models", "pull", REPO),
        ("models", "pull", "me/tiny-GGUF"),
        ("libs", "pull", "b1", "--no-activate"),
    ):
        assert place.program(*words).code == 0
    tokens = [
        json.loads(place.program("tokens", "create", "--json", *words).out)["token"]
        for words in ((), ("--admin",))
    ]
    place.daemon.stop()
    with serving(place.program, "--auth", "--engine", "xllamacpp") as daemon:
        here = Place(place.hub, place.program, daemon)
        admin = {"Authorization": f"Bearer {tokens[1]}"}
        asked = daemon.ask("POST", "/v1/chat/completions", chat(keep_alive=-1), admin)
        assert asked.status == 200
        place.hub.throttle = 1000
        place.hub.add_file("me/slow-GGUF", "Slow-Q8_0.gguf", real_model)
        pulling = contextlib.closing(daemon.connect())
        with pulling as wire, tab(browser, daemon) as opened:
            sent = {**admin, "Content-Type": "application/json"}
            wire.request("POST", "/v1/models/pull", json.dumps({"model_url": "me/slow-GGUF"}), sent)
            wire.getresponse().readline()
            page = signed_in(opened, tokens[0])
            views = page.get_by_role("navigation", name="Views").get_by_role("link").all_inner_texts()
            assert [each.split("\n")[0].rstrip(" 1") for each in views] == [
                "Models", "Pulls", "Running", "Catalog", "Libraries", "Metrics",
            ]  # fmt: skip
            assert not actions(page, here) & ADMINS
            go(page, "Catalog")
            expect(button(page, "Plan the pull of").first).to_be_visible()  # that anybody may
            button(page, "Sign out").click()
            page = signed_in(opened, tokens[1])
            assert actions(page, here) >= ADMINS


def test_a_session_that_ends_leads_back_to_the_same_view(browser: Browser, asking: Asking) -> None:
    made = json.loads(asking.program("tokens", "create", "--admin", "--json").out)
    with tab(browser, asking.daemon) as opened:
        page = signed_in(opened, made["token"], "doctor")
        expect(page.get_by_role("table")).to_contain_text("platform")
        assert asking.program("tokens", "revoke", made["id"]).code == 0
        button(page, "Look again").click()
        expect(page.get_by_text("The session is over.")).to_be_visible()
        opened.excuse("401 (Unauthorized)")
        page.get_by_label("Token").fill(asking.token("--admin"))
        button(page, "Sign in").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Doctor")
        expect(page.get_by_role("table")).to_contain_text("platform")


# what it must survive


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A home whose names mean harm: of models, of metadata, of catalog entries."""
    root = tmp_path_factory.mktemp("hostile")
    with LocalHub(root / "hub") as hub:
        program = place_of(root, hub)
        folder = Path(program.environ["KAWAI_HOME"]) / "models" / "<b>own" / "repo"
        folder.mkdir(parents=True)
        template = "<script>document.title='taken'</script>"
        tiny_gguf(folder / f"{MARKUP}.gguf", name=f"{MARKUP}{BELL}{TURNED}", chat_template=template)
        lists(
            program,
            entry(
                "Harm-Q8_0",
                at_hub("gone-GGUF", "Harm-Q8_0.gguf"),
                category=f"{MARKUP}",
                web_page="https://example.org/",
                metadata={"description": f"<b>bold</b> {TURNED} {MARKUP}", "license": MARKUP},
            ),
        )
        assert program("models", "index").code == 0
        with serving(program) as daemon:
            yield Place(hub, program, daemon)


def test_names_that_mean_harm_are_text(browser: Browser, hostile: Place) -> None:
    with tab(browser, hostile.daemon) as opened:
        opened.page.on("dialog", lambda _: opened.problems.append("a script has run"))
        page = opened.open()
        page.get_by_role("rowheader").get_by_role("link").first.click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("<img src=x onerror")
        page.get_by_text("keys of its GGUF header").click()
        expect(page.locator("main")).to_contain_text("<script>document.title='taken'</script>")
        expect(page.locator("main")).to_contain_text(f"{MARKUP}ring\\x07\\x1b[31m\\u202egnp.exe\\u202c")
        assert not {"\u202e", "\x07", "\x1b"} & set(page.locator("main").inner_text())
        go(page, "Catalog")
        page.get_by_label("Search").fill("harm")
        expect(page.get_by_role("article")).to_contain_text("<b>bold</b> \\u202egnp.exe")
        button(page, "Details of Harm").click()
        expect(page.get_by_role("dialog")).to_contain_text(MARKUP)
        page.keyboard.press("Escape")
        button(page, "Plan the pull of Harm").click()
        expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("gone-GGUF")
        opened.excuse("412 (Precondition Failed)")
        assert page.locator("main img, dialog img, main script").count() == 0
        assert page.title() == "Catalog - kawai"


def test_a_refusal_shows_its_message_and_its_hint(browser: Browser, place: Place) -> None:
    with tab(browser, place.daemon) as opened:
        page = opened.open()
        dialog = plan(page, f"me/{MARKUP}")
        expect(dialog.get_by_role("alert")).to_contain_text(MARKUP[:8])
        button(dialog, "Close").first.click()
        dialog = plan(page, "me/nothing-here")
        refusal = place.daemon.ask(
            "POST", "/v1/models/pull", {"model_url": "me/nothing-here", "dry_run": True}
        )
        expect(dialog.get_by_role("alert")).to_contain_text(refusal.error["message"])
        expect(dialog.get_by_role("alert")).to_contain_text(refusal.error["hint"])
        opened.excuse("400 (Bad Request)", "412 (Precondition Failed)")


@pytest.mark.parametrize(("number", "many"), [(signal.SIGTERM, 1), (signal.SIGKILL, 3)])
def test_a_server_that_is_started_anew_in_the_middle_of_a_pull(
    browser: Browser, tmp_path: Path, real_model: Path, number: signal.Signals, many: int
) -> None:
    """One that is killed tells nothing; and of three pulls only two are followed by a stream."""
    models = {f"Model{each}" for each in range(many)}
    with LocalHub(tmp_path / "hub") as hub:
        for name in models:
            data = real_model.read_bytes() if name == "Model0" else large_gguf(name)
            hub.add_file(f"me/{name}-GGUF", f"{name}.gguf", data)
        hub.throttle = 200_000
        program = place_of(tmp_path, hub)
        with serving(program) as daemon:
            port = daemon.url.rpartition(":")[2]
            opened = Tab(browser, daemon)
            page = opened.open()
            for name in models:
                button(plan(page, f"me/{name}-GGUF"), "Pull").click()
                expect(page.get_by_role("progressbar", name=f"Progress of {name}")).to_be_visible()
            page.wait_for_timeout(1000)  # some bytes
            daemon.stop(number)
        expect(page.get_by_text("The connection to kawai is lost.")).to_be_visible()
        program.environ["KAWAI_PORT"] = port
        hub.throttle = None
        process = program.start("serve")
        try:
            if many == 1:  # else newer words take their place
                expect(page.get_by_text("kawai is back.")).to_be_visible()
                expect(page.get_by_text("kawai was started anew; the pull of Model0 goes on")).to_be_visible()
            go(page, "Pulls")
            for name in models:
                ended = page.get_by_role("article", name=f"Pull of {name}").filter(has_text="installed")
                expect(ended).to_be_visible()
            button(page, "Cancel").wait_for(state="detached")
            expect(page.get_by_text("interrupted")).to_have_count(0)
        finally:
            opened.close()
            process.terminate()
            process.communicate(timeout=30)
        listed = json.loads(program("models", "list", "--json").out)["data"]
        assert {row["id"] for row in listed} == models
        assert not [each for each in opened.problems if "violation" in each or "exception" in each]


def large_gguf(name: str) -> bytes:
    """A model of some megabytes that no other one's download could stand in for."""
    return tiny_gguf(name=name) + os.urandom(8_000_000)


def test_a_pull_that_a_person_has_cancelled_is_not_gone_on_with(
    browser: Browser, tmp_path: Path, real_model: Path
) -> None:
    with LocalHub(tmp_path / "hub") as hub:
        hub.add_file(REPO, f"{MODEL}.gguf", real_model)
        hub.throttle = 2_000_000
        program = place_of(tmp_path, hub)
        with serving(program) as daemon:
            port = daemon.url.rpartition(":")[2]
            opened = Tab(browser, daemon)
            page = opened.open()
            button(plan(page, REPO), "Pull").click()
            button(page, f"Cancel {MODEL}").click()
            expect(page.get_by_text(re.compile("is cancelled"))).to_be_visible()
        expect(page.get_by_text("The connection to kawai is lost.")).to_be_visible()
        program.environ["KAWAI_PORT"] = port
        process = program.start("serve")
        try:
            expect(page.get_by_text("kawai is back.")).to_be_visible()
            page.wait_for_timeout(2000)
            assert hub.throttle
            assert page.get_by_text("goes on").count() == 0
            assert page.get_by_role("progressbar").count() == 0
        finally:
            opened.close()
            process.terminate()
            process.communicate(timeout=30)


def test_logs_are_followed_on_when_the_server_is_another(browser: Browser, tmp_path: Path) -> None:
    program = Program(tmp_path)
    with serving(program) as daemon:
        port = daemon.url.rpartition(":")[2]
        opened = Tab(browser, daemon)
        page = opened.open("logs")
        lines = page.get_by_role("log")
        expect(lines).to_contain_text("kawai is serving on")
    program.environ["KAWAI_PORT"] = port
    process = program.start("serve")
    try:
        expect(page.get_by_text("kawai is back.")).to_be_visible()
        expect(lines.locator("p").filter(has_text="kawai is serving on")).to_have_count(2)
        assert page.locator("main [role=alert]").count() == 0
    finally:
        opened.close()
        process.terminate()
        process.communicate(timeout=30)


def test_a_log_that_says_nothing_is_followed_all_the_same(browser: Browser, place: Place) -> None:
    """Of a model that was never loaded; also when the page was not seen for a while."""
    place.hub.add_file("me/tiny-GGUF", "Tiny-Q8_0.gguf", tiny_gguf())
    assert place.program("models", "pull", "me/tiny-GGUF").code == 0
    with tab(browser, place.daemon) as opened:
        opened.page.add_init_script(
            "Object.defineProperty(document, 'hidden', {get: () => window.away ?? false})"
        )
        page = opened.open("logs/Tiny-Q8_0")
        expect(page.get_by_text("0 lines")).to_be_visible()
        for away in ("true", "false"):
            page.evaluate(
                f"() => {{ window.away = {away}; document.dispatchEvent(new Event('visibilitychange')); }}"
            )
        page.wait_for_timeout(500)
        assert page.locator("main [role=alert]").count() == 0
        assert place.daemon.ask("POST", "/v1/models/load", {"model": "Tiny-Q8_0"}).status >= 400
        expect(page.get_by_role("log").locator("p").first).to_be_visible()


# that nobody is shut out


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, real_model: Path) -> Iterator[Place]:
    """A home with models, a build, a token, a loaded model, and a pull that has failed."""
    root = tmp_path_factory.mktemp("full")
    with LocalHub(root / "hub") as hub:
        program = place_of(root, hub)
        hub.add_release(
            "b1", {asset_name("b1", host_platform()): launcher_bundle("b1", directory=root / "b1")}
        )
        hub.add_file(REPO, f"{MODEL}.gguf", real_model)
        for name in ("Qwen3-0.6B-Q8_0", "gemma-3-270m-it-Q8_0", "SmolLM3-3B-Q4_K_M"):
            hub.add_file(f"examples/{name}-GGUF", f"{name}.gguf", tiny_gguf(name=name))
            assert program("models", "pull", f"examples/{name}-GGUF").code == 0
        assert program("models", "pull", REPO).code == 0
        assert program("libs", "pull", "b1", "--no-activate").code == 0
        assert program("tokens", "create", "--name", "laptop").code == 0
        with serving(program, "--engine", "xllamacpp") as daemon:
            hub.add_file("me/cut-GGUF", "Cut-Q8_0.gguf", b"GGUF" + bytes(100))
            daemon.ask("POST", "/v1/models/pull", {"model_url": "me/cut-GGUF"})
            assert daemon.ask("POST", "/v1/chat/completions", chat(keep_alive=-1)).status == 200
            yield Place(hub, program, daemon)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", ["wide", "phone"])
def test_every_view_is_clean(browser: Browser, full: Place, scheme: str, width: str) -> None:
    options = {"viewport": PHONE, "has_touch": True} if width == "phone" else {}
    found = {}
    with tab(browser, full.daemon, color_scheme=scheme, reduced_motion="reduce", **options) as opened:
        for view in (*VIEWS, f"models/{MODEL}"):
            page = opened.open(view)
            page.wait_for_function("() => !document.querySelector('main .waiting')")
            if faults := opened.faults():
                found[view] = faults
            wide = page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert wide <= 0, (view, wide)
    assert found == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_windows_and_the_form_to_sign_in_are_clean(
    browser: Browser, full: Place, asking: Asking, scheme: str
) -> None:
    found = {}
    options = {"color_scheme": scheme, "reduced_motion": "reduce"}
    with tab(browser, full.daemon, **options) as opened:
        page = opened.open()
        for name in ("Delete", "Verify"):
            button(page, f"{name} gemma").click()
            expect(page.get_by_role("dialog")).to_contain_text(
                "frees" if name == "Delete" else "as it should be"
            )
            found[name] = opened.faults()
            page.keyboard.press("Escape")
        plan(page, REPO).get_by_text("nothing: it is here already").wait_for()
        found["Plan"] = opened.faults()
        page.keyboard.press("Escape")
        plan(page, "me/nothing").get_by_role("alert").wait_for()
        found["Trouble"] = opened.faults()
        opened.excuse("412 (Precondition Failed)")
        page = opened.open("catalog")
        button(page, "Details of").first.click()
        page.get_by_role("dialog").locator("dl").first.wait_for()
        found["Details"] = opened.faults()
    with tab(browser, asking.daemon, **options) as opened:
        opened.open()
        found["Sign in"] = opened.faults()
    assert not {key: value for key, value in found.items() if value}


FOCUSED = """() => {
  const at = document.activeElement, id = at.closest("tr")?.dataset.id;
  return at.innerText === id ? id : `${at.innerText} ${id}`;
}"""


def test_the_focus_stays_with_its_row(browser: Browser, tmp_path: Path) -> None:
    """Rows are drawn over when the table is scrolled, also by the focus that goes on."""
    program = Program(tmp_path)
    folder = Path(program.environ["KAWAI_HOME"]) / "models" / "me" / "many"
    folder.mkdir(parents=True)
    names = [f"Model-{number:03}" for number in range(80)]
    for name in names:
        tiny_gguf(folder / f"{name}.gguf", name=name)
    assert program("models", "index").code == 0
    with serving(program) as daemon, tab(browser, daemon) as opened:
        page = opened.open()
        page.get_by_role("link", name=names[0]).focus()
        seen = []
        for _ in range(4 * 60):
            seen.append(page.evaluate(FOCUSED))
            page.keyboard.press("Tab")
            page.wait_for_timeout(15)  # a frame, in which rows are drawn over
        words = ("{}", "Load {}", "Verify {}", "Delete {}")
        assert seen == [word.format(name) for name in names[:60] for word in words]
        page.get_by_role("heading", level=1).evaluate("() => document.activeElement.blur()")
        page.get_by_label("Search").evaluate(
            "(field) => field.dispatchEvent(new Event('input', {bubbles: true}))"
        )
        page.get_by_role("button", name="Size", exact=True).evaluate("(head) => head.click()")
        page.wait_for_timeout(100)  # what was left is not gone back to when rows are drawn anew
        assert page.evaluate("document.activeElement === document.body")


def test_the_keyboard_does_it_all(browser: Browser, full: Place) -> None:
    with tab(browser, full.daemon) as opened:
        page = opened.open()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_be_focused()
        expect(page.get_by_role("row")).to_have_count(5)
        page.get_by_role("button", name="Size", exact=True).focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        expect(page.get_by_role("columnheader", name="Size")).to_have_attribute("aria-sort", "descending")
        expect(page.get_by_role("row").nth(1)).to_contain_text(MODEL)
        deletion = button(page, f"Delete {MODEL}")
        deletion.focus()
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        expect(button(dialog, "Cancel")).to_be_focused()
        for _ in range(8):  # the focus does not leave the window
            page.keyboard.press("Tab")
            assert page.evaluate(
                "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
            )
        page.keyboard.press("Escape")
        expect(deletion).to_be_focused()
        page.get_by_role("link", name="Running").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_be_focused()


def test_pictures(browser: Browser, full: Place, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with tab(
        browser, full.daemon, reduced_motion="reduce", viewport={"width": 1280, "height": 560}
    ) as opened:
        for view, name in (("models", "models.png"), ("running", "running.png")):
            page = opened.open(view)
            page.wait_for_function("() => !document.querySelector('main .waiting')")
            expect(page.locator("main")).to_contain_text(MODEL)
            page.screenshot(path=tmp_path / name)
            assert (tmp_path / name).stat().st_size > 10_000
            if request.config.getoption("--pictures"):
                shutil.copy(tmp_path / name, PICTURES / name)
            assert (PICTURES / name).is_file()


def test_where_no_browser_is_installed_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        browsers.chromium()

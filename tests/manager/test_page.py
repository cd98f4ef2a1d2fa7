# SPDX-License-Identifier: MIT
"""The status page in a real browser, of the real service before stand-ins, and what it is served with.

The tests of the shared host find it as it was: Alpha active, Beta and the one with markup in its name asleep.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from tests.manager.browser import DESKTOP, PHONE, find_chromium, started, visit
from tests.manager.conftest import Service, until
from tests.serverlib import ROOT, two_awake
from tests.unit.plugins.module_utils.switching.conftest import MARK, Host, Processes

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.manager.browser import Tab

OPERATOR, READER = "operator-0123456789", "reader-0123456789"
MARKUP = '<img src="/x" onerror="window.pwned = 1">'
SCRIPT = "<script>window.pwned = 1</script>"
FILES = ROOT / "roles/model_manager/files/model_manager/page"
NAMES = {"a": "Alpha", "b": "Beta", "c": MARKUP, "d": "Delta"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium."""
    found = find_chromium()
    if found is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with started(found) as running:
        yield running


class Managed:
    """A host whose models have names, and the service that manages it."""

    def __init__(self, folder: Path) -> None:
        self.host = Host(folder / "stack")
        self.host.settings.update(canary="auto", escalation=["roll_back"])
        # Beside a browser, a busy machine may take long to start a server.
        self.host.settings.update(max_retries=300, request_timeout_seconds=60)
        self.host.declare("a", name="Alpha", gpu_memory_gb=20, standin={"vram_gb": 20})
        self.host.declare("b", name="Beta", standin={"wake_seconds": 0.7, "asleep_gb": 2})
        self.host.declare("c", name=MARKUP, description=SCRIPT)
        self.host.declare("d", name="Delta", startup_mode="disabled")
        self.host.up(a="active", b=1, c=1)
        self.service = Service(self.host, reconcile=False, report_seconds=1, breaker_failures=1000)

    def post(self, path: str, body: Any = None) -> requests.Response:
        """Ask the service, past the page."""
        return requests.post(self.service.url + path, json=body, timeout=60)

    def restore(self) -> None:
        """Bring it back to where every test begins."""
        for name in "abc":
            if self.host.connects(name):
                self.host.call(name, "DELETE", "/standin/faults")
        self.post("/control/unpin")
        for name in "bca":
            if name == "a" or self.service.state(name) not in ("asleep", "ready"):
                assert self.post("/switch", {"model_id": name}).status_code == 200


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    """The host of most tests."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("STANDIN_", "VLLM_", "CUDA_")):
                patch.delenv(name)
        patch.setenv(MARK, str(folder))
        # Where the nvidia-smi of the stand-ins looks.
        patch.setenv("STANDIN_GPU_DIR", str(folder / "gpus"))
        patch.setenv("STANDIN_GPU_TOTAL_GB", "100")
        processes = Processes(str(folder))
        try:
            managed = Managed(folder)
            yield managed
            assert managed.service.end() == 0
            assert "Traceback" not in managed.service.log.read_text()
        finally:
            processes.kill()
    assert two_awake(managed.host.events(), managed.host.events_before) == []


@pytest.fixture
def managed(shared: Managed) -> Iterator[Managed]:
    """The same, each time in the same state."""
    yield shared
    shared.restore()


@pytest.fixture
def expect(browser: Browser) -> Callable[[Any], Any]:
    """Playwright's assertion, which waits until it holds."""
    del browser  # where there is none, this may be missing too
    from playwright.sync_api import expect

    return expect


@contextlib.contextmanager
def guarded(host: Host) -> Iterator[Service]:
    """The service of a host, with tokens."""
    tokens = host.stack_dir / "tokens"
    host.stack_dir.mkdir(parents=True, exist_ok=True)
    tokens.touch(0o600)
    tokens.write_text(f"operator {OPERATOR}\nreader {READER}\n")
    service = Service(host, reconcile=False, tokens_file=str(tokens))
    try:
        yield service
    finally:
        service.process.kill()
        service.process.wait()


def sign_in(tab: Tab, token: str) -> None:
    tab.page.get_by_label("Token").fill(token)
    tab.page.get_by_label("Token").press("Enter")


# What it is served with.


def test_it_is_served_with_what_keeps_a_browser_safe(managed: Managed) -> None:
    url = managed.service.url
    for path in ("/", *(f"/page/{one.name}" for one in FILES.iterdir() if one.suffix in (".css", ".js", ".svg"))):
        answer = requests.get(url + path, timeout=10)
        assert answer.status_code == 200, path
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy and "http" not in policy
        assert {"frame-ancestors 'none'", "base-uri 'none'"} <= set(policy.split("; "))
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] == "no-store"
        kinds = {"": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
        assert answer.headers["Content-Type"].startswith(kinds[path.rpartition(".")[2] if "." in path else ""])
        head = requests.head(url + path, timeout=10)
        assert (head.status_code, head.text) == (200, "")
        assert requests.get(url + path, headers={"Host": "evil.example"}, timeout=10).status_code == 403
        assert requests.post(url + path, timeout=10).status_code == 405
    for path in ("/page/", "/page/nothing.js", "/page/../page.py", "/page/%2e%2e/page.py", "/page/index.html"):
        assert requests.get(url + path, timeout=10).status_code == 404, path
    described = requests.get(url + "/openapi.json", timeout=10).json()["paths"]
    assert [path for path in described if path == "/" or path.startswith("/page")] == []
    assert requests.get(url + "/access", timeout=10).json() == {"role": "operator", "reason": ""}


def test_it_loads_nothing_from_elsewhere_and_has_nothing_inline() -> None:
    for file in FILES.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"^ *//.*$", "", text, flags=re.MULTILINE).replace(" // ", " "), file.name
        for inline in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
            assert inline not in text, file.name
    index = (FILES / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=|javascript:", index)


def test_a_page_of_another_site_can_not_have_a_browser_switch(managed: Managed) -> None:
    url = managed.service.url + "/api/models/unload/a"
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        answer = requests.post(url, headers=headers, timeout=30)
        assert (answer.status_code, "a page of another site" in answer.text) == (403, True), headers
    assert managed.service.state("a") == "ready"
    own = {"Origin": managed.service.url, "Sec-Fetch-Site": "same-origin"}
    assert requests.post(managed.service.url + "/control/unpin", headers=own, timeout=30).status_code == 200


# What people do with it.


def test_a_switch_by_a_click_is_seen_without_a_reload(browser: Browser, managed: Managed, expect: Any) -> None:
    with visit(browser, managed.service.url) as tab:
        page = tab.page
        expect(page.locator("#link")).to_have_text("Live")
        expect(page.locator(".big")).to_have_text("Alpha")
        expect(tab.state("Alpha")).to_have_text("Active")
        expect(tab.card("Alpha").locator(".memory")).to_contain_text("20.0 GB of 20 GB")
        expect(tab.state("Delta")).to_have_text("Disabled")
        expect(tab.card("Delta").get_by_role("button")).to_have_count(0)
        page.evaluate("window.kept = 'not reloaded'")

        tab.card("Beta").get_by_role("button", name="Switch to Beta").click()
        expect(tab.state("Beta")).to_have_text("Waking")
        expect(page.locator(".eyebrow")).to_have_text("Switching to")
        expect(page.locator("#switches > li").first).to_have_attribute("data-result", "running")
        expect(tab.state("Beta")).to_have_text("Active")
        expect(tab.state("Alpha")).to_have_text("Asleep")
        expect(page.locator(".big")).to_have_text("Beta")
        expect(page.locator("#said")).to_have_text("Beta is active.")
        expect(page).to_have_title("Beta · Model manager")

        # The timeline: what the service has of it.
        until(lambda: requests.get(managed.service.url + "/switches", timeout=10).json()["switches"], "it is kept")
        kept = requests.get(managed.service.url + "/switches", timeout=10).json()["switches"][0]
        first = page.locator("#switches > li").first
        expect(first).to_have_attribute("data-result", "done")
        expect(first.locator(".what")).to_have_text("Alpha →  to Beta")
        parts = [text.split() for text in first.locator(".phases li").all_inner_texts()]
        actions = {step["action"] for step in kept["steps"]} - {"verify"} | {"ready", "canary"}
        assert {name for name, *_rest in parts} - {"between"} == actions >= {"sleep", "wake"}
        waking = next(step["seconds"] for step in kept["steps"] if step["action"] == "wake")
        assert waking >= 0.7
        assert ["wake", f"{waking:.2f}" if waking < 0.995 else f"{waking:.1f}", "s"] in parts
        expect(first.locator("svg rect.phase-wake")).to_have_count(1)

        # One that is made elsewhere.
        assert managed.post("/switch", {"model_id": "a"}).status_code == 200
        expect(page.locator(".big")).to_have_text("Alpha")
        expect(page.locator("#switches > li").first.locator(".what")).to_have_text("Beta →  to Alpha")
        kept = requests.get(managed.service.url + "/switches?limit=8", timeout=10).json()["switches"]
        expect(page.locator("#switches > li")).to_have_count(len(kept))
        assert page.evaluate("window.kept") == "not reloaded"
        assert tab.errors == []


def test_an_older_answer_does_not_undo_what_was_told(browser: Browser, managed: Managed, expect: Any) -> None:
    with visit(browser, managed.service.url) as tab:
        expect(tab.state("Alpha")).to_have_text("Active")
        late: list[tuple[Any, Any]] = []
        tab.page.route("**/models", lambda route: late.append((route, route.fetch())))
        seconds = 0
        while not late:  # it looks now and then
            tab.page.wait_for_timeout(100)
            seconds += 1
            assert seconds < 300
        route, before = late[0]
        assert managed.post("/control/sleep", {"model": "a"}).status_code == 200
        expect(tab.state("Alpha")).to_have_text("Asleep")
        route.fulfill(response=before)
        while len(late) < 2:  # it has taken that in, and asks again because it was told something meanwhile
            tab.page.wait_for_timeout(100)
            seconds += 1
            assert seconds < 600
        tab.page.wait_for_timeout(1500)  # what it knows is shown once a second
        assert tab.state("Alpha").inner_text() == "Asleep"
        assert "No active model" in tab.page.title()


def test_what_is_pressed_does_not_move_before_it_is_released(browser: Browser, managed: Managed, expect: Any) -> None:
    with visit(browser, managed.service.url) as tab:
        expect(tab.page.locator("#link")).to_have_text("Live")
        beta = tab.card("Beta")
        before, button = beta.bounding_box(), beta.get_by_role("button", name="Switch to Beta").bounding_box()
        tab.page.mouse.move(button["x"] + button["width"] / 2, button["y"] + button["height"] / 2)
        tab.page.mouse.down()
        # The notice of the mode moves all that is below it.
        assert managed.post("/control/mode", {"mode": "manual"}).status_code == 200
        tab.page.wait_for_timeout(1500)  # what it knows is shown once a second
        assert beta.bounding_box() == before
        tab.page.mouse.up()
        expect(tab.page.get_by_text("Beta is pinned: only this page")).to_be_visible()
        expect(tab.state("Beta")).to_have_text("Active")
        assert beta.bounding_box()["y"] > before["y"]


@pytest.mark.whole
def test_every_button(browser: Browser, managed: Managed, expect: Any) -> None:
    with visit(browser, managed.service.url) as tab:
        page, alpha, beta = tab.page, tab.card("Alpha"), tab.card("Beta")

        def press(card: Any, name: str) -> None:
            card.get_by_role("button", name=name, exact=True).click()  # "Unload Beta" has "Load Beta" in it

        press(alpha, "Sleep Alpha")
        expect(tab.state("Alpha")).to_have_text("Asleep")
        expect(page.locator(".big")).to_have_text("None")
        press(alpha, "Wake Alpha")
        expect(tab.state("Alpha")).to_have_text("Active")
        press(beta, "Unload Beta")
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        expect(tab.state("Beta")).to_have_text("Asleep")
        press(beta, "Unload Beta")
        page.get_by_role("dialog", name="Unload Beta?").get_by_role("button", name="Unload").click()
        expect(tab.state("Beta")).to_have_text("Stopped")
        assert not managed.host.connects("b")
        press(alpha, "Pin Alpha")
        expect(page.get_by_text("Alpha is pinned: only this page")).to_be_visible()
        asleep = alpha.get_by_role("button", name="Sleep Alpha")
        expect(asleep).to_have_attribute("aria-disabled", "true")
        expect(alpha.get_by_text("It is pinned: unpin it first.")).to_be_visible()
        asleep.click(force=True)
        assert managed.service.state("a") == "ready"
        # In manual mode, too, since a person does it.
        press(beta, "Switch to Beta")
        expect(tab.state("Beta")).to_have_text("Active")
        press(beta, "Unpin Beta")
        expect(page.get_by_text("is pinned: only this page")).to_have_count(0)
        press(beta, "Unload Beta")
        page.get_by_role("dialog").get_by_role("button", name="Unload").click()
        expect(tab.state("Beta")).to_have_text("Stopped")
        press(beta, "Load Beta")
        try:
            expect(tab.state("Beta")).to_have_text("Active")
        except AssertionError as error:
            told = requests.get(f"{managed.service.url}/switches", timeout=30).text
            raise AssertionError(f"{error}\n{told[:4000]}\n{managed.service.log.read_text()}") from error
        assert tab.errors == []


def test_what_fails_is_said_with_its_remedy(browser: Browser, managed: Managed, expect: Any) -> None:
    managed.host.fault("b", "/wake_up", "status_500", times=0)
    with visit(browser, managed.service.url) as tab:
        tab.card("Beta").get_by_role("button", name="Switch to Beta").click()
        notice = tab.page.get_by_role("alert").filter(has_text="The switch to Beta has failed")
        expect(notice).to_be_visible()
        ended = requests.get(managed.service.url + "/switches", timeout=10).json()["switches"][0]
        expect(notice).to_contain_text(ended["error"])
        expect(tab.page.locator("#switches > li").first).to_contain_text("Failed")
        expect(tab.page.locator("#switches > li").first).to_contain_text("wake")
        expect(tab.state("Alpha")).to_have_text("Active")
        notice.get_by_role("button", name="Dismiss").click()
        expect(notice).to_have_count(0)
        # What the manager refuses at once.
        managed.post("/control/eviction", {"model": "a", "eviction": {"weights": "retain", "process": "keep_running"}})
        try:
            tab.card("Beta").get_by_role("button", name="Switch to Beta").click()
            expect(tab.page.get_by_role("alert").filter(has_text="never makes room")).to_be_visible()
        finally:
            offload = {"weights": "offload", "process": "keep_running"}
            managed.post("/control/eviction", {"model": "a", "eviction": offload})
        # A refusal is an answer that the browser notes, too; nothing else was wrong.
        assert [error for error in tab.errors if "409" not in error] == []


def test_with_the_keyboard_alone(browser: Browser, managed: Managed, expect: Any) -> None:
    with visit(browser, managed.service.url) as tab:
        page = tab.page
        expect(tab.state("Beta")).to_have_text("Asleep")

        def tab_to(name: str) -> None:
            for _step in range(40):
                page.keyboard.press("Tab")
                said = page.evaluate("document.activeElement.textContent.replace(/\\s+/g, ' ').trim()")
                if said == name:
                    return
            raise AssertionError(f"no Tab leads to {name}")

        tab_to("Skip to the models")
        page.keyboard.press("Enter")
        tab_to("Unload Beta")
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        assert page.evaluate("document.activeElement.textContent") == "Unload Beta"
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")
        expect(tab.state("Beta")).to_have_text("Active")
        # Whoever has pressed it is still there, though that button is not.
        until(lambda: page.evaluate("document.activeElement.textContent") == "Sleep Beta", "the focus stays")
        assert tab.errors == []


def test_what_others_have_named_is_text(browser: Browser, managed: Managed, expect: Any) -> None:
    broken = {"vllm_models": [{"id": "e", "model": "org/e", MARKUP: 1}], "vllm_switching": {}}
    models = managed.host.stack_dir / "models.json"
    good = models.read_text()
    with visit(browser, managed.service.url) as tab:
        try:
            tab.card(MARKUP).get_by_role("button", name=f"Switch to {MARKUP}").click()
            expect(tab.state(MARKUP)).to_have_text("Active")
            expect(tab.page.locator(".big")).to_have_text(MARKUP)
            expect(tab.card(MARKUP).get_by_text(SCRIPT)).to_be_visible()
            expect(tab.page.locator("#switches > li").first.locator(".what")).to_contain_text(MARKUP)
            models.write_text(json.dumps(broken))
            expect(tab.page.locator("#notices")).to_contain_text("onerror")
            expect(tab.page.locator("main img, main script")).to_have_count(0)
        finally:
            models.write_text(good)
        assert tab.page.evaluate("window.pwned ?? 'no'") == "no"
        assert tab.errors == []


def test_the_plot_shows_the_requests_of_each_hour(browser: Browser, managed: Managed, expect: Any) -> None:
    for _number in range(3):
        managed.host.completion("a")
    hours: list[dict[str, Any]] = []

    def counted() -> bool:
        hours[:] = requests.get(managed.service.url + "/usage", timeout=10).json()["hours"]
        return sum(one["requests"] for one in hours if one["model"] == "a") >= 3

    until(counted, "they are kept")
    with visit(browser, managed.service.url) as tab:
        plot = tab.page.locator("#usage svg")
        expect(plot).to_be_visible()
        said = str(plot.get_attribute("aria-label"))
        assert int(said.split(maxsplit=1)[0]) >= 3
        expect(plot.locator("g.hour")).to_have_count(24)
        assert plot.locator("g.hour").last.locator("rect.group-0").bounding_box()["height"] > 5
        tab.page.get_by_text("As a table").click()
        expect(tab.page.get_by_role("columnheader", name="Alpha")).to_be_visible()
        assert tab.errors == []


def test_who_lost_the_connection_goes_on_where_it_was(browser: Browser, managed: Managed, expect: Any) -> None:
    with visit(browser, managed.service.url) as tab:
        asked: list[str | None] = []

        def note(request: Any) -> None:
            if request.url.endswith("/events"):
                asked.append(request.headers.get("last-event-id"))

        tab.page.on("request", note)
        expect(tab.page.locator("#link")).to_have_text("Live")
        managed.service.end()
        expect(tab.page.locator("#link")).to_have_text("Reconnecting")
        managed.service.start()
        expect(tab.page.locator("#link")).to_have_text("Live")
        # It may have been followed before the first one was noted.
        again = [number for number in asked if number is not None]
        assert again and asked[-1] == again[-1] and all(number.isdigit() for number in again)
        managed.post("/switch", {"model_id": "b"})
        expect(tab.page.locator(".big")).to_have_text("Beta")
        expect(tab.page.locator("#switches > li").first.locator(".what")).to_have_text("Alpha →  to Beta")


LOOKS = [("light", DESKTOP), ("dark", PHONE), ("dark", DESKTOP), ("light", PHONE)]


@pytest.mark.parametrize(
    ("scheme", "viewport"),
    [
        pytest.param(*look, id=f"{look[0]}, {look[1]['width']}", marks=[pytest.mark.whole] * (number > 1))
        for number, look in enumerate(LOOKS)
    ],
)
def test_axe_finds_nothing_grave(
    browser: Browser, managed: Managed, expect: Any, scheme: Any, viewport: dict[str, int]
) -> None:
    with visit(browser, managed.service.url, color_scheme=scheme, viewport=viewport) as tab:
        page = tab.page
        expect(page.locator("#switches > li").first).to_be_visible()
        page.wait_for_timeout(500)  # what moves has stopped
        tab.picture(f"{scheme}-{viewport['width']}")
        assert tab.grave() == []
        assert page.evaluate("document.scrollingElement.scrollWidth") == viewport["width"], "it scrolls sideways"
        # While something is wrong, somebody waits, and a question is asked.
        managed.host.fault("c", "/wake_up", "slow", seconds=1.5)
        managed.post("/control/pin?wait=false", {"model": "c"})
        managed.post("/control/switch?wait=false", {"model": "b"})
        expect(page.get_by_role("heading", name="Queue")).to_be_visible()
        tab.picture(f"{scheme}-{viewport['width']}-busy")
        assert tab.grave() == []
        expect(tab.state("Beta")).to_have_text("Active")
        tab.card("Beta").get_by_role("button", name="Unpin Beta").click()
        tab.card("Beta").get_by_role("button", name="Unload Beta").click()
        page.wait_for_timeout(300)
        assert tab.grave() == []
        assert tab.errors == []


# Who may do what.


def test_a_token_is_asked_for_and_kept_for_the_tab(browser: Browser, host: Host, expect: Any) -> None:
    host.declare("a")
    host.declare("b")
    host.up(a="active", b=1)
    with guarded(host) as service, visit(browser, service.url) as tab:
        page = tab.page
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        assert tab.grave() == []
        expect(page.locator("#board")).to_be_hidden()
        assert tab.errors == [], "nothing was asked for without a token"
        sign_in(tab, "wrong-0123456789abcdef")
        expect(page.get_by_role("alert")).to_have_text("This token is not valid.")
        assert all("401" in error for error in tab.errors)
        tab.errors.clear()

        headers: list[tuple[str, str | None]] = []
        page.on("request", lambda request: headers.append((request.url, request.headers.get("authorization"))))
        sign_in(tab, OPERATOR)
        expect(page.locator("#link")).to_have_text("Live")
        tab.card("b").get_by_role("button", name="Switch to b").click()
        expect(tab.state("b")).to_have_text("Active")
        assert {sent for _url, sent in headers} == {f"Bearer {OPERATOR}"}
        assert len({url for url, _sent in headers}) >= 5
        assert not [url for url, _sent in headers if OPERATOR in url]
        page.reload()
        expect(tab.state("b")).to_have_text("Active")
        assert tab.errors == []
        with visit(browser, service.url) as other:
            expect(other.page.get_by_role("heading", name="Sign in")).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0


def test_a_reader_sees_no_button_that_would_be_refused(browser: Browser, host: Host, expect: Any) -> None:
    host.declare("a")
    host.up(a="active")
    with guarded(host) as service, visit(browser, service.url) as tab:
        sign_in(tab, READER)
        expect(tab.state("a")).to_have_text("Active")
        expect(tab.page.get_by_text("Read only: the token of a reader may not change anything")).to_be_visible()
        expect(tab.card("a").get_by_role("button")).to_have_count(0)
        assert tab.grave() == []
        assert tab.errors == []


def test_what_it_fetches_needs_a_token(host: Host) -> None:
    host.declare("a")
    with guarded(host) as service:
        assert 'data-tokens="needed"' in requests.get(service.url + "/", timeout=10).text
        paths = ("/access", "/models", "/switches", "/usage", "/events", "/openapi.json", "/page/nothing.js", "/page")
        for path in paths:
            assert requests.get(service.url + path, timeout=10).status_code == 401, path
        reader = {"Authorization": f"Bearer {READER}"}
        said = requests.get(service.url + "/access", headers=reader, timeout=10).json()
        assert said == {"role": "reader", "reason": "the token of a reader may not change anything: use an operator's"}


def test_who_loads_the_page_too_often_waits_and_keeps_nobody_waiting(host: Host) -> None:
    host.declare("a")
    write = host.stack_dir / "tokens"
    host.stack_dir.mkdir(parents=True, exist_ok=True)
    write.touch(0o600)
    write.write_text(f"operator {OPERATOR}\n")
    service = Service(host, reconcile=False, tokens_file=str(write), requests_per_second=2)
    try:
        statuses = [requests.get(service.url + "/", timeout=10).status_code for _number in range(30)]
        assert statuses[0] == 200 and 429 in statuses
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        assert requests.get(service.url + "/models", headers=headers, timeout=10).status_code == 200
    finally:
        service.process.kill()
        service.process.wait()

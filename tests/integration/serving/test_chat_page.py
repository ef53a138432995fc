"""The chat page in a real browser, against a real gateway over HTTP."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace

import pytest
import pytest_asyncio
from fake_backends import CANARY, STABLE, TOKEN, LocalBackends, entrance, listening, table
from fake_backends import loaded as loaded
from playwright.async_api import Page, async_playwright, expect

from serving.backend import Chunk, Head
from serving.gateway_http import build_gateway
from serving.routes import Route, RouteTable

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page is not tried in a browser"),
]
LOUD = ("error", "warning")
GOOD = TOKEN["authorization"].removeprefix("Bearer ")


class SlowBackends(LocalBackends):
    """Answers are short, and always the same. After some chunks each waits until `gate` is set."""

    def __init__(self, **models):
        super().__init__(**models)
        self.gate = asyncio.Event()
        self.gate.set()

    async def call(self, app, request):
        num_chunks = 0
        if request.body:
            request = replace(
                request, body=json.dumps({**json.loads(request.body), "max_tokens": 8, "temperature": 0}).encode()
            )
        async for item in super().call(app, request):
            num_chunks += isinstance(item, Chunk)
            if num_chunks > 4:
                await self.gate.wait()
            yield item


@pytest.fixture
def backends(loaded):
    return SlowBackends(**{STABLE: (1, loaded), CANARY: (2, loaded)})


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser():
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
def gate(backends):
    return entrance(backends, table(10_000))


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser, gate):
    """A page that fails its test when anything is written to the browser's console."""
    complaints: list[str] = []
    async with listening(build_gateway(gate)) as address:
        page = await browser.new_page(viewport={"width": 1100, "height": 720})
        page.on("console", lambda message: complaints.append(message.text) if message.type in LOUD else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(address)
        yield page
        await page.close()
    assert [each for each in complaints if "Failed to load resource" not in each] == []


async def log_in(page: Page) -> None:
    await page.get_by_label("Token").fill(GOOD)
    await page.keyboard.press("Tab")
    await expect(page.get_by_label("Model")).to_have_value("support-bot")


async def ask(page: Page, text: str = "Where is my card?") -> None:
    """By keyboard alone."""
    await page.get_by_label("Message").fill(text)
    await page.keyboard.press("Enter")


async def test_a_talk_by_keyboard(page, backends):
    await expect(page.get_by_label("Model")).to_be_disabled()
    await log_in(page)
    await expect(page.get_by_label("Model")).to_contain_text("support-bot · v1")
    await ask(page)
    answer = page.get_by_label("Answer")
    await expect(answer.locator("footer")).to_contain_text("support-student@1")
    notes = await answer.locator("footer").inner_text()
    assert [word in notes for word in ("tokens/s", "first token", "in all")] == [True] * 3
    said = await answer.locator("p").text_content()
    assert said
    await ask(page, "And my money?")
    await expect(page.get_by_label("Answer")).to_have_count(2)
    await expect(page.get_by_label("Answer").nth(1).locator("footer")).to_contain_text("in all")
    chats = [json.loads(request.body)["messages"] for _, request in backends.calls if request.method == "POST"]
    assert [message["role"] for message in chats[1]] == ["user", "assistant", "user"]
    assert chats[1][1]["content"] == said
    await page.get_by_role("button", name="New chat").click()
    await expect(page.get_by_label("Answer")).to_have_count(0)


async def test_an_answer_comes_in_pieces_and_can_be_stopped(page, backends):
    await log_in(page)
    backends.gate.clear()
    await ask(page)
    stop = page.get_by_role("button", name="Stop")
    await expect(stop).to_be_visible()
    await expect(page.get_by_label("Answer").locator("p")).not_to_be_empty()
    await page.keyboard.press("Escape")
    await expect(page.get_by_label("Answer").locator("footer")).to_contain_text("stopped")
    await expect(stop).to_be_hidden()
    async with asyncio.timeout(10):
        while not backends.closed[STABLE] >= 2:  # the list of models, and the answer that was stopped
            await asyncio.sleep(0.02)


async def test_what_goes_wrong_is_said_and_the_question_is_kept(page, backends):
    await log_in(page)
    backends.kills[STABLE] = [0] * 3
    await ask(page, "Where?")
    await expect(page.get_by_role("alert")).to_contain_text("no replica of `support-bot` could answer")
    await expect(page.get_by_label("Message")).to_have_value("Where?")
    await page.get_by_label("Token").fill("bad")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("alert")).to_contain_text("does not know the token")


async def test_nothing_of_an_answer_is_markup(page, backends, monkeypatch):
    await log_in(page)
    evil = "<img src=x onerror=alert(1)>"

    async def call(app, request):
        yield Head(200, (("content-type", "text/event-stream; charset=utf-8"),))
        yield Chunk(b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\ndata: [DONE]\n\n' % evil.encode())

    monkeypatch.setattr(backends, "call", call)
    await ask(page, "<b>bold</b>")
    await expect(page.get_by_label("Answer").locator("p")).to_have_text(evil)
    await expect(page.get_by_label("You").locator("p")).to_have_text("<b>bold</b>")


def bodies(backends) -> list[dict]:
    return [json.loads(request.body) for _, request in backends.calls if request.method == "POST"]


async def test_how_words_are_drawn_and_how_much_fits_is_said(page, backends, loaded):
    asked = []
    page.on("request", lambda request: asked.append(request.post_data_json) if request.method == "POST" else None)
    await log_in(page)
    length = loaded.engine.context_length
    await expect(page.locator("#context")).to_have_text(f"Room for {length} tokens")
    await page.get_by_label("Always the likeliest word").check()
    await ask(page)
    await expect(page.get_by_label("Answer").locator("footer")).to_be_visible()
    await page.get_by_label("Always the likeliest word").uncheck()
    await ask(page)
    await expect(page.get_by_label("Answer").nth(1).locator("footer")).to_be_visible()
    assert [body.get("temperature") for body in asked] == [0, None]


async def test_what_is_deployed_meanwhile_is_listed_when_one_comes_back(page, backends, gate):
    await log_in(page)
    backends.kills[STABLE] = [0] * 3
    await ask(page, "Where?")
    await expect(page.get_by_role("alert")).to_contain_text("could answer")
    gate.table = RouteTable(routes=(*gate.table.routes, Route(name="another", backends=())))
    await page.evaluate("listed = -1e9; dispatchEvent(new Event('focus'))")
    await expect(page.get_by_label("Model")).to_contain_text("another")
    await expect(page.get_by_label("Model")).to_have_value("support-bot")
    await expect(page.get_by_role("alert")).to_contain_text("could answer")  # of the answer, so it stays


async def test_without_authentication_no_token_is_asked_for(page, gate):
    assert await page.get_by_label("Token").get_attribute("placeholder") == "ath_…"
    await expect(page.get_by_label("Model")).to_contain_text("needs a token")
    gate.table = table(10_000, auth="none")
    await page.reload()
    await expect(page.get_by_label("Model")).to_have_value("support-bot")
    await expect(page.get_by_label("Token")).to_have_attribute("placeholder", "none needed")


async def test_an_answer_is_announced_and_the_focus_does_not_get_lost(page, backends):
    await log_in(page)
    backends.gate.clear()
    await ask(page)
    answer, heard = page.get_by_label("Answer"), page.get_by_role("status")
    await expect(heard).to_have_text("The answer is coming.")
    await expect(answer).to_have_attribute("aria-busy", "true")
    await expect(answer.locator("p")).not_to_be_empty()
    await page.get_by_role("button", name="Stop").click()
    await expect(heard).to_contain_text("Stopped.")
    await expect(answer).not_to_have_attribute("aria-busy", "true")
    await expect(page.get_by_label("Message")).to_be_focused()
    assert await page.evaluate("getComputedStyle(document.getElementById('problem')).display") != "none"


CONTRAST = """
name => {
  const parts = color => color.match(/[0-9.]+/g).slice(0, 3).map(part => part / 255)
    .map(part => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4);
  const light = color => parts(color).reduce((sum, part, at) => sum + part * [.2126, .7152, .0722][at], 0);
  const style = getComputedStyle(document.getElementById(name));
  const edge = light(style.borderTopColor);
  const around = [style.backgroundColor, getComputedStyle(document.body).backgroundColor].map(light);
  return Math.min(...around.map(other => (Math.max(edge, other) + .05) / (Math.min(edge, other) + .05)));
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_controls_can_be_told_from_the_page(page, scheme):
    """3:1, as WCAG 1.4.11 has it."""
    await page.emulate_media(color_scheme=scheme)
    for name in ("model", "token", "text", "anew"):
        assert await page.evaluate(CONTRAST, name) >= 3, name


async def test_where_there_is_no_shift_to_hold_enter_makes_a_new_line(browser, backends, gate):
    async with listening(build_gateway(gate)) as address:
        page = await browser.new_page(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
        await page.goto(address)
        await log_in(page)
        await ask(page, "Where is")
        await page.keyboard.type("my card?")
        await expect(page.get_by_label("Message")).to_have_value("Where is\nmy card?")
        await page.get_by_role("button", name="Send").tap()
        await expect(page.get_by_label("Answer").locator("footer")).to_be_visible()
        await page.close()
    assert [body["messages"][0]["content"] for body in bodies(backends)] == ["Where is\nmy card?"]


async def test_a_browser_that_fits_no_field_to_its_text_is_helped(page):
    await page.evaluate("CSS.supports = () => false; text.style.fieldSizing = 'fixed'")
    await page.get_by_label("Message").fill("one line")
    low = await page.get_by_label("Message").bounding_box()
    await page.get_by_label("Message").fill("\n".join("some lines"))
    high = await page.get_by_label("Message").bounding_box()
    assert high["height"] > 2 * low["height"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_a_phone(page, scheme, tmp_path):
    await page.set_viewport_size({"width": 360, "height": 640})
    await page.emulate_media(color_scheme=scheme)
    await log_in(page)
    await ask(page, "A word that is long: " + "Donaudampfschifffahrt" * 4)
    await expect(page.get_by_label("Answer").locator("footer")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") <= 360
    for name in ("Send", "New chat"):
        box = await page.get_by_role("button", name=name).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        assert box["y"] + box["height"] <= 640
        assert box["height"] >= 44
    await page.screenshot(path=tmp_path / f"{scheme}.png")

"""页面的测试共用的：真的浏览器，开着的服务，一张干净的页面；结束时查控制台没有错、没有向别处的请求。"""

import os
import shutil

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from served import Served

from flags import REPOSITORY
from writing import loading

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("PAGE_TESTS") != "required",
    reason="没有 chromium：apt-get install chromium fonts-noto-cjk",
)
FORM = "prompt=今夜我&lines=6&line_chars=5&rhyme=auto&seed=3"


@pytest.fixture(scope="module")
def served():
    """随仓库来的小模型。"""
    with Served(loading.load_writer(REPOSITORY / loading.READY, "cpu", "fp32", "auto").writer) as served:
        yield served


@pytest.fixture(scope="module")
def chromium():
    assert CHROMIUM, "PAGE_TESTS=required：要有 chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(chromium, served):
    """一个干净的浏览器；结束时查：控制台没有错，没有向别处的请求。"""
    context = chromium.new_context(viewport={"width": 1280, "height": 860}, locale="zh-CN")
    said, asked = [], []

    def watch(page: Page) -> None:
        page.on("console", lambda message: message.type in ("error", "warning") and said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))

    context.on("page", watch)
    yield context
    context.close()
    assert [text for text in said if "status of 4" not in text] == []
    assert [url for url in asked if not url.startswith(("http://127.0.0.1:", "blob:", "data:"))] == []


@pytest.fixture
def page(context, served):
    page = context.new_page()
    return open_page(page, served, FORM)


def open_page(page: Page, served: Served, form: str = "") -> Page:
    page.goto(f"{served.url}/#{form}")
    page.wait_for_selector("body[data-ready]")
    return page


def write(page: Page) -> list[str]:
    page.click("#write")
    done(page)
    return lines(page)


def done(page: Page) -> None:
    expect(page.locator("#status")).to_contain_text("种子", timeout=30_000)
    expect(page.locator("#write")).to_be_visible()


def lines(page: Page) -> list[str]:
    return page.locator(".text").evaluate_all("inputs => inputs.map(input => input.value)")


def text(page: Page, number: int):
    return page.locator(".text").nth(number - 1)


def song_file(*lines: str, name: str = "歌.txt") -> dict:
    """给 set_input_files 的一个文件。"""
    return {"name": name, "mimeType": "text/plain", "buffer": "\n".join(lines).encode()}


def load(page: Page, *lines: str) -> None:
    """页面上换成这几行。"""
    page.set_input_files("#file", song_file(*lines))
    expect(text(page, len(lines))).to_have_value(lines[-1])

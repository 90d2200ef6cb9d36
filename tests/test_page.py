# ruff: noqa: F401, F811  夹具照名字取来
"""写歌的页面，在真的浏览器里：写、停、留住、另写、改、撤销、重开、导出，全用键盘也行。

用 Debian 的 chromium：`apt-get install chromium fonts-noto-cjk`，没有它就跳过；`.ci/run` 装得上时，跳过算失败。
"""

import json
import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import chromium, context, done, lines, load, needs_chromium, open_page, page, served, text, write
from playwright.sync_api import expect

from corpus.formats import read_file
from lyrics.sound import RHYME_CLASSES, rhyme_class

pytestmark = needs_chromium


def test_writes_a_song(page, served):
    """写出的正是那个种子的歌；每行的字数与韵；地址就是设置。"""
    written = write(page)
    assert len(written) == 6
    values = {"lines": 6, "line_chars": "5", "rhyme": "auto", "seed": 3}
    events = served.events("write", {"prompt": "今夜我", "settings": values})
    assert "\n".join(written) == "今夜我" + "".join(event.get("text", "") for event in events)
    expect(page.locator(".count").first).to_have_text("5")
    classes = page.locator(".rhyme:visible").all_inner_texts()
    assert [name.rstrip("？") for name in classes] == [rhyme_class(line) for line in written]
    again = open_page(page.context.new_page(), served, page.url.split("#")[1])
    assert write(again) == written


def test_stop_keeps_what_is_there(page, served):
    """停：一秒之内停下，写到的还在，轮到下一位。"""
    page.fill("#f-lines", "1000")
    page.click("#write")
    expect(page.locator(".text").nth(3)).to_be_visible(timeout=20_000)
    page.click("#stop")
    expect(page.locator("#status")).to_contain_text("停下了", timeout=1000)
    served.wait_for(0)
    kept = lines(page)
    assert 3 < len(kept) < 1000
    page.wait_for_timeout(200)
    assert lines(page) == kept


def test_lock_and_write_the_rest(page):
    """留住的不动，其余都另写。"""
    before = write(page)
    for number in (1, 4):
        page.locator(".lock").nth(number - 1).click()
    page.fill("#f-seed", "9")
    page.click("#rest")
    expect(page.locator("#status")).to_contain_text("种子 9", timeout=20_000)
    after = lines(page)
    assert (after[0], after[3]) == (before[0], before[3])
    assert all(after[place] != before[place] for place in (1, 2, 4, 5))


def test_rewrite_the_third_line(page):
    """第三行的五种写法，按数字键选第二种；撤销就回来。"""
    before = write(page)
    text(page, 3).focus()
    page.keyboard.press("Alt+r")
    options = page.locator(".options:visible button")
    expect(options.first).to_be_focused(timeout=20_000)
    offered = [re.sub(r"^\d", "", option) for option in options.all_inner_texts()]
    page.keyboard.press("2")
    assert lines(page)[2] == offered[1].strip()
    expect(text(page, 3)).to_be_focused()
    page.keyboard.press("Control+z")
    assert lines(page) == before
    page.keyboard.press("Control+Shift+z")
    assert lines(page)[2] == offered[1].strip()


def test_edit_move_insert_delete_undo_and_reload(page):
    """在原处改，移、插、删；一步一步撤销；重开还在，历史也在。"""
    before = write(page)
    text(page, 2).fill("改过的一行月光")
    expect(page.locator(".count").nth(1)).to_have_text("7/5")
    text(page, 2).press("Enter")
    page.keyboard.type("新的")
    text(page, 3).press("Alt+ArrowUp")
    assert lines(page)[:4] == [before[0], "新的", "改过的一行月光", before[2]]
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert lines(page)[:4] == [before[0], "新的", "改过的一行月光", before[2]]
    text(page, 4).focus()
    page.get_by_role("button", name="删", exact=True).click()
    assert len(lines(page)) == 6
    for _ in range(20):
        page.keyboard.press("Control+z")
    assert lines(page) == []
    for _ in range(20):
        page.keyboard.press("Control+y")
    assert len(lines(page)) == 6


def test_readings_and_the_rhyme_dictionary(page):
    """拿不准的末字点一下换读音；韵典随之换，点一个词写进那一行。"""
    page.click("#blank")
    text(page, 1).fill("我们走了")
    unsure = page.locator(".unsure:visible")
    expect(unsure).to_have_text("梭坡？")
    unsure.click()
    expect(unsure).to_have_text("遥条")
    expect(page.locator("aside h2")).to_have_text("遥条辙")
    text(page, 1).fill("等月亮")
    expect(page.locator("aside h2")).to_have_text("江阳辙")
    word = page.locator("#rhymes section").nth(1).locator("button").first
    shown = word.inner_text()
    text(page, 1).press("End")
    word.click()
    assert lines(page) == [f"等月亮{shown}"]
    expect(page.locator("#rhymes")).to_contain_text("近韵")


def test_several_songs_as_cards(page):
    """一次几首：各是一张，选一张看。"""
    page.fill("#f-num_samples", "3")
    first = write(page)
    cards = page.locator("#cards button")
    assert cards.count() == 3
    cards.nth(2).click()
    expect(cards.nth(2)).to_have_attribute("aria-pressed", "true")
    assert lines(page) != first
    page.keyboard.press("Control+z")
    assert lines(page) == first


@pytest.mark.parametrize("kind", ["txt", "lrc", "json"])
def test_export_and_import(page, tmp_path, kind):
    """导出的语料读得了；再导入就是原来的歌。"""
    page.fill("#f-title", "远方")
    page.fill("#f-singer", "无名")
    written = write(page)
    with page.expect_download() as download:
        page.locator(f"#export [data-kind={kind}]").click()
    path = tmp_path / download.value.suggested_filename
    assert path.name == f"远方.{kind}"
    download.value.save_as(path)
    (read,) = read_file(path)
    assert [line for line in written if line not in "".join(read.lyric)] == []
    if kind == "json":
        assert json.loads(path.read_text())[0] == {"name": "远方", "singer": "无名", "lyric": written}
    text(page, 1).fill("别的")
    page.set_input_files("#file", path)
    expect(text(page, 1)).to_have_value(written[0])
    assert lines(page) == written


def test_form_errors_beside_their_field(page, served):
    """写错的说在栏旁，光标到那里，什么也没有送去写。"""
    sent = []
    page.on("request", lambda request: sent.append(request.url))
    page.fill("#f-line_chars", "七")
    page.click("#write")
    expect(page.locator("#e-line_chars")).to_contain_text("--line_chars 应是 7、5-9 或 7,7,5,7 这样的字数")
    expect(page.locator("#f-line_chars")).to_be_focused()
    assert page.locator("#f-line_chars").get_attribute("aria-invalid") == "true"
    assert not any(url.endswith("/api/write") for url in sent)
    page.fill("#f-line_chars", "5")
    expect(page.locator("#e-line_chars")).to_be_hidden()


def test_a_script_in_the_title_stays_a_title(page):
    """歌名、歌词、导入的文件里写什么都只是文字。"""
    evil = "<img src=x onerror=alert(1)>"
    page.on("dialog", lambda dialog: pytest.fail("运行了歌名里的脚本"))
    page.fill("#f-title", evil)
    write(page)
    expect(page.locator("#title")).to_have_text(f"《{evil}》")
    text(page, 1).fill(evil)
    page.fill("#f-prompt", evil)
    page.fill("#f-line_chars", "")
    page.fill("#f-rhyme_scheme", evil)
    page.click("#write")
    expect(page.locator("#e-rhyme_scheme")).to_contain_text("AABA")
    page.set_input_files("#file", {"name": f"{evil}.json", "mimeType": "x", "buffer": b"{"})
    expect(page.locator("#problem")).to_contain_text("没有读出歌词")
    assert page.locator("img").count() == 0


def test_keyboard_alone(page):
    """不碰鼠标：填、写、走到第二行、留住、另写、选、撤销、续写。"""
    page.keyboard.press("Tab")
    expect(page.locator("#f-prompt")).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("春风")
    page.keyboard.press("Control+Enter")
    done(page)
    assert lines(page)[0].startswith("春风")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('text')"):
            break
    page.keyboard.press("ArrowDown")
    expect(text(page, 2)).to_be_focused()
    page.keyboard.press("Alt+l")
    expect(page.locator(".lock").nth(1)).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Alt+r")
    options = page.locator(".options:visible button")
    expect(options.first).to_be_focused(timeout=20_000)
    page.keyboard.press("Escape")
    expect(text(page, 2)).to_be_focused()
    page.keyboard.press("Control+z")
    expect(page.locator(".lock").nth(1)).to_have_attribute("aria-pressed", "false")
    page.locator("#more").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".text").nth(11)).to_be_visible(timeout=20_000)


CLASS_OF_LINE = {
    "发花": "开花", "梭坡": "唱歌", "乜斜": "残月", "一七": "细雨", "姑苏": "日暮", "怀来": "大海", "灰堆": "归",
    "遥条": "小桥", "油求": "自由", "言前": "少年", "人辰": "黄昏", "江阳": "月光", "中东": "清风",
}  # fmt: skip
assert set(CLASS_OF_LINE) == set(RHYME_CLASSES)


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("light", 1280),
        ("dark", 390),
        pytest.param("dark", 1280, marks=pytest.mark.slow),
        pytest.param("light", 390, marks=pytest.mark.slow),
    ],
)
def test_fits_and_is_accessible(page, scheme, width):
    """手机上不用横着滚；axe 没有严重的问题，浅色深色都是。"""
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    write(page)
    page.locator(".lock").nth(1).click()
    load(page, *CLASS_OF_LINE.values(), "我们走了")
    expect(page.locator(".rhyme:visible")).to_have_text([*CLASS_OF_LINE, "梭坡？"])
    text(page, 3).focus()
    page.keyboard.press("Alt+r")
    expect(page.locator(".options:visible button").first).to_be_focused(timeout=20_000)
    expect(page.locator("aside h2")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page)
    assert len(found.response["passes"]) > 20
    serious = [one for one in found.response["violations"] if one["impact"] in ("serious", "critical")]
    assert [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in serious] == []


def test_typing_touches_one_line(page):
    """60 行的歌里打字：每个键只改这一行，别的行一个节点也不动（快慢由 page_speed.py 量）。"""
    load(page, *(f"第{number}行的月光照着你" for number in range(60)))
    text(page, 30).focus()
    page.wait_for_timeout(600)
    page.evaluate(
        """() => {
          window.touched = new Set();
          const line = (node) => (node.nodeType === 1 ? node : node.parentElement)?.closest("li");
          new MutationObserver((changes) => changes.forEach((change) => touched.add(line(change.target)))).observe(
            document.body, { subtree: true, childList: true, attributes: true, characterData: true });
        }"""
    )
    page.keyboard.type("一二三四五六七八九十", delay=5)
    assert "一二三四五六七八九十" in text(page, 30).input_value()
    assert page.evaluate("[...touched].filter((line) => line).length") <= 2

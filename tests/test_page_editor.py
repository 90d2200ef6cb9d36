# ruff: noqa: F401, F811  夹具照名字取来
"""页面里的各行：照抄处标在字底下，输入法、粘贴、分行与连行，几个标签页，导入的各种文件。"""

import re

import pytest
from browser import chromium, context, lines, load, needs_chromium, open_page, page, served, song_file, text, write
from playwright.sync_api import Page, expect
from served import Served

import webui
from lyrics.copies import CopyIndex

pytestmark = [needs_chromium, pytest.mark.slow]


@pytest.fixture
def river(served, tmp_path):
    """语料里有一首《河岸》。"""
    identity = served.writer.tokenizer.fingerprint
    CopyIndex.build(["月亮照着河岸"], ["《河岸》谁"], tmp_path / "copies", identity, 1)
    served.writer.copies = CopyIndex.load(tmp_path / "copies", identity)
    yield
    served.writer.copies = None


def test_copied_span_is_marked_in_the_line(page, river):
    """与语料的相同处标在字底下，正对着那几个字；指着它、光标在这一行，都说出自哪一首。"""
    load(page, "别的", "🌙我看月亮，照着你")
    mark = page.locator("mark")
    expect(mark).to_have_text("月亮，照着")
    expect(page.locator(".under").nth(1)).to_have_text("🌙我看月亮，照着你")
    character = page.evaluate("parseFloat(getComputedStyle(document.querySelector('.under')).fontSize)")
    words, box = text(page, 2).bounding_box(), mark.bounding_box()
    assert box["width"] == pytest.approx(5 * character, rel=0.1)
    assert words["x"] + 2 * character < box["x"] < words["x"] + 5 * character
    source = page.locator(".line").nth(1).locator(".source")
    expect(source).to_be_hidden()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(source).to_have_text("「月亮，照着」4 字，与《河岸》谁相同")
    expect(source).to_be_visible()
    page.mouse.move(words["x"] + 4, words["y"] + 8)
    expect(source).to_be_hidden()
    text(page, 2).focus()
    expect(source).to_be_visible()
    expect(text(page, 2)).to_have_accessible_description("「月亮，照着」4 字，与《河岸》谁相同")
    page.route("**/api/lines", lambda route: None)  # 还没有问到的，照原来的标，不闪
    page.keyboard.press("Home")
    page.keyboard.type("啊")
    expect(mark).to_have_text("月亮，照着")
    page.keyboard.press("Control+a")
    page.keyboard.type("没有了")
    expect(mark).to_have_count(0)
    page.unroute("**/api/lines")
    load(page, "我看月亮照着你", "月亮照着河岸")
    classes = "marks => marks.map(mark => mark.className)"  # 超过「照抄至多几字」的，没有定时整行都相同的，显眼
    expect(page.locator("mark")).to_have_count(2)
    assert page.locator("mark").evaluate_all(classes) == ["", "much"]
    page.fill("#f-max_copy", "3")
    expect(page.locator("mark.much")).to_have_count(2)


def test_an_index_being_built_is_awaited(page, river):
    """页面开着时索引建好了：各行标出相同处，不必重开。"""
    states = iter([True, False])

    def about(route):
        building = next(states)
        index = {"building": building, "ready": not building, "reason": ""}
        route.fulfill(json={**route.fetch().json(), "index": index})

    page.route("**/api/about", about)
    page.route("**/api/lines", lambda route: route.fulfill(json={"lines": [{"sung": 6, "readings": []}]}), times=1)
    page.reload()
    page.wait_for_selector("body[data-ready]")
    load(page, "月亮照着河岸")
    expect(page.locator("mark")).to_have_text("月亮照着河岸", timeout=5000)


def test_enter_splits_and_backspace_joins(page):
    """回车从光标处分成两行，行首的退格连回去；读音、留住各随它的字；粘进几行就是几行。"""
    load(page, "春风吹", "月亮照着我们走了", "河岸")
    page.locator(".lock").nth(2).click()
    text(page, 2).focus()
    page.locator(".unsure:visible").click()
    expect(page.locator(".unsure:visible")).to_have_text("遥条")
    text(page, 2).evaluate("field => field.setSelectionRange(4, 4)")
    text(page, 2).press("Enter")
    assert lines(page) == ["春风吹", "月亮照着", "我们走了", "河岸"]
    expect(text(page, 3)).to_be_focused()
    expect(page.locator(".unsure:visible").last).to_have_text("遥条")
    page.keyboard.press("Backspace")
    assert lines(page) == ["春风吹", "月亮照着我们走了", "河岸"]
    assert text(page, 2).evaluate("field => field.selectionStart") == 4
    page.keyboard.press("End")
    page.keyboard.press("Delete")
    assert lines(page) == ["春风吹", "月亮照着我们走了河岸"]
    page.keyboard.press("Control+z")
    assert page.locator(".lock").nth(2).get_attribute("aria-pressed") == "true"
    text(page, 1).focus()
    text(page, 1).evaluate("field => field.setSelectionRange(2, 2)")
    page.keyboard.insert_text("起\n\n雪落\n夜")
    assert lines(page) == ["春风起", "", "雪落", "夜吹", "月亮照着我们走了", "河岸"]
    expect(text(page, 4)).to_be_focused()
    page.keyboard.type("里")
    assert lines(page)[3] == "夜里吹"
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert lines(page)[0] == "春风吹"


def test_input_methods_keep_their_keys(page):
    """输入法正拼着时，回车、方向键、退格、Ctrl-Z 都是它的；拼完才是页面的。"""
    load(page, "春风", "河岸")
    text(page, 1).focus()
    page.keyboard.press("End")
    session = page.context.new_cdp_session(page)
    session.send("Input.imeSetComposition", {"text": "yue'liang", "selectionStart": 9, "selectionEnd": 9})
    for code in ("Enter", "ArrowDown", "Backspace", "KeyZ"):  # 输入法拿走的按键，浏览器这样报
        key = {"type": "rawKeyDown", "key": "Process", "code": code, "windowsVirtualKeyCode": 229}
        session.send("Input.dispatchKeyEvent", key | {"modifiers": 2 if code == "KeyZ" else 0})
        page.evaluate(
            """code => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {
              key: code === "KeyZ" ? "z" : code, code, isComposing: true, ctrlKey: code === "KeyZ", bubbles: true,
            }))""",
            code,
        )
        expect(text(page, 1)).to_be_focused()
        assert len(lines(page)) == 2
    page.wait_for_timeout(300)  # 问到了字数、记下了历史，也不打断
    session.send("Input.imeSetComposition", {"text": "yue'liang", "selectionStart": 9, "selectionEnd": 9})
    session.send("Input.insertText", {"text": "月亮"})
    assert lines(page) == ["春风月亮", "河岸"]
    page.keyboard.press("Enter")
    assert lines(page) == ["春风月亮", "", "河岸"]


def test_writing_does_not_take_the_cursor(page):
    """边写边改已有的一行：新的一行来了，光标与拼着的字都不动。"""
    page.fill("#f-lines", "1000")
    page.click("#write")
    expect(text(page, 2)).to_be_visible(timeout=20_000)
    page.evaluate("window.left = 0; addEventListener('focusout', () => left++)")
    text(page, 1).focus()
    before = len(lines(page))
    page.keyboard.type("改")
    expect(text(page, before + 3)).to_be_visible(timeout=20_000)
    expect(text(page, 1)).to_be_focused()
    assert page.evaluate("left") <= 1
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_contain_text("停下了")
    assert lines(page)[0].endswith("改")


def test_pressing_the_mouse_moves_nothing(page):
    """按下鼠标时各行不挪，松开才展开：不会按着这一行却选中了一片；指着的「留」看得清。"""
    load(page, "一二三四五六七", "一二三四五六七", "一二三四五六七")
    expect(page.locator(".count").nth(2)).to_have_text("7/5")
    text(page, 1).click()
    box = text(page, 3).bounding_box()
    page.mouse.move(box["x"] + 30, box["y"] + box["height"] / 2)
    page.mouse.down()
    assert text(page, 3).bounding_box() == box
    page.mouse.move(box["x"] + 31, box["y"] + box["height"] / 2)
    page.mouse.up()
    assert text(page, 3).evaluate("field => field.selectionEnd - field.selectionStart") == 0
    expect(page.locator(".line.selected .text")).to_be_focused()
    assert page.locator(".line").nth(2).get_attribute("class") == "line selected"
    lock = page.locator(".lock").first
    lock.click()
    lock.hover()
    style = lock.evaluate("lock => [getComputedStyle(lock).color, getComputedStyle(lock).backgroundColor]")
    assert style == ["rgb(255, 255, 255)", "rgb(163, 53, 31)"]


def test_the_song_is_one_stop(page):
    """Tab 进歌里一站，再按几下就到韵典，不必走过每一行；撤销没了的一行，光标到邻近的一行。"""
    load(page, *(f"第{number}行" for number in "一二三四五六七八"))
    text(page, 4).focus()
    for _ in range(9):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "rhyme-of":
            break
    expect(page.locator("#rhyme-of")).to_be_focused()
    text(page, 4).focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    expect(text(page, 5)).to_be_focused()
    page.keyboard.press("Control+z")
    expect(text(page, 5)).to_be_focused()
    assert lines(page)[4] == "第五行"


def test_long_lines_fold_and_odd_ones_stay(page):
    """很长的一行折着看得全，手机上也是；两百行、表情、别的文字都照原样。"""
    odd = ["👩‍👩‍👧 月亮🌙", "𠮷野家", "<b>粗</b>", "love 爱你", "很长" * 300]
    load(page, *odd, *(f"第{number}行" for number in range(195)))
    assert lines(page)[:5] == odd
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    fits = "fields => fields.every(field => field.scrollHeight <= field.clientHeight + 2)"
    assert page.locator(".text").evaluate_all(fits)
    expect(page.locator(".count").nth(0)).to_have_text("2/5")
    expect(page.locator(".count").nth(4)).to_have_text("600/5")


# ---- 几个标签页 ----


def opened(context, served) -> Page:
    return open_page(context.new_page(), served)


def test_each_tab_keeps_its_own_song(page, served):
    """两个标签页各写各的；重开各是各的；都关了，再开是最近的，再开一个是另一首。"""
    context = page.context
    load(page, "甲的歌")
    other = opened(context, served)
    assert lines(other) == []
    load(other, "乙的歌")
    text(page, 1).fill("甲的歌改过")
    page.wait_for_timeout(500)
    page.keyboard.press("Control+z")
    assert lines(page) == ["甲的歌"]
    page.keyboard.press("Control+Shift+z")
    text(other, 1).fill("乙的歌改过")
    for tab, song in ((page, "甲的歌改过"), (other, "乙的歌改过")):
        tab.reload()
        tab.wait_for_selector("body[data-ready]")
        assert lines(tab) == [song]
    page.close()
    other.close()
    latest = context.new_page()
    latest.goto(f"{served.url}/healthz")
    latest.wait_for_function("async () => !(await navigator.locks.query()).held.length")  # 关着的还要一会儿才放手
    open_page(latest, served)
    assert lines(latest) == ["乙的歌改过"]
    assert lines(opened(context, served)) == ["甲的歌改过"]
    latest.keyboard.press("Control+z")
    assert lines(latest) == ["乙的歌"]


def test_a_copied_tab_and_one_that_slept(page, served):
    """复制出来的标签页从同一首起各写各的；睡着时被别的标签页拿去用了的，醒来另成一本，谁的也不丢。"""
    context = page.context
    load(page, "甲的歌")
    copy = context.new_page()
    book = page.evaluate("sessionStorage.getItem('book')")
    copy.add_init_script(f"sessionStorage.getItem('book') || sessionStorage.setItem('book', '{book}')")
    open_page(copy, served)
    assert lines(copy) == ["甲的歌"]
    assert copy.evaluate("sessionStorage.getItem('book')") != book
    page.evaluate(f"localStorage.setItem('lyrics:{book}:owner', 'other')")
    text(page, 1).fill("醒来的歌")
    page.locator("#f-prompt").focus()
    assert page.evaluate("sessionStorage.getItem('book')") != book
    assert "甲的歌" in page.evaluate(f"localStorage.getItem('lyrics:{book}:now')")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert lines(page) == ["醒来的歌"]
    text(page, 1).focus()
    page.keyboard.press("Control+z")
    assert lines(page) == ["甲的歌"]


def test_a_full_browser_keeps_the_song(page):
    """浏览器装满了：丢掉早的历史，现在的歌还存得下；早先的写法里的歌也认得。"""
    load(page, "第一稿")
    page.evaluate("localStorage.setItem('full', '满'.repeat(5 * 2 ** 20 - JSON.stringify(localStorage).length - 3000))")
    for draft in range(12):
        load(page, *[f"第{draft}稿的这一行"] * 8)
    longest = [f"最后一稿的第{number}行" for number in range(30)]
    load(page, *longest)
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert lines(page) == longest
    page.evaluate(
        """() => {
          const now = Object.entries(localStorage).find(([name]) => name.endsWith(":now"))[1];
          addEventListener("pagehide", () => {
            localStorage.clear();
            sessionStorage.clear();
            localStorage.setItem("lyrics:now", now);
          });
        }"""
    )
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert lines(page) == longest


def test_a_browser_that_stores_nothing(page):
    """不让存的浏览器：照样写、撤销。"""
    page.add_init_script(
        """for (const name of ["localStorage", "sessionStorage"])
             Object.defineProperty(window, name, { get() { throw new DOMException("不让", "SecurityError"); } });
           Object.defineProperty(navigator, "locks", { value: undefined });"""
    )
    page.reload()
    page.wait_for_selector("body[data-ready]")
    load(page, "春风")
    text(page, 1).fill("改过")
    page.keyboard.press("Control+z")
    assert lines(page) == ["春风"]
    page.keyboard.press("Control+z")
    assert lines(page) == []


# ---- 歌名、地址、文件 ----


def test_a_title_given_afterwards(page, tmp_path):
    """写完再填歌名也算这首歌的；导入的歌带来它的歌名；新写的一首撤销就回来。"""
    load(page, "春风")
    page.fill("#f-title", "远方")
    expect(page.locator("#title")).to_have_text("《远方》")
    with page.expect_download() as download:
        page.locator("#export [data-kind=lrc]").click()
    download.value.save_as(tmp_path / "a.lrc")
    assert (tmp_path / "a.lrc").read_text("utf-8").startswith("[ti:远方]\n[00:00.00]春风")
    page.fill("#f-prompt", "")
    page.click("#fresh")
    assert lines(page) == [""]
    page.keyboard.press("Control+z")
    assert lines(page) == ["春风"]
    page.set_input_files("#file", song_file("[ti: 归]", "[00:03.5][00:01.00]回来的", "[00:02]中间的", name="b.lrc"))
    expect(page.locator("#f-title")).to_have_value("归")
    assert lines(page) == ["回来的", "中间的", "回来的"]
    page.set_input_files("#file", {"name": "c.txt", "mimeType": "x", "buffer": "国标的歌".encode("gb18030")})
    expect(text(page, 1)).to_have_value("国标的歌")


def test_a_drawn_seed_is_only_in_the_address(page, served):
    """没有定种子的：地址里有，别处打开写出同一首；这一页重开，再写是另一首。"""
    page.fill("#f-seed", "")
    page.fill("#f-lines", "2")
    first = write(page)
    address = page.url.split("#")[1]
    assert "seed=" in address
    page.reload()
    page.wait_for_selector("body[data-ready]")
    expect(page.locator("#f-seed")).to_have_value("")
    assert write(page) != first
    elsewhere = open_page(page.context.new_page(), served, address)
    assert write(elsewhere) == first
    elsewhere.evaluate("location.hash = 'prompt=贴进来的'")
    expect(elsewhere.locator("#f-prompt")).to_have_value("贴进来的")


def test_the_token_comes_with_the_address(served, context, page):
    """没有口令的说一句；同一个标签页里贴进带口令的地址就能用，口令里什么符号都行，不留在地址上。"""
    token = "a+b%41&c=#d"
    with Served(served.writer, token=token) as guarded:
        page.goto(f"{guarded.url}/#lines=3")
        expect(page.locator("#problem")).to_contain_text("口令不对")
        shown = webui.address("127.0.0.1", guarded.port, token).split()[1].split("（")[0]
        page.goto(f"{shown}&lines=4")
        page.wait_for_selector("body[data-ready]")
        expect(page.locator("#f-lines")).to_have_value("4")
        assert "token" not in page.url
        assert len(write(page)) == 4
        page.reload()
        page.wait_for_selector("body[data-ready]")
        assert len(lines(page)) == 4
        page.close()  # 先于服务：页面还在问，服务就没了，控制台里是一条错


def test_lines_that_must_be_the_same_change_together(page):
    """词牌里一字不差的两行，换一行，另一行也换；留住的不动。"""
    page.goto(re.sub("#.*", "#cipai=如梦令&seed=1", page.url))
    page.wait_for_selector("body[data-ready]")
    before = write(page)
    assert before[3] == before[4]
    text(page, 4).focus()
    page.keyboard.press("Alt+r")
    expect(page.locator(".options:visible button").first).to_be_focused(timeout=20_000)
    page.keyboard.press("1")
    after = lines(page)
    assert after[3] == after[4] != before[3]
    expect(page.locator("#status")).to_contain_text("2 行都换")

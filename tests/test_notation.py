"""句式的写法：写下再读一字不差；写错了说第几行。样例读成句式。"""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_writer import settings as song_settings

from lyrics.cipai import find_cipai, read_cipai
from lyrics.example import read_form
from lyrics.form import Form, FormLine, LyricsError, loosened
from lyrics.notation import form_text, is_notation, parse_form, pattern_form
from lyrics.sound import sung_count

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@st.composite
def form_lines(draw) -> FormLine:
    """任意一行的句式，没有标记。"""
    rhyme = draw(st.sampled_from(["", "", "A", "B", "C?"]))
    if draw(st.integers(0, 3)) == 0:
        least = draw(st.integers(1, 20))
        return FormLine(least, draw(st.integers(least + 1, 30)), rhyme=rhyme)
    sizes = draw(SIZES)
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    kinds = draw(st.lists(st.sampled_from("-，"), min_size=len(sizes) - 1, max_size=len(sizes) - 1))
    tones = draw(st.one_of(st.just(""), st.text("平仄中", min_size=ends[-1], max_size=ends[-1])))
    breaks = tuple(zip(ends, kinds, strict=False))
    return FormLine(ends[-1], ends[-1], breaks, tones if tones.strip("中") else "", rhyme)


@st.composite
def forms(draw) -> Form:
    """任意的句式；有的行用同一个标记。"""
    stanzas = draw(st.lists(st.lists(form_lines(), min_size=1, max_size=4), min_size=1, max_size=3))
    names = [draw(st.sampled_from(["", "主歌", "副歌", "a 2"])) for _ in stanzas]
    lines = [line for stanza in stanzas for line in stanza]
    marked = dataclasses.replace(lines[0], mark="hook1")
    for place in draw(st.lists(st.integers(0, len(lines) - 1), max_size=3)):
        lines[place] = marked
    return pattern_form(lines, list(zip(names, map(len, stanzas), strict=True)))


@settings(max_examples=300)
@given(form=forms())
def test_written_and_read_back(form):
    """写下再读，与原来相同；再写下，一字不差。"""
    text = form_text(form)
    assert parse_form(text) == form
    assert form_text(parse_form(text)) == text
    assert is_notation(text)


def test_notation_by_hand():
    """手写的：注、空着的栏、全角的范围号、小写的韵。"""
    form = parse_form(
        "# 一首歌\n主歌 | 2-2-3 | 仄仄平平仄仄平 | A | =hook1\n主歌 | 5～9 # 长短不拘\n\n\n"
        "副歌 | 4，2-3 |  | a?\n副歌 | 2-2-3 | 中中平平仄仄平 | | =hook1\n"
    )
    hook = FormLine(7, 7, ((2, "-"), (4, "-")), "仄仄平平仄仄平", "A", "hook1")
    assert form.pattern == (hook, FormLine(5, 9), FormLine(9, 9, ((4, "，"), (6, "-")), "", "A?"), hook)
    assert form.sections == (("主歌", 2), ("副歌", 2))
    assert form.rhyme == "auto"
    assert form.lines == 4
    assert parse_form("| 3 | 中中中").pattern == (FormLine(3, 3),)
    assert parse_form("| 3").rhyme == "none"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("主歌", "第 1 行：应是"),
        ("| 7\n主歌 | 七", "第 2 行：字数与停顿"),
        ("| 7\n\n| 0", "第 3 行：字数"),
        ("| 2-0-3", "2-0-3"),
        ("| 9~5", "9~5"),
        ("| 7 | 平平", "平仄有 2 个字"),
        ("| 5~7 | 平平平平平", "第 1 行"),
        ("| 3 | 平平x", "第 1 行：平仄只用"),
        ("| 3 | | AB", "第 1 行：韵"),
        ("| 3 | | A | hook", "第 1 行：标记"),
        ("| 3 | | A | =a | b", "第 1 行：应是"),
        ("主歌 | 3\n副歌 | 3", "第 2 行：同一节里"),
        ("| 3 | | | =a\n| 4 | | | =a", "第 2 行：与前面同名的 =a"),
        ("| 2 | 平平 | | =a\n| 2 | 平仄 | | =a", "第 2 行"),
        ("| 2 | | A | =a\n| 2 | | B | =a", "第 2 行"),
        ("\n".join(f"| 2 | | {letter}" for letter in "ABCDEFGHIJKLMN"), "十三辙"),
        ("# 只有注\n", "一行也没有"),
    ],
)
def test_notation_errors(text, named):
    """写错了：一句话，说第几行。"""
    with pytest.raises(LyricsError) as caught:
        parse_form(text)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lines_of_the_same_mark_take_each_others_demands():
    """同名的两行一处要平、一处要押韵：两处都要。"""
    form = parse_form("| 2 | 平中 |  | =a\n| 2 | 中仄 | A | =a\n| 3 | | A")
    assert form.pattern[0] == form.pattern[1] == FormLine(2, 2, (), "平仄", "A", "a")


def test_loose_tones():
    """放宽：逗号断开的每一截里只论二、四、六与末字。"""
    form = loosened(parse_form("| 4，2-3 | 仄平平仄平平仄仄平\n| 7 | 平平平平平平平"))
    assert [line.tones for line in form.pattern] == ["中平中仄中平中仄平", "中平中平中平平"]


SONG = """我在 风里唱歌
你在 河岸 等我
月亮照着 故乡
雪落下来
谁在 看着远方

夜色温柔
love you love you
我们 走了，不回头

我在 雨里唱歌
他在 桥上 等我
月亮照着 他乡
雪落下来
谁在 看着月光

夜色温柔
love you love you
我们走了，不回头
"""


def test_a_form_is_read_off_a_song():
    """各节、字数、停顿、韵、回来的一行；外文词一个算一个；多出来的不押的一行空着。"""
    form = read_form(SONG)
    assert form_text(form).split("\n\n")[:2] == [
        "主歌 | 2-4 |  | A\n主歌 | 2-2-2 |  | A\n主歌 | 4-2 |  | B\n主歌 | 4 |  |  | =hook1\n主歌 | 2-4 |  | B",
        "副歌 | 4 |  | C | =hook2\n副歌 | 4 |  |  | =hook3\n副歌 | 2-2，3 |  | C | =hook4",
    ]
    assert form.pattern[5:8] == form.pattern[13:16]
    assert [sung_count(line) for line in SONG.split("\n") if line] == [line.most for line in form.pattern]
    assert form.example.startswith("我在风里唱歌你在河岸")
    assert "loveyouloveyou" in form.example
    assert not any(line.tones for line in form.pattern)


def test_the_form_of_a_song_written_and_read_is_the_same():
    """读 → 写 → 读：不差（样例的字不在句式里）。"""
    for keep_tones in (False, True):
        form = read_form(SONG, keep_tones)
        assert parse_form(form_text(form)) == dataclasses.replace(form, example="")


def test_tones_are_read_in_context():
    """平仄照上下文的读法：长大的长是仄，长城的长是平；外文词不论。"""
    form = read_form("孩子长大\n万里长城\nmy love 月光", keep_tones=True)
    assert [line.tones for line in form.pattern] == ["平仄仄仄", "仄仄平平", "中中仄平"]


@pytest.mark.parametrize(
    ("song", "letters"),
    [
        ("春光\n远方\n月亮\n故乡", "AAAA"),
        ("春光\n大海\n月亮\n风来", "ABAB"),
        ("春光\n大海\n月亮\n小路", "A-A-"),
        ("春光\n大海\n小路\n看雪\n梦醒\n月亮", "------"),
        ("春光\n春光\n小路", "---"),
        ("春光\nlove\n月亮", "A-A"),
    ],
)
def test_rhyme_groups(song, letters):
    """相隔不远、不是同一行字的两个韵脚才算押。"""
    assert [line.rhyme or "-" for line in read_form(song).pattern] == [*letters]


def test_time_tags_are_not_sung():
    """LRC 的时间与歌名不是词，也不是停顿。"""
    lrc = "[ti:风]\n[00:01.00]我在风里走\n[00:05.5][01:05]你在雨里 留\n\n[00:09]走吧"
    assert read_form(lrc) == read_form("我在风里走\n你在雨里 留\n\n走吧")


def test_full_width_marks_are_the_same():
    """输入法打出来的全角竖线、减号、等号与半角的一样。"""
    typed = "主歌｜2－2－3｜｜A｜＝hook1 ＃ 注\n主歌｜7｜｜A？\n"
    assert is_notation(typed)
    assert parse_form(typed) == parse_form("主歌 | 2-2-3 | | A | =hook1 # 注\n主歌 | 7 | | A?\n")


@pytest.mark.parametrize("text", ["主歌 | 2-2-3 | | A\n", "love you\n"])
def test_tones_to_keep_that_are_not_there_are_refused(text):
    """样例里没有平仄，--keep_tones 不悄悄不管。"""
    with pytest.raises(LyricsError, match="--keep_tones：样例里没有平仄"):
        song_settings(like=text, keep_tones=True, max_tokens=None).form()
    form = song_settings(like="主歌 | 2 | 平仄\n", keep_tones=True, max_tokens=None).form()
    assert form.pattern[0].tones == "平仄"


def test_a_song_without_lines():
    with pytest.raises(LyricsError, match="没有一行"):
        read_form(" \n……\n")


def test_cipai_by_name_alias_and_number():
    """按名称、又名、第几体找；错的说最相近的。"""
    assert find_cipai("忆江南") == find_cipai("《望江南》") == find_cipai("忆江南1")
    with pytest.raises(LyricsError, match="是否指 忆江南"):
        find_cipai("忆江男")
    with pytest.raises(LyricsError, match="没有第 9 体"):
        find_cipai("忆江南9")


def test_cipai_errors_name_the_pattern():
    """词牌文件写错了：说哪个词牌，第几行。"""
    (one,) = read_cipai("# 注\n《天净沙》 越调 | 又名：塞上秋\n| 6 | | A\n\n| 4，6 | | A\n")
    assert (one.name, one.label, one.aliases) == ("天净沙", "越调", ("塞上秋",))
    assert [count for _, count in one.form.sections] == [1, 1]
    with pytest.raises(LyricsError, match="《天净沙》.*第 2 行"):
        read_cipai("《天净沙》\n| 6\n| 六\n")
    with pytest.raises(LyricsError, match="题目"):
        read_cipai("《天净沙\n| 6\n")

"""对话里改歌：留住的行、重写一行、句式的设置、接着写。"""

import dataclasses

import pytest
from small_writer import MAX_SEQ_LEN, converse, counts, settings, sung_lines

import inference
from lyrics.form import LyricsError
from lyrics.plan import SongPlan
from lyrics.sound import lines_of, rhyme_class, sung_count
from terminal import UserError
from writing.writer import REWRITINGS

# ---- 对话里改歌 ----


@pytest.fixture
def form_talk(talk, monkeypatch):
    """写好一首四行五字的歌；form_talk.pick(选择) 定下回车前输入什么。"""
    talk("/set lines 4")
    talk("/set line_chars 5")
    monkeypatch.setattr(inference, "_read_line", lambda _: pytest.fail("不该问"))

    def pick(choice: str) -> None:
        monkeypatch.setattr(inference, "_read_line", lambda _: choice)

    talk.pick = pick
    return talk


def test_locked_lines_are_kept(form_talk):
    """/lock 1-2 之后 /again：这两行一字不差，其余重写，字数照旧；可以一次次重写；/lock none 放开。"""
    before = sung_lines(form_talk("我在"))
    assert form_talk("/lock 1-2") == ""
    assert "1、2" in form_talk.err
    seen = set()
    for _ in range(3):
        after = sung_lines(form_talk("/again"))
        assert after[:2] == before[:2]
        assert counts("\n".join(after)) == [5] * 4
        seen.add(tuple(after[2:]))
    assert len(seen) == 3
    assert tuple(before[2:]) not in seen
    form_talk("/lock 4")
    assert "1、2、4" in form_talk.err
    last = sung_lines(form_talk("/again"))
    assert (last[:2], last[3]) == (before[:2], after[3])
    form_talk("/lock none")
    assert "没有留住" in form_talk.err
    assert sung_lines(form_talk("/again"))[1] != before[1]


def test_a_locked_line_without_the_first_keeps_the_prompt(form_talk):
    """没有留住第一行时，第一行仍从开头写起。"""
    before = sung_lines(form_talk("我在"))
    form_talk("/lock 3")
    after = sung_lines(form_talk("/again"))
    assert after[0].startswith("我在")
    assert (len(after), after[2]) == (4, before[2])


def test_a_new_prompt_unlocks(form_talk):
    """输入新的开头：留住的行不再算。"""
    form_talk("我在")
    form_talk("/lock 1-4")
    first = form_talk("你")
    assert first.startswith("你")
    assert form_talk("/again") != first


def test_lock_again_after_a_stop(form_talk, writer, monkeypatch, capsys):
    """重写其余时按了 Ctrl-C：对话照常，留住的行还在。"""
    before = sung_lines(form_talk("我在"))
    form_talk("/lock 3-4")
    original = writer.compose

    def interrupted(song, *arguments):
        monkeypatch.setattr(writer, "compose", original)
        song.text += "一行\n"
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "compose", interrupted)
    converse(form_talk.conversation, monkeypatch, "/again", "/again", "/quit")
    out, err = capsys.readouterr()
    assert "已停下" in err
    assert sung_lines(out)[-2:] == before[2:]


def test_more_after_a_stopped_form_sees_what_was_written(form_talk, writer, monkeypatch, capsys):
    """守句式写到一半按 Ctrl-C，/more 的前文是已写的全部。"""
    original = SongPlan.write

    def interrupted(self, *arguments):
        for number, text in enumerate(original(self, *arguments)):
            if number == 2:
                raise KeyboardInterrupt
            yield text

    monkeypatch.setattr(SongPlan, "write", interrupted)
    converse(form_talk.conversation, monkeypatch, "我在", "/quit")
    (song,) = writer.songs
    assert len(sung_lines(song.text)) == 2
    assert writer.tokenizer.decode(song.tokens[2:]) == song.text


def test_rewrite_replaces_one_line(form_talk, writer, tmp_path):
    """/rewrite 2：列出几种，同样的字数与韵、与已有的行不重复；选一种只换那一行；/save 存的就是屏幕上的。"""
    form_talk("/set rhyme 江阳")
    before = form_talk("我在").split("\n")
    form_talk.pick("2")
    out = form_talk("/rewrite 2")
    options = [line.split(None, 1)[1] for line in form_talk.err.splitlines() if line.startswith("  ")]
    assert 2 <= len(options) <= REWRITINGS
    assert before[1] in form_talk.err
    assert len(set(options)) == len(options)
    for option in options:
        assert sung_count(option) == 5
        assert rhyme_class(option) == "江阳"
        assert option not in before
    after = out.split("\n")
    assert after == [before[0], options[1], *before[2:]]
    assert writer.songs[0].text + "\n" == out
    assert writer.tokenizer.decode(writer.songs[0].tokens[2:]) == writer.songs[0].text
    path = tmp_path / "歌.txt"
    form_talk(f"/save {path}")
    assert path.read_text(encoding="utf-8") == out + "\n"


def test_rewritings_are_new(form_talk, writer):
    """能用的字没有几个时：给出的写法里没有原来的，也没有歌里别的行。"""
    for change in ("lines 2", "line_chars 1", "rhyme 江阳", "candidates 6"):
        form_talk(f"/set {change}")
    form_talk("唱")
    lines = sung_lines(writer.songs[0].text)
    for number in (1, 2):
        options = writer.rewritings(writer.songs[0].text, number, form_talk.conversation.settings, 3)
        assert options
        assert not set(options) & set(lines)


@pytest.mark.parametrize(("choice", "named"), [("9", "9"), ("0", "0"), ("甲", "甲"), ("-1", "-1"), ("1.5", "1.5")])
def test_a_wrong_choice_changes_nothing(form_talk, writer, choice, named):
    """选的不在其中：说一句，歌不变。"""
    form_talk("我在")
    text = writer.songs[0].text
    form_talk.pick(choice)
    assert named in form_talk.error("/rewrite 1")
    assert writer.songs[0].text == text


def test_no_choice_keeps_the_line(form_talk, writer):
    """回车：不换，也不再显示一遍。"""
    text = form_talk("我在").removesuffix("\n")
    form_talk.pick(" ")
    assert form_talk("/rewrite 1") == ""
    assert writer.songs[0].text == text


@pytest.mark.parametrize(
    "line", ["/rewrite", "/rewrite 5", "/rewrite 0", "/rewrite 1-2", "/rewrite 二", "/lock 5", "/lock 3-9", "/lock x"]
)
def test_wrong_line_numbers(form_talk, line):
    """行号有误：一句话，歌与留住的行不变。"""
    form_talk("我在")
    assert "行" in form_talk.error(line)
    assert form_talk.conversation.locked == set()


def test_rewriting_a_song_in_sections_keeps_the_blank_lines(form_talk):
    """分段的歌：行号不数空行，改一行之后空行还在。"""
    form_talk("/set lines none")
    form_talk("/set structure 主歌2 副歌2")
    before = form_talk("我在").split("\n")
    form_talk.pick("1")
    after = form_talk("/rewrite 3").split("\n")
    assert before[2] == after[2] == ""
    assert [index for index in range(len(before)) if before[index] != after[index]] == [3]


def test_rewriting_the_end_of_a_long_song(form_talk, writer):
    """歌比 max_seq_len 长：最后几行照样能改。"""
    form_talk("/set lines 12")
    form_talk("我在")
    assert len(writer.songs[0].tokens) > MAX_SEQ_LEN
    form_talk.pick("")
    for number in (6, 11, 12):
        form_talk(f"/rewrite {number}")
        assert f"第 {number} 行原是" in form_talk.err


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("/set rhyme 江洋", "江阳"),
        ("/set structure 主歌3", "3 行"),
        ("/set lines 0", "lines"),
        ("/set max_copy 4", "索引"),
    ],
)
def test_set_checks_the_form(form_talk, line, named):
    """/set 句式：有误或与别的设置矛盾时说一句，设置不变。"""
    before = dataclasses.replace(form_talk.conversation.settings)
    with pytest.raises((UserError, LyricsError), match=named):
        form_talk.conversation.answer(line)
    assert form_talk.conversation.settings == before


def test_set_rhyme_is_used(form_talk):
    """/set rhyme 江阳：下一首就押它；none 不再押。"""
    form_talk("/set rhyme 江阳")
    assert form_talk.conversation.settings.rhyme == "江阳"
    assert {rhyme_class(line) for line in sung_lines(form_talk("我在"))} == {"江阳"}
    form_talk("/set rhyme none")
    assert len({rhyme_class(line) for line in sung_lines(form_talk("我在"))}) > 1


# ---- 要求在每种写法里都守着 ----


@pytest.mark.parametrize(
    ("flags", "rows"),
    [
        ({"line_chars": "5", "lines": 4}, 8),
        ({"line_chars": "4", "rhyme": "auto", "lines": 3}, 6),
        ({"structure": "主歌2 副歌2", "line_chars": "6"}, 8),
    ],
)
def test_more_keeps_every_demand(talk, flags, rows):
    """/more 照同样的句式再写一遍：行长、韵都守着。"""
    talk.conversation.settings = settings(**flags)
    talk("我")
    more = talk("/more")
    text = talk.conversation.writer.songs[0].text
    lines = lines_of(text)
    assert len(lines) == rows
    assert more.strip()
    assert {sung_count(line) for line in lines} == {int(flags["line_chars"])}
    if "rhyme" in flags:
        assert len({rhyme_class(line) for line in lines}) == 1


def test_more_of_a_free_length_keeps_the_lines(talk):
    """没有定行数、只定了每行的字数：接着写的行也是那么长。"""
    talk.conversation.settings = settings(line_chars="5", max_tokens=30)
    talk("我")
    talk("/more")
    lines = lines_of(talk.conversation.writer.songs[0].text)
    assert {sung_count(line) for line in lines} == {5}


@pytest.mark.parametrize("key", [EOFError, KeyboardInterrupt])
def test_leaving_the_second_question(talk, monkeypatch, capsys, key):
    """在 /rewrite 的提问处按 Ctrl-D 或 Ctrl-C：回到对话，歌没有动。"""
    talk("我在风里\\n")
    before = talk.conversation.writer.songs[0].text
    answers = iter(["/rewrite 1", key, EOFError])

    def read(prompt):
        answer = next(answers)
        if isinstance(answer, type):
            raise answer
        return answer

    monkeypatch.setattr(inference, "_read_line", read)
    talk.conversation.run()
    assert talk.conversation.writer.songs[0].text == before

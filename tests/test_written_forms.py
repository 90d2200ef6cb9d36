"""命令行写出的歌守着句式与照抄的上限。"""

import json
import sys

import pytest
from small_writer import copied, counts, sung_lines

import inference
from generation import song_seed
from lyrics.form import LyricsError
from lyrics.sound import rhyme_class
from writing.drafts import Composer


def test_lines_and_line_chars(write):
    """行数与各行的字数：开头的半行也算在内；写满就停，标准输出只有歌词。"""
    out, err = write("--prompt", "我在", "--lines", "4", "--line_chars", "5,3-4", "--seed", "3")
    assert out.startswith("我在")
    assert out.endswith("\n")
    assert not out.endswith("\n\n")
    found = counts(out)
    assert (len(found), found[0], found[2]) == (4, 5, 5)
    assert set(found[1::2]) <= {3, 4}
    assert "种子 3" in err
    assert write("--prompt", "我在", "--lines", "4", "--line_chars", "5,3-4", "--seed", "3")[0] == out
    assert write("--prompt", "我在", "--lines", "4", "--line_chars", "5,3-4", "--seed", "4")[0] != out


@pytest.mark.parametrize("candidates", ["1", "4"])
def test_rhyme_and_scheme(write, candidates):
    """--rhyme 与 --rhyme_scheme：押在该押的行上。"""
    flags = ("--lines", "4", "--line_chars", "4", "--candidates", candidates, "--seed", "5")
    out, _ = write("--rhyme", "江阳", *flags)
    assert [rhyme_class(line) for line in sung_lines(out)] == ["江阳"] * 4
    out, _ = write("--rhyme", "江阳", "--rhyme_scheme", "AABA", *flags)
    found = [rhyme_class(line) for line in sung_lines(out)]
    assert [name == "江阳" for name in found] == [True, True, False, True]
    out, _ = write("--rhyme_scheme", "ABAB", *flags)
    found = [rhyme_class(line) for line in sung_lines(out)]
    assert found[0] == found[2] != found[1] == found[3]


def test_acrostic_and_structure(write):
    """藏头各行的头一个字；分段之间空一行，重复的段落一字不差。"""
    out, _ = write("--acrostic", "我你他谁", "--line_chars", "3-5", "--seed", "2")
    assert [line[0] for line in sung_lines(out)] == list("我你他谁")
    out, _ = write("--structure", "主歌3 副歌2 主歌3 副歌", "--line_chars", "4", "--seed", "2")
    verse, chorus, second, repeated = out.removesuffix("\n").split("\n\n")
    assert [len(verse.split("\n")), len(chorus.split("\n"))] == [3, 2]
    assert (chorus, len(second.split("\n"))) == (repeated, 3)
    assert verse != second


@pytest.mark.parametrize("flags", [("--lines", "3"), ("--acrostic", "我你"), ("--structure", "主歌2")])
def test_a_form_without_a_prompt_writes_once(write, monkeypatch, flags):
    """给了行数、藏头或分段而没有开头：从头写一首就结束，不等输入。"""
    monkeypatch.setattr(sys, "stdin", None)
    out, _ = write(*flags, "--seed", "1")
    assert len(sung_lines(out)) == (3 if flags[0] == "--lines" else 2)


def test_songs_of_a_form_equal_the_songs_alone(write):
    """几首守句式的歌：第 i 首就是单独用 song_seed(seed, i) 写的那首。"""
    flags = ("--prompt", "我", "--lines", "3", "--line_chars", "4", "--candidates", "2")
    out, err = write(*flags, "--seed", "7", "--num_samples", "3")
    alone = [write(*flags, "--seed", str(song_seed(7, number)))[0] for number in range(3)]
    assert len(set(alone)) == 3
    assert out == "\n".join(alone)
    assert "第 3 首" in err


def test_stats_of_a_form(write):
    """--stats：守句式时也是一行 JSON，数的是新写的词元；标准输出不变。"""
    flags = ("--structure", "主歌2 副歌2 副歌", "--line_chars", "4", "--seed", "1", "--candidates", "2")
    plain, _ = write(*flags)
    out, err = write(*flags, "--stats")
    assert out == plain
    (line,) = [line for line in err.splitlines() if line.startswith("{")]
    found = json.loads(line)
    assert 8 <= found["tokens"] <= 4 * 13
    assert found["tokens_per_s"] > 0
    assert 0 < found["first_token_s"] <= found["seconds"]


# ---- 照抄 ----


def test_max_copy(write, copies):
    """--max_copy：写出的歌与语料连续相同不超过它；没有句式时也管。"""
    flags = ("--copy_index", str(copies), "--top_k", "12")
    longest = dict.fromkeys(("0", "1"), 0)
    for limit in longest:
        for seed in range(4):
            form = ("--lines", "4", "--line_chars", "6") if seed % 2 else ("--max_tokens", "30")
            out, _ = write("--prompt", "我", "--seed", str(seed), "--max_copy", limit, *flags, *form)
            longest[limit] = max(longest[limit], copied(out))
    assert longest["1"] == 1
    assert longest["0"] > 1


def test_check_copy_tells_every_line(write, copies):
    """--check_copy：每行一句，相同处与出处都对；歌词照旧；没有相同的也说。"""
    flags = ("--prompt", "我在风里唱歌", "--lines", "3", "--line_chars", "6", "--seed", "1")
    plain, _ = write(*flags)
    out, err = write(*flags, "--check_copy", "--copy_index", str(copies))
    assert out == plain
    told = [line for line in err.splitlines() if "行" in line and line.startswith("第 ")]
    assert len(told) == 3
    assert told[0] == "第 1 行 6 字相同：「我在风里唱歌」，《河岸》谁"
    for line, text in zip(told, sung_lines(out), strict=True):
        longest = copied(text)
        assert f" {longest} 字相同" in line if longest else "没有相同" in line
    _, err = write(*flags, "--check_copy", "--copy_index", str(copies), "--num_samples", "2")
    assert err.count("第 1 行") == 2


@pytest.mark.parametrize("flags", [["--max_tokens", "50"], ["--min_tokens", "5"]])
@pytest.mark.parametrize("form", [["--lines", "3"], ["--acrostic", "我在"], ["--structure", "主歌2"]])
def test_two_lengths_are_refused(trained, form, flags):
    """行数与词元数不能都定：一句话，不悄悄不管其中一个。"""
    with pytest.raises(LyricsError, match="不能同时用"):
        inference.main(["--checkpoint", str(trained), "--prompt", "我", *form, *flags])


def test_a_break_that_no_word_can_meet_is_told(write, monkeypatch):
    """停顿的前面放不下认得的词时，写得宽些，标准错误里说是哪几行；放得下的不说。"""
    flags = ("--breaks", "2-2", "--lines", "3", "--seed", "1")
    assert "停顿" not in write(*flags)[1]
    original = Composer.line

    def line(self, constraint, *rest, **options):
        return None if constraint().rule.careful else original(self, constraint, *rest, **options)

    monkeypatch.setattr(Composer, "line", line)
    out, err = write(*flags)
    assert counts(out) == [4, 4, 4]
    assert "第 1、2、3 行的停顿未必在词与词之间" in err
    assert "第 2 首第 1、2、3 行的停顿" in write(*flags, "--num_samples", "2")[1]

"""README 与 --help 里每一条对歌的要求，在每一种写法里：守着，或者说一句不行；没有第三种。

整张表：`python -m pytest tests/test_promises.py -k table -s`
"""

import contextlib
import io
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_writer import copied, settings

import inference
from inference import Conversation, Printer
from lyrics.form import LyricsError
from lyrics.sound import LEVEL, OBLIQUE, lines_of, rhyme_class, sung_count, tones_of
from terminal import UserError
from writing.loading import open_copies
from writing.settings import Settings
from writing.writer import Song, Writer

HOLDS, REFUSED = "守", "拒"
START = "我在风里"
FREE = {"max_tokens": 24}
TUNE = Path(__file__).with_name("tune.txt")
LIMIT_S = 10.0  # 处理器的时间：机器忙不算

Check = Callable[[Writer, Settings, list[Song]], bool]


def sung(song: Song) -> list[str]:
    return lines_of(song.text)


def per_round(song: Song, count: int) -> bool:
    """/more 之后是两遍。"""
    return len(sung(song)) in (count, 2 * count)


def tokens_written(model: Writer, asked: Settings, song: Song) -> int:
    return len(song.tokens) - len(model.tokenizer.song(START, asked.title or "", asked.singer or ""))


def rhymes(song: Song, scheme: str) -> bool:
    """每四行里同字母同韵、不同字母不同韵。"""
    classes = [rhyme_class(line) for line in sung(song)]
    letters = [scheme[place % len(scheme)] for place in range(len(classes))]
    found = {letter: {kind for kind, own in zip(classes, letters, strict=True) if own == letter} for letter in letters}
    return all(len(kinds) == 1 for kinds in found.values()) and len(set(map(frozenset, found.values()))) == len(found)


def greedy(model: Writer, asked: Settings, songs: list[Song]) -> bool:
    """与换了种子写的相同。"""
    return len({song.text for song in songs}) == 1


def in_tune(w: Writer, asked: Settings, songs: list[Song]) -> bool:
    """tests/tune.txt：字数、分节、回来的一行、韵、开头的仄声。"""
    for song in songs:
        lines = sung(song)
        returning = {line for place, line in enumerate(lines) if place % 4 in (0, 2)}
        rhymed = {rhyme_class(line) for place, line in enumerate(lines) if place % 4 in (1, 3)}
        fits = all(sung_count(line) == 4 for line in lines) and all(tones_of(line)[0] == OBLIQUE for line in returning)
        if not (fits and len(returning) == len(rhymed) == 1 and "\n\n" in song.text and per_round(song, 4)):
            return False
    return True


# 要求 → (设置, 怎样算守着)
PROMISES: dict[str, tuple[dict, Check]] = {
    "max_tokens": ({"max_tokens": 24}, lambda w, s, songs: all(tokens_written(w, s, song) <= 2 * 24 for song in songs)),
    "min_tokens": (
        {"min_tokens": 20, "max_tokens": 24},
        # /rewrite 换了一行，词元重新切过，只看字数
        lambda w, s, songs: all(tokens_written(w, s, song) >= 19 or len(song.text) > 20 for song in songs),
    ),
    "min_tokens，逐行": (
        {"min_tokens": 20, "max_tokens": 24, "line_chars": "4"},
        lambda w, s, songs: all(len(w.tokenizer.encode(song.text)) >= 20 for song in songs),
    ),
    "temperature 0": ({"temperature": 0.0, **FREE}, greedy),
    "top_k 1": ({"top_k": 1, **FREE}, greedy),
    "lines": ({"lines": 4}, lambda w, s, songs: all(per_round(song, 4) for song in songs)),
    "line_chars": (
        {"line_chars": "5", **FREE},
        lambda w, s, songs: all(sung_count(line) == 5 for song in songs for line in sung(song)),
    ),
    "lines、line_chars": (
        {"lines": 4, "line_chars": "5"},
        lambda w, s, songs: all(sung_count(line) == 5 for song in songs for line in sung(song)),
    ),
    "rhyme": (
        {"lines": 4, "line_chars": "4", "rhyme": "auto"},
        lambda w, s, songs: all(rhymes(song, "A") for song in songs),
    ),
    "rhyme_scheme": (
        {"lines": 4, "line_chars": "4", "rhyme": "auto", "rhyme_scheme": "ABAB"},
        lambda w, s, songs: all(rhymes(song, "ABAB") for song in songs),
    ),
    "acrostic": (
        {"acrostic": "我你他", "line_chars": "4-5"},
        lambda w, s, songs: all([line[0] for line in sung(song)][:3] == list("我你他") for song in songs),
    ),
    "structure": (
        {"structure": "主歌2 副歌2", "line_chars": "4"},
        lambda w, s, songs: all(per_round(song, 4) and "\n\n" in song.text for song in songs),
    ),
    "candidates": (
        {"lines": 4, "line_chars": "4", "candidates": 4},
        lambda w, s, songs: all(per_round(song, 4) for song in songs),
    ),
    "breaks": (
        {"lines": 4, "breaks": "2-2"},
        lambda w, s, songs: all(
            sung_count(line) == 4 and line.find(" ") in (-1, 2) for song in songs for line in sung(song)
        ),
    ),
    "tones": (
        {"lines": 4, "tones": "中中中仄"},
        lambda w, s, songs: all(
            tones_of(line)[3] == OBLIQUE and len(tones_of(line)) == 4 for song in songs for line in sung(song)
        ),
    ),
    "keywords": (
        {"lines": 4, "line_chars": "4", "keywords": "月亮,故乡"},
        lambda w, s, songs: all(song.text.count(word) == 1 for song in songs for word in ("月亮", "故乡")),
    ),
    "like": ({"like": TUNE}, in_tune),
    "like、candidates": ({"like": TUNE, "candidates": 3}, in_tune),
    "max_copy": (
        {"max_copy": 1, **FREE},
        lambda w, s, songs: all(copied(song.text[len(START) :]) <= 1 for song in songs),
    ),
    "max_copy、lines": (
        {"max_copy": 1, "lines": 4, "line_chars": "4"},
        lambda w, s, songs: all(copied("".join(sung(song)[1:])) <= 1 for song in songs),
    ),
    "title、singer": (
        {"title": "月亮", "singer": "谁", **FREE},
        lambda w, s, songs: all({w.tokenizer.title_id, w.tokenizer.singer_id} <= set(song.tokens) for song in songs),
    ),
    "lines 与 max_tokens": ({"lines": 4, "max_tokens": 24}, lambda w, s, songs: False),
    "lines 与 min_tokens": ({"lines": 4, "min_tokens": 24}, lambda w, s, songs: False),
}
MODES = ("一首", "几首", "管道", "/more", "/again", "/lock", "/rewrite")


def written(writer: Writer, asked: Settings, mode: str, monkeypatch) -> list[Song]:
    """照一种写法写，返回歌。温度 0 的换一个种子再写一遍，放在后面。"""
    if mode == "管道":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{START}\n".encode())))
        for prompt in inference._prompts_from_pipe():
            Printer(writer).write(prompt, asked)
        return list(writer.songs)
    if mode in ("一首", "几首"):
        if mode == "几首":
            asked = inference.dataclasses.replace(asked, num_samples=3)
        Printer(writer).write(START, asked)
        return list(writer.songs)
    talk = Conversation(Printer(writer), asked)
    talk.answer(START)
    if mode == "/lock":
        talk.answer("/lock 1")
        talk.answer("/again")
    elif mode == "/rewrite":
        monkeypatch.setattr(inference, "_read_line", lambda prompt: "1")
        with contextlib.suppress(UserError):  # 没有写出别的：原来的还在
            talk.answer("/rewrite 2")
    else:
        talk.answer(mode)
    return list(writer.songs)


@pytest.fixture
def outcome(writer, copies, monkeypatch):
    """outcome(要求, 写法) → 守、拒，或说明哪里没有守。"""
    writer.copies = open_copies(copies, writer.tokenizer, True)

    def call(promise: str, mode: str) -> str:
        changes, holds = PROMISES[promise]
        wanted = {"max_tokens": None, **changes}
        texts = []
        for seed in (1, 2) if holds is greedy else (1,):
            asked = settings(**{**wanted, "seed": seed})
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    texts += written(writer, asked, mode, monkeypatch)
            except (LyricsError, UserError) as refused:
                return REFUSED if 5 < len(str(refused)) < 200 else "没有说清"
        return HOLDS if holds(writer, asked, texts) else f"没有守：{[song.text for song in texts]!r:.300}"

    return call


def test_table_of_promises(outcome):
    """整张表只有「守」与「拒」。"""
    table = {promise: [outcome(promise, mode) for mode in MODES] for promise in PROMISES}
    print("\n| 要求 | " + " | ".join(MODES) + " |\n| --- |" + " --- |" * len(MODES))
    for promise, row in table.items():
        print(f"| {promise} | " + " | ".join(row) + " |")
    third = {
        (p, m): cell
        for p, row in table.items()
        for m, cell in zip(MODES, row, strict=True)
        if cell not in (HOLDS, REFUSED)
    }
    assert third == {}
    refused = {promise for promise, row in table.items() if REFUSED in row}
    assert refused <= {"lines 与 max_tokens", "lines 与 min_tokens"}, refused


DEMANDS = {
    "acrostic": {"acrostic": "我你"},
    "line_chars": {"line_chars": "3-5"},
    "tones": {"tones": "中中中平"},
    "rhyme": {"rhyme": "auto", "rhyme_scheme": "AABA"},
    "breaks": {"breaks": "2-2"},
    "keywords": {"keywords": "月亮,故乡"},
    "like": {"like": TUNE},
    "candidates": {"candidates": 4},
    "max_copy": {"max_copy": 2},
    "lines": {"lines": 4},
}


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(DEMANDS, 2)])
def test_any_two_demands_are_met_or_refused_in_a_sentence(writer, copies, one, other, capsys):
    """任意两样：写成就都守着，写不成就一句话；不超过十秒。"""
    writer.copies = open_copies(copies, writer.tokenizer, True)
    asked, began, refusal = settings(**DEMANDS[one], **DEMANDS[other], max_tokens=None), time.process_time(), ""
    try:
        Printer(writer).write("", asked)
    except LyricsError as error:
        refusal = str(error)
    assert time.process_time() - began < LIMIT_S
    if refusal:
        assert 5 < len(refusal) < 200
        assert "\n" not in refusal
        assert "写不出来" in refusal or "去掉一样" in refusal or "对不上" in refusal, refusal
        return
    text, lines = writer.songs[0].text, sung(writer.songs[0])
    checks = {
        "acrostic": lambda: [line[0] for line in lines[:2]] == ["我", "你"],
        "line_chars": lambda: all(3 <= sung_count(line) <= 5 for line in lines),
        "tones": lambda: all(len(tones_of(line)) == 4 and tones_of(line)[3] == LEVEL for line in lines),
        "rhyme": lambda: len({rhyme_class(line) for place, line in enumerate(lines) if place % 4 != 2}) <= 1,
        "breaks": lambda: all(sung_count(line) == 4 for line in lines),
        "keywords": lambda: text.count("月亮") == text.count("故乡") == 1,
        "like": lambda: in_tune(writer, asked, writer.songs),
        "candidates": lambda: bool(lines),
        "max_copy": lambda: copied("".join(lines)) <= 2,
        "lines": lambda: len(lines) == 4,
    }
    assert checks[one](), text
    assert checks[other](), text

"""照抄索引：与逐首查找的结果一致，坏掉的、半成的索引不用。"""

import errno
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lyrics import copies
from lyrics.copies import COPY_INDEX_VERSION, CopyIndex, Span, _sorted_suffixes, _write_through
from lyrics.sound import normalise

ALPHABETS = ["啦", "风雨", "天地人a1", "山水花月𠮷𝟘字中", "".join(chr(0x4E00 + index) for index in range(200))]
NOISE = " ，。！\n\t-_（）♪"


def built(folder: Path, songs: list[str], own: int | None = None, fingerprint: str = "f") -> CopyIndex:
    labels = [f"歌 {number}" for number in range(len(songs))]
    CopyIndex.build(songs, labels, folder, fingerprint, len(songs) if own is None else own)
    return CopyIndex.load(folder, fingerprint)


def random_songs(draw: random.Random, alphabet: str) -> list[str]:
    """随机的歌：夹着标点和换行，有空的，有整首或一段照抄前面的。"""
    songs = []
    for _ in range(draw.randint(1, 12)):
        text = "".join(draw.choices(alphabet + NOISE, k=draw.choice([0, 1, 2, 5, 30, 80])))
        if songs and draw.random() < 0.3:
            other = draw.choice(songs)
            text = draw.choice([other, text + other[len(other) // 3 :], other[: len(other) // 2]])
        songs.append(text)
    return songs


def random_span(draw: random.Random, sung: list[str], alphabet: str) -> str:
    """一半是某首歌里的一段，一半随机；有时末尾加一个字，或接上下一首的开头。"""
    number = draw.randrange(len(sung))
    song = sung[number]
    start = draw.randint(0, len(song))
    span = song[start : start + draw.randint(1, 12)]
    kind = draw.random()
    if kind < 0.2:
        span += draw.choice(alphabet)
    elif kind < 0.4:
        span = song[-draw.randint(1, 4) :] + sung[(number + 1) % len(sung)][: draw.randint(1, 4)]
    elif kind < 0.6:
        span = "".join(draw.choices(alphabet, k=draw.randint(1, 8)))
    return span or draw.choice(alphabet)


def brute_longest(sung: list[str], text: str) -> Span:
    for length in range(len(text), 0, -1):
        for start in range(len(text) - length + 1):
            for number, song in enumerate(sung):
                if text[start : start + length] in song:
                    return Span(start, length, number)
    return Span(0, 0, -1)


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("seed", range(12))
def test_same_answers_as_searching_every_song(tmp_path, seed, alphabet):
    draw = random.Random(f"{seed}{alphabet}")
    songs = random_songs(draw, alphabet)
    sung = [normalise(song) for song in songs]
    own = draw.randint(0, len(songs))
    index = built(tmp_path / "index", songs, own)
    for _ in range(60):
        span = random_span(draw, sung, alphabet)
        assert index.contains(span) == any(span in song for song in sung)
        assert index.contains(span, training_only=True) == any(span in song for song in sung[:own])
    for _ in range(12):
        text = "".join(random_span(draw, sung, alphabet) for _ in range(draw.randint(0, 4)))
        assert index.longest(text) == brute_longest(sung, text)
        assert index.longest(text, training_only=True) == brute_longest(sung[:own], text)
        limit = draw.randint(0, 9)
        for training_only, among in ((False, sung), (True, sung[:own])):
            suffixes = [text[len(text) - length :] for length in range(1, min(limit, len(text)) + 1)]
            expected = sum(any(suffix in song for song in among) for suffix in suffixes)
            assert index.last_span(text, limit, training_only) == expected


@pytest.mark.parametrize("seed", range(10))
def test_suffixes_are_sorted_and_complete(seed):
    """每个字恰好一次，按到歌尾为止的文字排序。"""
    draw = random.Random(seed)
    songs = [normalise(song) for song in random_songs(draw, draw.choice(ALPHABETS))]
    text = "\0".join(["", *songs, ""])
    found = _sorted_suffixes(text.encode("utf-32-be"), lambda message: None)
    assert found.dtype == np.uint32
    assert sorted(found.tolist()) == [position for position, character in enumerate(text) if character != "\0"]
    suffixes = [text[position : text.index("\0", position)] for position in found]
    assert suffixes == sorted(suffixes)


def test_normalise_keeps_only_what_is_sung():
    assert normalise("  今夜，我 在_风里…\n等你 2 You！\0\ud800♪𠮷") == "今夜我在风里等你2You𠮷"
    assert normalise("，。\n") == ""


def test_spans_cross_lines_but_never_songs(tmp_path):
    index = built(tmp_path / "index", ["春风\n秋雨，", "月亮"])
    assert index.contains("风秋")
    assert index.contains("春风秋雨")
    assert not index.contains("雨月")
    assert index.longest("秋雨月亮") == (0, 2, 0)
    assert index.contains("月亮")  # 最后一首的末尾
    assert not index.contains("月亮春")
    assert not index.contains("亮月")


def test_bytes_align_with_characters(tmp_path):
    """U+4E4E 与 U+4E00、U+4E00 的字节错位后也能拼出别的字，不能算。"""
    index = built(tmp_path / "index", ["\u4e4e\u4e00", "\U00020000\u0400"])
    assert not index.contains("\u004e")
    assert not index.contains("\u0200")
    assert index.contains("\U00020000\u0400")
    assert index.longest("\u4e00\U00020000") == (0, 1, 0)


@pytest.mark.parametrize("songs", [[], ["", "，。\n"]])
def test_nothing_to_index(tmp_path, songs):
    index = built(tmp_path / "index", songs)
    assert not index.contains("春")
    assert not index.contains("春", training_only=True)
    assert index.longest("春风") == (0, 0, -1)
    assert index.last_span("春风", 5) == 0
    with pytest.raises(IndexError):
        index.label(len(songs))


def test_text_shorter_than_any_span(tmp_path):
    index = built(tmp_path / "index", ["春风秋雨"])
    assert index.longest("") == (0, 0, -1)
    assert index.last_span("", 5) == index.last_span("春", 0) == 0
    assert index.longest("雨") == (0, 1, 0)
    assert index.last_span("雨", 5) == 1


def test_one_word_a_thousand_times(tmp_path):
    messages = []
    CopyIndex.build(["啦" * 1000], ["啦"], tmp_path / "index", "f", 1, messages.append)
    index = CopyIndex.load(tmp_path / "index", "f")
    assert index.contains("啦" * 1000)
    assert not index.contains("啦" * 1001)
    assert index.longest("啦" * 1500) == (0, 1000, 0)
    assert index.last_span("啦" * 1500, 2000) == 1000
    assert len(messages) < 15  # 倍增，不是逐字


def test_identical_songs_and_the_first_of_them(tmp_path):
    index = built(tmp_path / "index", ["别的", "春风秋雨", "春风秋雨", "春风秋雨夜"], own=2)
    assert index.longest("春风秋雨") == (0, 4, 1)
    assert index.label(1) == "歌 1"
    assert index.longest("春风秋雨夜") == (0, 5, 3)
    assert index.longest("春风秋雨夜", training_only=True) == (0, 4, 1)
    assert not index.contains("雨夜", training_only=True)


def test_held_out_songs_only(tmp_path):
    index = built(tmp_path / "index", ["春风"], own=0)
    assert index.contains("春风")
    assert not index.contains("春风", training_only=True)
    assert index.longest("春风", training_only=True) == (0, 0, -1)


def test_labels(tmp_path):
    """称呼里的换行变成空格，坏的字变成问号；没有的序号报错。"""
    CopyIndex.build(["春", "夏", "秋"], ["李白\n《春》", "", "\ud800\u2028x"], tmp_path / "index", "f", 3)
    index = CopyIndex.load(tmp_path / "index", "f")
    assert [index.label(number) for number in range(3)] == ["李白 《春》", "", "? x"]
    for number in (-1, 3):
        with pytest.raises(IndexError):
            index.label(number)


@pytest.mark.parametrize(("labels", "own"), [([], 1), (["a"], 2), (["a"], -1)])
def test_counts_that_do_not_agree(tmp_path, labels, own):
    with pytest.raises(ValueError, match="1 首歌"):
        CopyIndex.build(["春"], labels, tmp_path / "index", "f", own)


# ---- 文件 ----


def test_absent_or_of_another_corpus_or_version(tmp_path, monkeypatch):
    folder = tmp_path / "deep" / "index"
    assert CopyIndex.load(folder, "f") is None
    assert built(folder, ["春风"]) is not None
    assert CopyIndex.load(folder, "g") is None
    monkeypatch.setattr(copies, "COPY_INDEX_VERSION", COPY_INDEX_VERSION + 1)
    assert CopyIndex.load(folder, "f") is None


@pytest.mark.parametrize("name", ["text", "suffixes.npy", "starts.npy", "labels", "meta.json"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99, None])
def test_truncated_or_missing_file(tmp_path, name, kept):
    folder = tmp_path / "index"
    built(folder, ["春风秋雨" * 20, "月亮"])
    path = folder / name
    if kept is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert CopyIndex.load(folder, "f") is None
    assert built(folder, ["春风"]).contains("春风")


@pytest.mark.parametrize("meta", ["[]", "{}", "null", "\ufffd", '"text"', json.dumps({"version": 1})])
def test_damaged_meta(tmp_path, meta):
    built(tmp_path / "index", ["春风"])
    (tmp_path / "index" / "meta.json").write_text(meta, encoding="utf-8")
    assert CopyIndex.load(tmp_path / "index", "f") is None


def test_rebuild_replaces_all(tmp_path):
    old = built(tmp_path / "index", ["春风秋雨"])
    new = built(tmp_path / "index", ["月亮"], fingerprint="g")
    assert not new.contains("春")
    assert new.contains("月亮")
    assert old.contains("风秋")  # 已经打开的照旧
    assert old.label(0) == "歌 0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("written", range(5))
def test_interrupted_build_leaves_the_old_one(tmp_path, monkeypatch, written, error):
    """写到第几个文件停下都一样：不留半成的，旧的照用。"""
    folder = tmp_path / "index"
    built(folder, ["春风"])
    write = _write_through
    names = []

    def fails(path, content):
        write(path, content)
        names.append(path.name)
        if len(names) > written:
            raise error

    monkeypatch.setattr(copies, "_write_through", fails)
    with pytest.raises(type(error)):
        built(folder, ["月亮"], fingerprint="g")
    assert len(names) == written + 1
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert CopyIndex.load(folder, "f").contains("春风")


def test_killed_while_replacing(tmp_path, monkeypatch):
    """停在旧的已删、新的没改名之间：没有索引，而不是半个。"""
    folder = tmp_path / "index"
    built(folder, ["春风"])
    monkeypatch.setattr(Path, "rename", lambda self, target: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        built(folder, ["月亮"])
    assert CopyIndex.load(folder, "f") is None
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_build(tmp_path):
    """被强行结束的构建留下的临时文件夹，不会当成索引，下次构建时清掉；旁边别的文件不动。"""
    dies = (
        "import os, pathlib, sys; from lyrics.copies import CopyIndex; pathlib.Path.rename = lambda *_: os._exit(9); "
        "CopyIndex.build(['春风'], ['a'], pathlib.Path(sys.argv[1]), 'f', 1)"
    )
    killed = subprocess.Popen(
        [sys.executable, "-X", "utf8", "-c", dies, str(tmp_path / "index")], cwd=Path(copies.__file__).parent.parent
    )
    assert killed.wait(60) == 9
    (leftover,) = tmp_path.iterdir()
    assert leftover.name == f"index.{killed.pid}.tmp"
    assert CopyIndex.load(tmp_path / "index", "f") is None
    (tmp_path / "train.bin.1.tmp").write_bytes(b"other")
    assert built(tmp_path / "index", ["月亮"]).contains("月亮")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "train.bin.1.tmp"]


def test_disk_errors_pass_through(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        built(tmp_path / "file" / "index", ["春风"])

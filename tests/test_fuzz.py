"""坏文件：成千上万个胡乱改过的、任意的文字与 JSON、几兆字的行，读出来的都是合法文字，读不了的都说得清楚。"""

import functools
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hostile import REASONS, SUFFIXES, WORDS, assert_clean_text, assert_valid, damaged, limit, read_one, well_formed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from workshop import VERSE, Workshop, lyrics_of, make_lines, make_song

from corpus.cleaning import LONGEST_NAME, RawSong, Song, clean_name, clean_song, clean_text
from corpus.files import CorpusError
from corpus.near_copies import content_key, near_copies
from tokenizer import TokenizerError

repeatable = functools.partial(settings, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def read_hostile_files(folder: Path, per_suffix: int) -> tuple[dict[str, Counter], list[Song]]:
    """每种后缀读 per_suffix 个坏文件：（各种的结果，留下的歌）。"""
    outcomes, kept = {}, []
    for suffix in SUFFIXES:
        draw = random.Random(suffix)
        path, mix = folder / f"歌{suffix}", Counter()
        for number in range(per_suffix):
            path.write_bytes(damaged(draw, well_formed(draw, suffix)))
            try:
                songs, dropped = read_one(path)
            except Exception as error:
                raise AssertionError(f"第 {number} 个 {suffix}：{path.read_bytes()[:300]!r}") from error
            kept += songs
            mix += dropped + Counter(files=1, kept=len(songs))
        outcomes[suffix] = mix
    return outcomes, kept


def test_a_thousand_hostile_files(tmp_path):
    """一千个坏文件：读出的歌是合法文字，舍弃的各有原因，不能读的是一行写明文件的中文。"""
    outcomes, _ = read_hostile_files(tmp_path, 250)
    for mix in outcomes.values():
        assert min(mix["kept"], mix["error"]) > 15, mix  # 不能都在解码那一步就拦下


@pytest.mark.slow
def test_twenty_thousand_hostile_files(tmp_path):
    """两万多个，每种原因都遇到；留下的歌都能比较。"""
    outcomes, kept = read_hostile_files(tmp_path, 5_500)
    for mix in outcomes.values():
        assert mix["kept"] > 500, mix
        assert mix["error"] > 300, mix
    total = sum(outcomes.values(), Counter())
    assert total["files"] >= 20_000
    assert all(total[reason] > 100 for reason in {*REASONS, "unread"}), total
    for start in range(0, len(kept), 1000):
        keys = [content_key(song.text) for song in kept[start : start + 1000]]
        assert all(later > earlier for later, earlier in near_copies(keys).items())


def test_hostile_folders(tmp_path):
    """坏文件凑成的文件夹从头走到尾：要么得到能还原的词元流，要么是一行中文。"""
    draw = random.Random(7)
    outcomes = Counter()
    for number in range(60):
        workshop = Workshop(tmp_path / str(number))
        workshop.write("好.json", [make_song(seed) for seed in range(draw.randint(0, 6))])
        for index in range(draw.randint(1, 6)):
            suffix = draw.choice(SUFFIXES)
            path = workshop.lyrics / f"{index}{suffix}"
            path.write_bytes(well_formed(draw, suffix))
            if "error" in read_one(path)[1] and draw.random() < 0.9:
                path.unlink()
        try:
            corpus = workshop.prepare()
        except (CorpusError, TokenizerError) as error:
            message = str(error)
        else:
            message = ""
        outcomes["error" if message else "corpus"] += 1
        assert len(message.splitlines()) <= 1
        if message:
            continue
        for text in lyrics_of(corpus, corpus.train) | lyrics_of(corpus, corpus.val):
            assert_clean_text(text)
        assert workshop.prepare().report == corpus.report
        assert not workshop.rebuilt
    assert min(outcomes["corpus"], outcomes["error"]) >= 5, outcomes


# ---- 任意的文字与 JSON ----

ANY_TEXT = st.text(st.characters()) | st.lists(st.sampled_from(WORDS) | st.text(st.characters(), max_size=2)).map(
    "".join
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=5), inside, max_size=4),
    max_leaves=8,
)
ANY_SONG = st.fixed_dictionaries(
    {}, optional={"name": ANY_JSON, "singer": ANY_JSON, "lyric": ANY_JSON | st.lists(ANY_TEXT) | st.just(VERSE)}
)


@repeatable(max_examples=1500)
@given(ANY_TEXT)
def test_any_text_is_cleaned(text):
    """任意文字洗出来都合法、无空行、行首尾与行中没有多余空格；再洗几遍也是。"""
    for _ in range(3):
        text = clean_text(text)
        assert_clean_text(text)


PLAIN = sorted({word for word in WORDS if not set(word) & set("[]()<>&【】：:x×")})


@repeatable(max_examples=1000)
@given(st.lists(st.sampled_from(PLAIN) | st.text(st.characters(categories=["Lo", "Zs", "Cc", "Cf", "Cs"]), max_size=2)))
def test_cleaning_plain_text_twice_changes_nothing(words):
    """没有标记的文字洗一遍就干净了；叠了几层的标记只去外面一层，那是有意的。"""
    once = clean_text("".join(words))
    assert clean_text(once) == once


@repeatable(max_examples=700)
@given(ANY_JSON)
def test_any_name_is_cleaned(name):
    """任意 JSON 值当作歌名：一行不超长的合法文字。"""
    cleaned = clean_name(name)
    assert_valid(cleaned)
    assert cleaned == " ".join(cleaned.split())
    assert len(cleaned) <= LONGEST_NAME


def is_table(value) -> bool:
    """按列存的表：{"name": […], "lyric": […]}，里面不止一首。"""
    return isinstance(value, dict) and isinstance(value.get("lyric"), (dict, list)) and "name" in value


def is_collection(value) -> bool:
    """一个元素里有几首：按列存的表，或 {歌名: 歌词}，也可以在里层。"""
    if not isinstance(value, (dict, list)):
        return False
    inside = list(value.values()) if isinstance(value, dict) else value
    named = isinstance(value, dict) and any(isinstance(part, str) and "\n" in part.strip() for part in inside)
    return is_table(value) or named or any(map(is_collection, inside))


@pytest.mark.slow
@repeatable(max_examples=1000)
@given(st.lists(ANY_SONG | ANY_JSON, max_size=4), st.booleans(), st.sampled_from([".json", ".jsonl"]))
def test_any_json_is_counted(tmp_path, songs, ascii_only, suffix):
    """任意 JSON 值的数组：每个元素不是一首歌，就是记了原因的一次舍弃；一首也没有的文件整个略过。"""
    path = tmp_path / f"a{suffix}"
    lines = [json.dumps(song, ensure_ascii=ascii_only) for song in songs]
    text = "\n".join(lines) if suffix == ".jsonl" else f"[{','.join(lines)}]"
    path.write_bytes(text.encode("utf-8", errors="replace"))
    kept, dropped = read_one(path)
    counted = len(kept) + sum(dropped.values())
    assert dropped == {"unread": 1} or counted == len(songs) or any(map(is_collection, songs))
    assert "error" not in dropped


@repeatable(max_examples=300)
@given(st.binary(max_size=200), st.sampled_from(SUFFIXES))
def test_any_bytes_are_read_or_refused(tmp_path, content, suffix):
    """任意字节。"""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    read_one(path)


@repeatable(max_examples=300)
@given(
    st.lists(
        st.text("今夜我在风aB1", max_size=20) | st.sampled_from(["", "今夜我在风里等", VERSE, VERSE * 2]), max_size=8
    )
)
def test_any_keys_are_compared(keys):
    """任意长短的歌都能比较：重复的一首总指向先前的一首。"""
    copies = near_copies(keys)
    assert all(kept < copy for copy, kept in copies.items())


# ---- 一行几兆字 ----

RUNS = (
    [" ", "\n", "\r", "\t", "\0", "\x85", "\u2028", "\u3000", "[", "]", "(", "（", "【", "<", ">", "&", "x"]
    + ["*", ":", "：", "，"]
    + ["1", "-", "_", "♪", "a", "词", "作词", "合", "间奏", "我", "\ud800", "\u200b", " \n", "\n ", "\n["]
    + [" \u200b", " [0:00]"]
    + ["x ", "x2 ", "(x", " (x2)", "[ ", "* ", "<b ", "<br ", "</", "&#", "&#1", "&lt;", "[00:", "[00:00]"]
    + ["[ti:", "verse "]
    + ["verse1 ", "(间奏 ", "词/", "词 ", "作词/", "op", "lyrics ", "www.", "未经", "副歌.", "男 ", "x [0:00]"]
    + ["今夜我，"]
)


@pytest.mark.parametrize("run", RUNS, ids=ascii)
def test_cleaning_a_long_run_is_linear(run):
    """任何字符连写几万遍，放在行首、行中、各种标记之后，都不会让正则表达式卡住。"""
    body = run * (30_000 // len(run))
    text = "\n".join([body, f"今夜我{body}x", f"[verse{body}我", f"<br{body}我", f"(男{body}我", f"作词{body}："])
    with limit(3):
        assert_clean_text(clean_text(text))
        clean_name(text)


@pytest.mark.parametrize("start", ["", "<br", "<", "[verse", "[", "(男", "x", "今夜我(x", "[ti", "作词", "词", "副歌"])
def test_spaces_between_parts_of_a_mark_are_linear(start):
    """标记的两部分之间有几十万个空格（夹着看不见的字符，合并不了）也不慢。"""
    gaps = " " * 200_000, " \u200b" * 200_000
    with limit(10):
        assert_clean_text(clean_text("\n".join(f"{start}{gap}我" for gap in gaps)))


@pytest.mark.slow
@pytest.mark.parametrize("run", ["今夜我", "\n", "[00:00.01]", "[", "词 ", "&lt;br&gt;"], ids=ascii)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_megabyte_lines(tmp_path, run, suffix):
    """一兆字的一行，四种文件都在几秒内读完。"""
    path = tmp_path / f"a{suffix}"
    text = run * (1_000_000 // len(run)) + VERSE
    path.write_text(json.dumps([{"lyric": text}]) if suffix == ".json" else text, encoding="utf-8")
    if suffix == ".jsonl":
        path.write_text(json.dumps({"name": text, "lyric": [text]}), encoding="utf-8")
    with limit(20):
        (song,), dropped = read_one(path)
    assert not dropped
    assert VERSE[-9:] in song.text


def test_a_song_that_is_one_long_line_trains_a_tokenizer(tmp_path):
    """只有几首几十万字不分行的歌：照样训练得出分词器，词元一个不少。"""
    workshop = Workshop(tmp_path)
    texts = {"".join(make_lines(seed, 60_000)) for seed in range(3)}
    workshop.write("a.json", [{"lyric": text} for text in texts])
    with limit(60):
        corpus = workshop.prepare()
    assert lyrics_of(corpus, corpus.train) | lyrics_of(corpus, corpus.val) == texts


def test_a_raw_song_of_any_type_has_a_reason():
    """不经文件、直接构造的任何类型也各有归宿。"""
    for lyric in (b"bytes", {1}, object(), 0, False, (), range(3)):
        assert clean_song(RawSong(lyric, lyric, lyric, "")) in REASONS

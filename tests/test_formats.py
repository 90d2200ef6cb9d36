"""文件的各种写法：JSON 的别的叫法、CSV、一个 txt 里的许多首；找哪些文件、略过哪些。"""

import json
import os
from pathlib import Path

import pytest
from hostile import limit
from workshop import VERSE, Workshop, make_lines, make_song, write_json

from corpus.cleaning import Song, clean_song
from corpus.files import CorpusError, find_files
from corpus.formats import NO_COLUMN, NO_SONGS, NotLyrics, read_file, split_text
from corpus.inspection import inspect

FIRST, SECOND, THIRD = (make_lines(seed, 6) for seed in (1, 2, 3))


def songs(path: Path) -> list[Song | str]:
    return [clean_song(raw) for raw in read_file(path)]


def texts(path: Path) -> list[str]:
    return [song.text for song in songs(path)]


# ---- JSON ----


@pytest.mark.parametrize(
    ("name", "singer", "lyric"),
    [("title", "artist", "lyrics"), ("title", "author", "paragraphs"), ("rhythmic", "author", "paragraphs")]
    + [
        ("歌名", "歌手", "歌词"),
        ("songName", "singer_name", "lyric"),
        ("Title", "Artist", "Lyrics"),
        ("song", "singers", "lrc"),
    ]
    + [("title", "作者", "content")],
)
def test_other_keys(tmp_path, name, singer, lyric):
    path = write_json(tmp_path / "a.json", [{name: "如果爱", singer: "某人", lyric: FIRST}])
    assert songs(path) == [Song("如果爱", "某人", "\n".join(FIRST))]


WRAPPED = {
    "data": lambda songs: {"code": 200, "data": songs},
    "deep": lambda songs: {"result": {"page": 1, "list": songs}},
    "albums": lambda songs: [{"album": "甲", "songs": songs[:1]}, {"album": "乙", "songs": songs[1:]}],
    "by number": lambda songs: {str(number): song for number, song in enumerate(songs)},
    "by name": lambda songs: {song["name"]: {key: song[key] for key in ("singer", "lyric")} for song in songs},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_array_inside_objects(tmp_path, wrap):
    path = write_json(tmp_path / "a.json", wrap([make_song(1), make_song(2)]))
    found = songs(path)
    assert [song.name for song in found] == ["歌名1", "歌名2"]
    assert [song.text for song in found] == ["\n".join(make_lines(seed)) for seed in (1, 2)]


def test_one_song_and_a_mapping_of_texts(tmp_path):
    assert songs(write_json(tmp_path / "a.json", make_song(1)))[0].name == "歌名1"
    found = songs(write_json(tmp_path / "b.json", {"甲": "\n".join(FIRST), "乙": "\n".join(SECOND)}))
    assert [(song.name, song.text) for song in found] == [("甲", "\n".join(FIRST)), ("乙", "\n".join(SECOND))]


def test_singer_outside_the_songs(tmp_path):
    path = write_json(tmp_path / "a.json", {"artist": "某人", "songs": [{"title": "歌", "lyrics": FIRST}]})
    assert songs(path)[0].singer == "某人"


def test_json_lines_called_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("\n".join(json.dumps(make_song(seed)) for seed in (1, 2)), encoding="utf-8")
    assert len(songs(path)) == 2


def test_lines_as_objects(tmp_path):
    lyric = [{"time": number, "text": line} for number, line in enumerate(FIRST)]
    assert texts(write_json(tmp_path / "a.json", [{"name": "a", "lyric": lyric}])) == ["\n".join(FIRST)]


def test_names_of_other_types(tmp_path):
    song = {"name": 1874, "singer": ["甲", "乙"], "lyric": FIRST}
    assert songs(write_json(tmp_path / "a.json", [song])) == [Song("1874", "甲/乙", "\n".join(FIRST))]


def test_escaped_twice(tmp_path):
    lyric = "风吹过&amp;nbsp;旧街口&amp;#39;s灯火落满江南\\n少年唱歌走过\\r\\n四季&amp;amp;花开\\u6708\\t亮"
    path = write_json(tmp_path / "a.json", [{"name": "a", "lyric": lyric}])
    assert texts(path) == ["风吹过 旧街口's灯火落满江南\n少年唱歌走过\n四季&花开月 亮"]


def test_comments_are_not_songs(tmp_path):
    """有 content 而没有歌名的，是别的数据。"""
    with pytest.raises(NotLyrics, match=NO_SONGS):
        read_file(write_json(tmp_path / "a.json", [{"user": "甲", "content": VERSE}]))


# ---- CSV ----


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".csv", ";"), (".csv", "\t"), (".tsv", "\t")])
def test_table_with_a_header(tmp_path, suffix, delimiter):
    path = tmp_path / f"a{suffix}"
    quoted = ['"{}"'.format("\n".join(lines)) for lines in (FIRST, SECOND)]
    rows = [["歌名", "歌手", "歌词"], ["甲", "人", quoted[0]], [], ["乙", "", quoted[1]]]
    path.write_text("\ufeff" + "\r\n".join(delimiter.join(row) for row in rows), encoding="utf-8")
    assert songs(path) == [Song("甲", "人", "\n".join(FIRST)), Song("乙", "", "\n".join(SECOND))]


def test_table_without_lyrics_is_left_out(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,count\n1,2\n", encoding="utf-8")
    with pytest.raises(NotLyrics, match=NO_COLUMN):
        read_file(path)


# ---- 一个 txt 里的许多首 ----


def joined(*parts: list[str] | str) -> str:
    return "\n".join(part if isinstance(part, str) else "\n".join(part) for part in parts)


COLLECTIONS = {
    "titles": joined("《甲》", FIRST, "", "《乙》", SECOND, "", "《丙》", THIRD),
    "numbered": joined("1. 《甲》 - 人", FIRST, "2. 《乙》 - 人", SECOND, "3. 《丙》 - 人", THIRD),
    "headings": joined("# 甲", FIRST, "", "# 乙", SECOND, "", "# 丙", THIRD),
    "fields": joined("歌名：甲", "歌手：人", FIRST, "歌名：乙", "歌手：人", SECOND, "歌名：丙", "歌手：人", THIRD),
    "rules": joined("甲", FIRST, "--------", "乙", SECOND, "--------", "丙", THIRD),
    "ruled titles": joined("----", "甲", "----", FIRST, "----", "乙", "----", SECOND, "----", "丙", "----", THIRD),
    "blank lines": joined("甲", "", FIRST, "", "", "", "乙", "", SECOND, "", "", "", "丙", "", THIRD),
}


@pytest.mark.parametrize("text", COLLECTIONS.values(), ids=COLLECTIONS)
def test_collections_are_split(tmp_path, text):
    path = tmp_path / "全部歌词.txt"
    path.write_text(text, encoding="utf-8")
    found = songs(path)
    assert [(song.name, song.text) for song in found] == [
        (name, "\n".join(lines)) for name, lines in zip("甲乙丙", (FIRST, SECOND, THIRD), strict=True)
    ]
    assert {song.singer for song in found} <= {"", "人"}


SINGLE = {
    "stanzas": joined(FIRST, "", SECOND, "", FIRST),
    "wide stanzas": joined(FIRST, "", "", "", SECOND, "", "", "", FIRST),
    "ruled stanzas": joined(FIRST, "----", SECOND, "----", FIRST),
    "book titles sung": joined(FIRST, "《红楼梦》", SECOND, "《水浒传》", THIRD),
    "windows": VERSE.replace("\n", "\r\n\r\n"),
    "short refrain": joined("走吧", FIRST, "", "", "", "走吧", SECOND, "", "", "", "走吧", THIRD),
}


@pytest.mark.parametrize("text", SINGLE.values(), ids=SINGLE)
def test_one_song_stays_one(text):
    assert len(split_text(text)) == 1


def test_title_on_the_first_line(tmp_path):
    path = tmp_path / "文件名.txt"
    path.write_text(joined("《如果爱》", FIRST), encoding="utf-8")
    assert songs(path) == [Song("如果爱", "", "\n".join(FIRST))]


def test_long_file_that_cannot_be_split_is_named(tmp_path):
    shop = Workshop(tmp_path)
    shop.write("a.json", [make_song(seed) for seed in range(5)])
    (shop.lyrics / "很长.txt").write_text("\n".join(make_lines(9, 300)), encoding="utf-8")
    assert shop.prepare().report["many_songs"] == [str(shop.lyrics / "很长.txt")]


# ---- 合集与重复 ----


def test_collection_beside_the_single_files_goes(tmp_path):
    """单首的都在，装着它们的合集不要，不论它排在前还是在后。"""
    for name in ("00 全部歌词.txt", "zz 全部歌词.txt"):
        shop = Workshop(tmp_path / name)
        shop.lyrics.mkdir(parents=True)
        for title, lines in (("甲", FIRST), ("乙", SECOND), ("丙", THIRD)):
            (shop.lyrics / f"{title}.txt").write_text("\n".join(lines), encoding="utf-8")
        (shop.lyrics / name).write_text(joined(FIRST, SECOND, THIRD), encoding="utf-8")
        report = shop.prepare().report
        assert (report["songs"], report["collections"], report["near_copies"]) == (3, 1, 0)


def test_a_live_version_is_not_a_collection(tmp_path):
    """长版本装着短版本，是同一首歌，不是合集。"""
    shop = Workshop(tmp_path)
    shop.lyrics.mkdir()
    (shop.lyrics / "a.txt").write_text(joined(FIRST, SECOND, THIRD), encoding="utf-8")
    (shop.lyrics / "b.txt").write_text(joined(FIRST, SECOND), encoding="utf-8")
    (shop.lyrics / "c.txt").write_text(joined(FIRST, SECOND[:5]), encoding="utf-8")
    (shop.lyrics / "d.txt").write_text("\n".join(make_lines(9)), encoding="utf-8")
    report = shop.prepare().report
    assert (report["songs"], report["collections"]) == (2, 0)


# ---- 找文件 ----


def names(folder: Path, outputs=()) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in find_files(folder, outputs).files}


def test_hidden_files_are_not_songs(tmp_path):
    for name in ("甲.txt", "._甲.txt", ".x.json", "__MACOSX/甲.txt", ".git/a.json", "a/.b/c.txt", "a/乙.lrc"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0\5\x16\7" if name.startswith(".") else VERSE.encode())
    found = find_files(tmp_path)
    assert names(tmp_path) == {"甲.txt", "a/乙.lrc"}
    assert found.ignored == {"隐藏的": 5}


def test_links_are_followed_once(tmp_path):
    """链接到别处的文件夹读进来；环、指向自己里面的链接，不读第二遍。"""
    lyrics, elsewhere = tmp_path / "lyrics", tmp_path / "elsewhere"
    for folder in (lyrics / "z", elsewhere):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(VERSE)
    try:
        os.symlink(elsewhere, lyrics / "别处")
        os.symlink(lyrics, elsewhere / "环")
        os.symlink(lyrics / "z", lyrics / "a 里面")
        os.symlink(tmp_path / "没有", lyrics / "断.txt")
    except OSError:
        pytest.skip("这里不能建链接")
    assert names(lyrics) == {"z/a.txt", "别处/a.txt"}
    assert find_files(lyrics).ignored == {"断了的链接": 1}


def test_output_folders_are_not_lyrics(tmp_path):
    """检查点、缓存、swanlog 在歌词文件夹里面，或就是它：写下的文件不当作歌词。"""
    for name in ("a.json", "checkpoints/metrics.jsonl", "checkpoints/archive-1/metrics.jsonl", "cache/report.json"):
        write_json(tmp_path / name, [make_song(1)])
    outputs = [tmp_path / "checkpoints", tmp_path / "cache"]
    assert names(tmp_path, outputs) == {"a.json"}
    write_json(tmp_path / "metrics.jsonl", [])
    write_json(tmp_path / "tokenizer.json", {})
    assert names(tmp_path, [tmp_path, tmp_path / "cache"]) == {
        "a.json",
        "checkpoints/metrics.jsonl",
        "checkpoints/archive-1/metrics.jsonl",
    }


def test_other_files_are_counted(tmp_path):
    write_json(tmp_path / "a.json", [make_song(1)])
    for name in ("说明.md", "b.docx"):
        (tmp_path / name).write_text("x")
    found = find_files(tmp_path)
    assert found.ignored == {"别的格式": 2}
    assert found.examples["别的格式"].endswith("b.docx")


def test_stray_json_is_counted_and_the_rest_read(tmp_path):
    shop = Workshop(tmp_path)
    shop.write("a.json", [make_song(seed) for seed in range(5)])
    shop.write("words/rhymes.json", {"a": ["a", "ia"]})
    (shop.lyrics / "a.krc").write_bytes(b"krc18\xff\xfe")
    (shop.lyrics / "tsconfig.json").write_text("{ // 注释\n}")
    report = shop.prepare().report
    assert report["songs"] == 5
    assert sum(report["unread"].values()) == 3
    assert report["unread"]["没有歌的 JSON"] == report["unread"]["加了密的歌词"] == 1


def test_every_bad_file_is_named(tmp_path):
    shop = Workshop(tmp_path)
    shop.write("a.json", [make_song(1)])
    for name in ("坏一.json", "坏二.json"):
        (shop.lyrics / name).write_text('[{"name": ')
    (shop.lyrics / "坏三.txt").write_bytes("今夜我".encode("utf-16"))
    with pytest.raises(CorpusError) as caught:
        shop.prepare()
    assert all(name in str(caught.value) for name in ("3 个文件", "坏一.json", "坏二.json", "坏三.txt"))


# ---- --inspect ----


def test_inspection_shows_what_is_trained(tmp_path):
    """写出来的正是要训练的；去掉的行、没有用的歌、略过的文件各在其处，有原因。"""
    shop = Workshop(tmp_path)
    own = [{**make_song(seed), "lyric": ["作词：某人", *make_lines(seed)]} for seed in range(8)]
    shop.write("a.json", [*own, make_song(3), {"name": "空", "lyric": []}])
    shop.write("b.json", {"a": 1})
    out = tmp_path / "看"
    inspect(shop.lyrics, out, 0.2, [], lambda text: None, lambda text: None)
    shown = (out / "songs.txt").read_text(encoding="utf-8")
    corpus = shop.prepare()
    assert shown.count("━━") == corpus.report["songs"] == 8
    assert shown.count("· 验证 ·") == corpus.report["val_songs"]
    assert all("\n".join(make_lines(seed)) in shown for seed in range(8))
    assert shown.count("✗ 制作信息：作词：某人") == 8
    dropped = (out / "dropped.txt").read_text(encoding="utf-8")
    assert "第 4 首 相同" in dropped
    assert "歌词为空" in dropped
    assert "没有歌的 JSON" in (out / "files.txt").read_text(encoding="utf-8")
    inspect(shop.lyrics, out, 0.2, [], lambda text: None, lambda text: None)  # 再写一遍


def test_inspection_never_writes_over_other_things(tmp_path):
    shop = Workshop(tmp_path)
    shop.write("a.json", [make_song(seed) for seed in range(3)])
    (tmp_path / "别的").mkdir()
    (tmp_path / "别的" / "a.doc").write_text("x")
    for out in (shop.lyrics, tmp_path / "别的"):
        with pytest.raises(CorpusError, match="--inspect"):
            inspect(shop.lyrics, out, 0.2, [], lambda text: None, lambda text: None)


# ---- 别人试出来的 ----

A = "春风吹过旧城墙\n我在桥头等你归\n灯火映着江水凉\n一壶浊酒敬斜阳"
B = "山河万里雪茫茫\n孤雁南飞不成行\n谁家少年骑白马\n踏碎一地月如霜"


def read(tmp_path: Path, name: str, content: str | bytes) -> list[tuple[str, str, str]]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [tuple(song) if isinstance(song, Song) else (song, "", "") for song in songs(path)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"《山海经》里的兽\n{A}", [("x", "", f"《山海经》里的兽\n{A}")]),
        (f"《山河》（小山）\n{A}", [("山河", "小山", A)]),
        (f"## Verse 1\n{A}\n## Chorus\n{B}", [("x", "", f"{A}\n\n{B}")]),
        (f"# 主歌\n{A}\n# 副歌\n{B}", [("x", "", f"{A}\n\n{B}")]),
        (f"# 专辑\n\n## 春风\n{A}\n\n## 山河\n{B}", [("春风", "", A), ("山河", "", B)]),
        (f"1. 春风\n{A}\n\n2. 山河\n{B}", [("春风", "", A), ("山河", "", B)]),
        (f"【春风】\n{A}\n\n【山河】\n{B}", [("春风", "", A), ("山河", "", B)]),
        (f"====春风====\n{A}\n====山河====\n{B}", [("春风", "", A), ("山河", "", B)]),
        (f"歌名：春风 歌手：阿木\n{A}\n\n歌名：山河 歌手：小山\n{B}", [("春风", "阿木", A), ("山河", "小山", B)]),
        (
            f"《春风》\n{A}\n\n《静》\n纯音乐\n\n《山河》\n{B}",
            [("春风", "", A), ("清洗后为空", "", ""), ("山河", "", B)],
        ),
        (f"[ti:春风]\n[ar:阿木]\n{A}\n\n[ti:山河]\n{B}", [("春风", "阿木", A), ("山河", "", B)]),
    ],
)
def test_texts_of_one_and_of_many(tmp_path, text, wanted):
    assert read(tmp_path, "x.txt", text) == wanted


def test_two_songs_in_one_lrc_do_not_mix(tmp_path):
    one, two = ("\n".join(f"[00:1{n}.00]{line}" for n, line in enumerate(text.split("\n"))) for text in (A, B))
    assert read(tmp_path, "x.lrc", f"[ti:春风]\n{one}\n\n[ti:山河]\n{two}") == [("春风", "", A), ("山河", "", B)]


def test_answer_of_a_lyrics_site(tmp_path):
    lyric = "\n".join(f"[00:1{number}.00]{line}" for number, line in enumerate(A.split("\n")))
    assert read(tmp_path, "春风.lrc", json.dumps({"code": 200, "lrc": {"lyric": lyric}})) == [("春风", "", A)]


TABLES = {
    "open quote": ('name\tsinger\tlyric\n春风\t木\t"春风吹过旧城墙我在桥头\n夜\t山\t山河万里雪茫茫孤雁南飞\n', 2),
    "commas in the last column": ("name,singer,lyric\n春风,木,春风吹过旧城墙,我在桥头等你归\n", 1),
    "sep=": ("sep=;\r\n歌名;歌手;歌词\r\n春风;木;春风吹过旧城墙我在桥头\r\n", 1),
    "title row": ("我的歌,,\n歌名,歌手,歌词\n春风,木,春风吹过旧城墙我在桥头\n", 1),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_as_people_have_them(tmp_path, name):
    content, count = TABLES[name]
    found = read(tmp_path, "x.tsv" if "\t" in content else "x.csv", content)
    assert len(found) == count
    assert found[0][0] == "春风"
    assert "我在桥头" in found[0][2]


def test_unpaired_quote_is_named(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('name,lyric\n春风,"春风吹过旧城墙\n夜,山河万里\n灯,甲,乙\n', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"x\.csv：不是合法的 CSV.*引号"):
        read_file(path)


FIRST_SONG, SECOND_SONG = {"name": "春", "lyric": A}, {"name": "夜", "singer": "山", "lyric": B}
VERSES = [{"type": "verse", "lines": A.split("\n")}]
STAMPED = [[1.5, line] for line in B.split("\n")]
LAYOUTS = {
    "columns": {"name": ["春", "夜"], "singer": ["木", "山"], "lyric": [A, B]},
    "pandas": {"name": {"0": "春", "1": "夜"}, "singer": {"0": "木", "1": "山"}, "lyric": {"0": A, "1": B}},
    "null name": [
        {"name": None, "title": "春", "singer": "木", "lyric": A},
        {**SECOND_SONG, "name": "", "title": "夜"},
    ],
    "lrclib": [
        {"trackName": "春", "artistName": "木", "plainLyrics": A},
        {"trackName": "夜", "artistName": "山", "plainLyrics": B},
    ],
    "albums": [
        {"singer": "木", "albums": [{"name": "专辑", "songs": [FIRST_SONG]}]},
        {"artist": "山", "songs": [SECOND_SONG]},
    ],
    "sections": [{**FIRST_SONG, "singer": "木", "lyric": VERSES}, {**SECOND_SONG, "lyric": STAMPED}],
    "nulls": [
        {**FIRST_SONG, "singer": "木", "lyric": [None, *A.split("\n")]},
        {"name": "夜", "singer": "山", "歌词内容": B},
    ],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_json(tmp_path, name):
    wanted = [("春", "木", A), ("夜", "山", B)]
    assert read(tmp_path, "x.json", json.dumps(LAYOUTS[name])) == wanted
    assert read(tmp_path, "x.jsonl", json.dumps(LAYOUTS[name])) == wanted


def test_one_song_without_a_name_is_named_after_the_file(tmp_path):
    assert read(tmp_path, "春风.json", json.dumps({"lyric": A})) == [("春风", "", A)]


def test_python_literals_are_an_error(tmp_path):
    with pytest.raises(CorpusError, match="不是合法的 JSON"):
        read(tmp_path, "x.json", "[{'name':'春','lyric':'春风吹过旧城墙'}]")


def test_inspection_stays_out_of_the_lyrics_folder(tmp_path):
    shop = Workshop(tmp_path)
    shop.write("a.json", [make_song(seed) for seed in range(3)])
    with pytest.raises(CorpusError, match="不能在歌词文件夹里面"):
        inspect(shop.lyrics, shop.lyrics / "看", 0.2, [], lambda text: None, lambda text: None)


HEAVY = ["<!-- a -->" * 30, " " * 40_000, "#" + " " * 40_000, "\\" * 40_000, "[ti:" * 40_000, "春[a:" * 20_000]
HEAVY += [
    'LyricContent="' * 8_000,
    "".join(f"春风{n}吹\n" + "\n" * (3 + n) for n in range(600)),
    "《" * 20_000,
    "【" * 20_000,
]


@pytest.mark.parametrize("text", HEAVY, ids=range(len(HEAVY)))
@pytest.mark.parametrize("name", ["x.txt", "x.lrc", "x.csv"])
def test_heavy_files_are_quick(tmp_path, text, name):
    with limit(4):
        try:
            read(tmp_path, name, text + "\n春风吹过旧城墙\n春风吹过旧城墙")
        except (CorpusError, NotLyrics):
            assert name == "x.csv"

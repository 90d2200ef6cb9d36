"""歌词文件：找到、认出编码、读出歌；不能用的说清楚；自带样例。"""

import json
import shutil
from pathlib import Path

import pytest
from workshop import VERSE, Workshop, lyrics_of, make_lines, make_song, read, write_json

from corpus.cleaning import Song, clean_song
from corpus.files import CorpusError, decode_bytes, find_files, is_bundled_sample
from corpus.formats import NotLyrics

SAMPLE = Path(__file__).resolve().parent.parent / "ChineseLyrics" / "sample.json"


# ---- 读取：格式 ----


def test_json_with_lines_and_with_text(tmp_path):
    """json 数组；lyric 是行的列表或一段文字。"""
    songs = [make_song(1), {"name": "二", "singer": "人", "lyric": VERSE}]
    first, second = map(clean_song, read(write_json(tmp_path / "a.json", songs)))
    assert first == Song("歌名1", "歌手1", "\n".join(make_lines(1)))
    assert second == Song("二", "人", VERSE)


def test_jsonl(tmp_path):
    """jsonl 每行一首，空行略过，位置写明行号。"""
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(make_song(n)) for n in (1, 2)).replace("\n", "\n\n") + "\n")
    first, second = read(path)
    assert (first.name, second.name) == ("歌名1", "歌名2")
    assert second.where == f"{path} 第 3 行"


def test_txt(tmp_path):
    """txt 一个文件一首，文件名是歌名。"""
    path = tmp_path / "如果爱.txt"
    path.write_bytes(VERSE.replace("\n", "\r\n\r\n").encode())
    assert [clean_song(raw) for raw in read(path)] == [Song("如果爱", "", VERSE)]


def test_lrc(tmp_path):
    """lrc：ti、ar 是歌名与歌手；一行多个时间按时间排开；别的标签与逐字时间去掉。"""
    path = tmp_path / "file.lrc"
    path.write_text(
        "[ti:如果爱]\n[ar:某人]\n[al:专辑名]\n[by:谁]\n[offset:500]\n[00:00.00]作词：某某\n"
        "[00:05.10][00:25.10]这是反复唱的副歌\n[00:01.00]第一行从这里开始\n"
        "[00:15.00]<00:15.00>逐字<00:15.50>时间也要去掉\n[00:12]没有毫秒的时间\n[00:30:50]冒号隔开的毫秒\n",
        encoding="utf-8",
    )
    lines = "第一行从这里开始 这是反复唱的副歌 没有毫秒的时间 逐字时间也要去掉 这是反复唱的副歌 冒号隔开的毫秒"
    assert [clean_song(raw) for raw in read(path)] == [Song("如果爱", "某人", lines.replace(" ", "\n"))]


def test_lrc_without_tags(tmp_path):
    """没有 ti 时用文件名。"""
    path = tmp_path / "那一年.LRC"
    path.write_text("[00:01.00]今夜我在风里等你\n[00:02.00]山高水远路灯下", encoding="utf-8")
    assert clean_song(read(path)[0]) == Song("那一年", "", "今夜我在风里等你\n山高水远路灯下")


def test_files_are_found_in_order(tmp_path):
    """子文件夹也找，大小写后缀都认，别的文件不管，次序固定。"""
    for name in ("b/c.json", "a.JSONL", "z.txt", "b/a.lrc", "README.md", "c.docx"):
        write_json(tmp_path / name, [])
    found = [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path).files]
    assert found == sorted(found)
    assert set(found) == {"a.JSONL", "b/a.lrc", "b/c.json", "z.txt"}


# ---- 读取：编码 ----


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "gbk"])
@pytest.mark.parametrize("suffix", [".json", ".txt"])
def test_readable_encodings(tmp_path, encoding, suffix):
    """UTF-8 带不带 BOM、GB18030 都读得一字不差。"""
    path = tmp_path / f"a{suffix}"
    content = json.dumps([{"name": "a", "lyric": VERSE}], ensure_ascii=False) if suffix == ".json" else VERSE
    path.write_bytes(content.encode(encoding))
    (song,) = map(clean_song, read(path))
    assert song.text == VERSE


def test_traditional_gb18030():
    """GB18030 的繁体字、罕见字与 emoji 也认得。"""
    text = "風裡雨裡，我在這裡等你；燈火闌珊處，誰還記得誰。\n𠮷野家的夜晚 🎵\n" * 2
    assert decode_bytes(text.encode("gb18030"), Path("a")) == text


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_damaged_utf8_names_the_position(bom):
    """UTF-8 里坏了一个字节：说出它在文件里的位置，而不是当成 GB18030 读出乱码。"""
    content = bytearray(bom + VERSE.encode() * 3)
    place = content.index("月".encode())
    content[place] = 0xFF
    with pytest.raises(CorpusError, match=f"songs.txt：第 {place} 字节"):
        decode_bytes(bytes(content), Path("songs.txt"))


def test_truncated_utf8():
    """文件在半个字处断了。"""
    content = VERSE.encode()[:-1]
    with pytest.raises(CorpusError, match="字节"):
        decode_bytes(content, Path("a.txt"))


TRADITIONAL = {
    "a": "今夜我在風裡等你\n山高水遠路燈下\n雨落長街故鄉的月亮照著河岸\n少年唱歌走過四季花開",
    "b": "如果愛還在心中\n請你不要再說話\n讓我靜靜地看著你\n直到天亮以後才離開",
    "c": "我們的故事還沒有結束\n你卻已經轉身離去\n留下我一個人面對孤獨\n眼淚像雨一樣落下",
}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(text, "big5") for text in TRADITIONAL.values()]
    + [(VERSE, code) for code in ("utf-16", "utf-16-le", "utf-16-be", "utf-32")],
    ids=lambda value: value if value.isascii() else value[:4],
)
def test_other_encodings_are_an_error(tmp_path, text, encoding):
    """别的编码不能悄悄读成乱码：说出文件、位置，和转换成什么。"""
    path = tmp_path / "songs.txt"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(CorpusError, match=r"songs\.txt：第 \d+ 字节.*UTF-8"):
        read(path)


# ---- 读取：JSON 有误 ----


def test_malformed_json_names_line_and_column(tmp_path):
    """JSON 写错时说出文件、行与列。"""
    path = tmp_path / "a.json"
    path.write_text('[\n  {"name": "a",\n   "lyric" ["x"]}\n]', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"a\.json：第 3 行第 12 列") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_malformed_jsonl_names_line_and_column(tmp_path):
    """jsonl 的行号是文件里的行号。"""
    path = tmp_path / "a.jsonl"
    path.write_text('{"name": "a", "lyric": []}\n\n{"name": oops}\n', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"a\.jsonl：第 3 行第 10 列"):
        read(path)


@pytest.mark.parametrize(
    "content", ["歌", 5, None, [], {}, {"a": ["a", "ia"]}, [{"name": "作者", "desc": "生平"}], [[1, 2]]]
)
def test_json_without_songs_is_left_out(tmp_path, content):
    """没有歌的 JSON 略过，不是错误。"""
    with pytest.raises(NotLyrics, match="没有歌的 JSON"):
        read(write_json(tmp_path / "a.json", content))


# ---- 不能用的语料 ----


def refused(workshop: Workshop) -> str:
    with pytest.raises(CorpusError) as caught:
        workshop.prepare()
    assert len(str(caught.value).splitlines()) <= 2
    assert str(workshop.lyrics) in str(caught.value)
    return str(caught.value)


def test_missing_folder(workshop):
    """文件夹不存在，或把文件当成了文件夹。"""
    assert "不存在" in refused(workshop)
    workshop.lyrics.write_text("今夜我")
    assert "不存在" in refused(workshop)


def test_empty_folder(workshop):
    """文件夹里没有歌词文件，说出认哪些。"""
    (workshop.lyrics / "sub.json").mkdir(parents=True)
    (workshop.lyrics / "README.md").write_text("说明")
    text = refused(workshop)
    assert "是空的" in text
    assert "*.jsonl" in text


@pytest.mark.parametrize(
    ("songs", "reason"),
    [
        ([], "没有歌的 JSON 1 个文件"),
        ([{"name": "a"}], "没有歌的 JSON 1 个文件"),
        ([{"lyric": None}], "缺少 lyric 1 首"),
        ([{"lyric": "hello"}, {"lyric": "hi"}, {"lyric": []}], "汉字不足 10 个 2 首"),
    ],
)
def test_no_song_left(workshop, songs, reason):
    """清洗后一首不剩，说出为什么。"""
    workshop.write("a.json", songs)
    text = refused(workshop)
    assert "没有剩下一首歌" in text
    assert reason in text


def test_one_song_is_not_enough(workshop):
    """只剩一首，没法一边训练一边验证。"""
    workshop.write("a.json", [make_song(1), make_song(1)])
    assert "只剩 1 首" in refused(workshop)


@pytest.mark.parametrize("content", [b'[{"name": ', VERSE.encode("utf-16"), b""])
def test_bad_file_is_named(workshop, content):
    """坏文件的错误从 prepare 原样传出，写明文件，不留下缓存。"""
    workshop.write("good.json", [make_song(seed) for seed in range(5)])
    (workshop.lyrics / "坏.json").write_bytes(content)
    assert "坏.json" in refused(workshop)
    assert not workshop.cache.exists()


# ---- 自带样例 ----


def test_sample_is_used_alone_and_said(workshop):
    """没有别的歌词时用自带样例，并且说出来。"""
    workshop.lyrics.mkdir()
    shutil.copy(SAMPLE, workshop.lyrics / "sample.json")
    assert workshop.prepare(vocab_size=4000).report["songs"] > 200
    assert any("sample.json" in message for message in workshop.said)


def test_sample_is_ignored_beside_own_songs(workshop):
    """有了自己的歌，样例就不混进来。"""
    workshop.lyrics.mkdir()
    shutil.copy(SAMPLE, workshop.lyrics / "sample.json")
    workshop.write("mine.jsonl", []).write_text("\n".join(json.dumps(make_song(seed)) for seed in range(10, 13)))
    corpus = workshop.prepare()
    lyrics = lyrics_of(corpus, corpus.train) | lyrics_of(corpus, corpus.val)
    assert lyrics == {"\n".join(make_lines(seed)) for seed in range(10, 13)}
    assert not any("sample.json" in message for message in workshop.said)


def test_own_sample_json_is_read(workshop):
    """自己的 sample.json（内容不是自带样例）照常读，也与别的文件一起读。"""
    workshop.write("sample.json", [make_song(seed) for seed in range(5)])
    assert workshop.prepare().report["songs"] == 5
    assert not any("自带样例" in message for message in workshop.said)
    workshop.write("mine.json", [make_song(seed) for seed in range(5, 9)])
    assert workshop.prepare().report["songs"] == 9


def test_bundled_sample_is_known_by_content(tmp_path):
    """仓库里的样例认得出，Windows 的换行也一样；改过一个字就是自己的。"""
    assert is_bundled_sample(SAMPLE)
    path = tmp_path / "sample.json"
    path.write_bytes(SAMPLE.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert is_bundled_sample(path)
    path.write_bytes(SAMPLE.read_bytes() + b" ")
    assert not is_bundled_sample(path)

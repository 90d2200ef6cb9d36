"""语料文件夹里的怪东西、写满的磁盘：略过，或一行错误。"""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hostile import assert_valid, limit
from workshop import VERSE, Workshop, lyrics_of, make_lines, make_song

from corpus import tokens
from corpus.files import CorpusError, find_files

# ---- 文件夹里的怪东西 ----


@pytest.fixture
def workshop(tmp_path):
    shop = Workshop(tmp_path)
    shop.write("好.json", [make_song(seed) for seed in range(10)])
    return shop


def test_json_nested_a_hundred_thousand_deep(workshop):
    """十万层的 JSON 是一行错误；看不出有歌的，略过。"""
    (workshop.lyrics / "深.json").write_text("[" * 100_000 + '{"lyric": "a"}' + "]" * 100_000)
    with pytest.raises(CorpusError, match=r"深\.json：JSON 嵌套过深"):
        workshop.prepare()
    (workshop.lyrics / "深.json").unlink()
    (workshop.lyrics / "深.jsonl").write_text("{}\n" + '{"lyric":' * 100_000)
    with pytest.raises(CorpusError, match=r"深\.jsonl：第 2 行：JSON 嵌套过深"):
        workshop.prepare()


@pytest.mark.slow
def test_a_hundred_thousand_empty_songs(workshop):
    """十万首空歌：一首不漏地数出来，很快。"""
    empty = [{"lyric": []}, {}, {"lyric": "作词：某人"}, {"lyric": "\u200b"}]
    workshop.write("空.json", empty * 25_000)
    with limit(30):
        report = workshop.prepare().report
    assert report["songs_read"] == 100_010
    assert report["dropped"] == {"歌词为空": 25_000, "缺少 lyric": 25_000, "清洗后为空": 50_000}
    assert report["songs"] == 10


def test_mixed_encodings_in_one_folder(tmp_path):
    """一个文件夹里 UTF-8、带 BOM、GB18030 各一个，NUL 夹在字间：都读得一字不差。"""
    workshop = Workshop(tmp_path)
    texts = ["\n".join(make_lines(seed)) for seed in range(4)]
    workshop.lyrics.mkdir()
    for text, encoding in zip(texts, ["utf-8", "utf-8-sig", "gb18030", "utf-8"], strict=True):
        (workshop.lyrics / f"{encoding}{ord(text[0])}.txt").write_bytes(text.encode(encoding))
    (workshop.lyrics / "nul.txt").write_bytes("\0".join(texts[3]).encode())
    corpus = workshop.prepare()
    assert lyrics_of(corpus, corpus.train) | lyrics_of(corpus, corpus.val) == set(texts)
    assert corpus.report["identical"] == 1


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \n", b"\0\0"], ids=ascii)
@pytest.mark.parametrize("suffix", [".jsonl", ".txt", ".lrc"])
def test_empty_files(workshop, content, suffix):
    """空文件、只有 BOM 的文件：不算歌，不碍事（jsonl 里的 NUL 是写错的一行）。"""
    (workshop.lyrics / f"空{suffix}").write_bytes(content)
    if (suffix, content) == (".jsonl", b"\0\0"):
        with pytest.raises(CorpusError, match="第 1 行第 1 列"):
            workshop.prepare()
        return
    report = workshop.prepare().report
    assert report["songs"] == 10
    assert report["dropped_examples"].keys() <= {"歌词为空", "清洗后为空"}
    assert report["songs_read"] == 10 + (suffix != ".jsonl")


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\0"], ids=ascii)
def test_empty_json_is_an_error(workshop, content):
    """空的 json 不是合法的 JSON：说出文件与位置。"""
    (workshop.lyrics / "空.json").write_bytes(content)
    with pytest.raises(CorpusError, match=r"空\.json：第 1 行第 1 列"):
        workshop.prepare()


def test_things_that_are_not_files(workshop):
    """叫 x.json 的文件夹、管道、指向自己或上级的链接、断了的链接：都略过，不会卡住。"""
    (workshop.lyrics / "x.json").mkdir()
    os.symlink(workshop.lyrics, workshop.lyrics / "上级")
    os.symlink("圈.json", workshop.lyrics / "圈.json")
    os.symlink("没有.txt", workshop.lyrics / "断.txt")
    if hasattr(os, "mkfifo"):
        os.mkfifo(workshop.lyrics / "a.txt")
    with limit(20):
        assert [path.name for path in find_files(workshop.lyrics).files] == ["好.json"]
        assert workshop.prepare().report["songs_read"] == 10


@pytest.mark.parametrize("name", [b"\xff\xfe\xce.txt", "换\n行\x1b[2J\u202e.txt".encode()], ids=ascii)
@pytest.mark.parametrize("content", [VERSE.encode(), b"hello", b"\xff\xff\xff"], ids=["song", "dropped", "error"])
def test_strange_file_names(workshop, name, content):
    """不成字的、带换行与控制字符的文件名：读得了，消息与报告仍是一行能显示的文字。"""
    try:
        Path(os.path.join(os.fsencode(workshop.lyrics), name).decode("utf-8", "surrogateescape")).write_bytes(content)
    except (OSError, UnicodeError):
        pytest.skip("这个文件系统不收这样的文件名")
    try:
        report = workshop.prepare(progress=assert_valid).report
    except CorpusError as error:
        assert content == b"\xff\xff\xff"
        shown = [str(error)]
    else:
        shown = list(report["dropped_examples"].values())
        assert report["songs"] == 10 + (content == VERSE.encode())
    for message in shown:
        assert_valid(message)
        assert "\n" not in message


def test_unreadable_files_and_folders(workshop, monkeypatch):
    """没有权限、磁盘出错、读到一半被删的文件：说出是哪一个、为什么。"""

    def broken(number):
        def call(*_, **__):
            raise OSError(number, os.strerror(number))

        return call

    for method, number in [("read_bytes", errno.EACCES), ("is_file", errno.EACCES), ("iterdir", errno.EIO)]:
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, broken(number))
            with pytest.raises(CorpusError, match=f"读不了 .*lyrics.*：{os.strerror(number)}"):
                workshop.prepare()
    with monkeypatch.context() as patch:
        patch.setattr(
            tokens, "fingerprint_files", lambda *_: workshop.lyrics.rename(workshop.lyrics.with_name("b")).name
        )
        with pytest.raises(CorpusError, match="读不了 .*lyrics"):
            workshop.prepare()


# ---- 写满的磁盘 ----

WRITES = ("bpe.model", "tokenizer.json", "train.bin", "val.bin", "report.json")


def contents(workshop: Workshop) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*workshop.cache.iterdir(), workshop.model]}


class FullDisk:
    """写到一半就没有空间的文件。"""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content: bytes) -> None:
        self.file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("moment", ["open", "write", "replace"])
def test_a_full_disk_is_one_line(workshop, monkeypatch, name, moment):
    """哪个文件写不了都是一行中文，写明文件与原因；不留临时文件，还没轮到的旧文件不动；有了空间就接着来。"""
    workshop.prepare()
    workshop.write("新.json", [make_song(seed) for seed in range(10, 20)])
    before = contents(workshop)
    replace = os.replace

    def failing_open(path, *mode):
        if mode == ("wb",) and path.name.startswith(name):
            if moment == "write":
                return FullDisk(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open(path, *mode)

    def failing_replace(source, target):
        if target.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        if moment == "replace":
            patch.setattr(os, "replace", failing_replace)
        else:
            patch.setattr(tokens, "open", failing_open, raising=False)
        with pytest.raises(CorpusError, match=f"^写不了 .*{name}：{os.strerror(errno.ENOSPC)}$") as caught:
            workshop.prepare()
    assert len(str(caught.value).splitlines()) == 1
    after = contents(workshop)
    assert after.keys() == before.keys()
    pending = WRITES[WRITES.index(name) :]
    assert {name: after[name] for name in pending} == {name: before[name] for name in pending}
    assert workshop.prepare().report["songs"] == 20


def test_cache_folder_that_cannot_be_made(workshop):
    """缓存文件夹的位置上是个文件，或分词模型的位置上是个文件夹。"""
    workshop.cache.write_text("")
    with pytest.raises(CorpusError, match=r"^写不了 .*cache.*tokenizer\.json：\w+"):
        workshop.prepare()
    workshop.cache.unlink()
    workshop.model.unlink()
    workshop.model.mkdir()
    with pytest.raises(CorpusError, match=r"^写不了 .*bpe\.model：\w+"):
        workshop.prepare()
    assert list(workshop.model.parent.glob("*.tmp")) == []


def test_a_cache_that_cannot_be_read_back(workshop, monkeypatch):
    """刚写好的缓存读不回来：用手里的词元，与读缓存的一样。"""
    expected = workshop.prepare()
    monkeypatch.setattr(tokens, "read_stream", lambda *_: None)
    corpus = workshop.prepare()
    assert np.array_equal(corpus.train, expected.train)
    assert np.array_equal(corpus.val, expected.val)
    assert (corpus.report, corpus.fingerprint) == (expected.report, expected.fingerprint)

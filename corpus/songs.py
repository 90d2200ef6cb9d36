"""歌词文件夹 → 清洗、去重、划分好的歌。

1. 读取：各种写法的文件（`files.py`、`formats.py`），播放器的歌词（`karaoke.py`）。
2. 清洗：制作信息、声明、段落标记、HTML 残留和控制字符（`cleaning.py`、`credits.py`），一行一句。
3. 去重：内容相同或大半相同的歌只留先读到的一首，装着别的歌的合集不要（`near_copies.py`）。
4. 划分：按歌词内容的哈希分到训练集或验证集，所以加歌不会让旧歌换边。
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpus.cleaning import DroppedLine, RawSong, Song, clean_song
from corpus.files import CorpusError, file_errors, shown
from corpus.formats import NotLyrics, read_file
from corpus.near_copies import content_key, find_copies
from corpus.song_books import holds_many_songs
from corpus.weights import folder_of

MOST_NAMED = 20  # 一条错误里最多列这么多个文件

Say = Callable[[str], None]


@dataclass
class ReadSong:
    """一首歌的下落，供查看。

    Attributes:
        song: 清洗好的歌；不能用的是 None。
        reason: 没有用它的原因；用了的是空的。
    """

    where: str
    song: Song | None
    lines: list[DroppedLine] = field(default_factory=list)
    reason: str = ""


def read_songs(
    files: Sequence[Path], report: dict[str, Any], progress: Say, seen: list[ReadSong] | None = None
) -> tuple[list[Song], list[int], list[Path]]:
    """读取并清洗全部文件；report 记下首数、略过的文件与舍弃的原因。

    Args:
        seen: 给出时，每一首的下落（含去掉的行）记在这里。

    Returns:
        歌，独占一个文件的歌的序号，每首歌所在的文件。

    Raises:
        CorpusError: 有的文件有误；列出全部这样的文件。
    """
    reading = _Reading(progress, seen)
    bad: list[str] = []
    for path in files:
        try:
            for raw in read_file(path):
                reading.take(raw, path)
        except NotLyrics as reason:
            reading.unread.add(str(reason), shown(path))
        except CorpusError as error:
            bad.append(str(error))
    if bad:
        raise CorpusError(_all_of(bad))
    report |= reading.report() | {"files": len(files)}
    return reading.songs, reading.whole_files, reading.paths


class _Tally:
    """各种原因的个数，各留一个例子。"""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, reason: str, example: str) -> None:
        self.counts[reason] += 1
        self.examples.setdefault(reason, example)


class _Reading:
    """读到哪里了：歌，和没有用的、去掉的各有多少。"""

    def __init__(self, progress: Say, seen: list[ReadSong] | None) -> None:
        self.progress, self.seen = progress, seen
        self.songs: list[Song] = []
        self.whole_files: list[int] = []
        self.paths: list[Path] = []
        self.dropped, self.unread = _Tally(), _Tally()
        self.dropped_lines: Counter[str] = Counter()
        self.many_songs: list[str] = []
        self.read = 0

    def take(self, raw: RawSong, path: Path) -> None:
        self.read += 1
        lines: list[DroppedLine] = []
        result = clean_song(raw, lines)
        self.dropped_lines.update(line.reason for line in lines)
        song, reason = (result, "") if isinstance(result, Song) else (None, result)
        if song is None:
            self.dropped.add(reason, raw.where)
        else:
            if raw.whole_file:
                self.whole_files.append(len(self.songs))
                if holds_many_songs(song.text):
                    self.many_songs.append(raw.where)
            self.songs.append(song)
            self.paths.append(path)
        if self.seen is not None:
            self.seen.append(ReadSong(raw.where, song, lines, reason))
        if self.read % 2000 == 0:
            self.progress(f"读取并清洗 {self.read:,} 首 · {shown(path.name)}")

    def report(self) -> dict[str, Any]:
        return {
            "songs_read": self.read,
            "dropped": dict(self.dropped.counts),
            "dropped_examples": self.dropped.examples,
            "dropped_lines": dict(self.dropped_lines),
            "unread": dict(self.unread.counts),
            "unread_examples": self.unread.examples,
            "many_songs": self.many_songs,
        }


def _all_of(bad: list[str]) -> str:
    if len(bad) == 1:
        return bad[0]
    listed = bad[:MOST_NAMED] + ([f"…… 还有 {len(bad) - MOST_NAMED} 个"] if len(bad) > MOST_NAMED else [])
    return f"{len(bad)} 个文件有误：\n" + "\n".join(f"  {message}" for message in listed)


def distinct_songs(
    folder: Path,
    files: Sequence[Path],
    report: dict[str, Any],
    say: Say,
    progress: Say,
    seen: list[ReadSong] | None = None,
) -> tuple[list[Song], list[str], list[str]]:
    """清洗、去重之后的歌、它们的 `content_key` 与所在的子文件夹；report 记下各步的数目。

    Raises:
        CorpusError: 文件有误，或剩下的歌不到两首。
    """
    with file_errors("读不了", folder):
        size = sum(path.stat().st_size for path in files) / 1e6
    say(f"读取并清洗 {len(files)} 个文件（{size:.1f} MB）…")
    songs, whole_files, paths = read_songs(files, report, progress, seen)
    if not songs:
        reasons = [f"{reason} {count} 首" for reason, count in report["dropped"].items()]
        reasons += [f"{reason} {count} 个文件" for reason, count in report["unread"].items()]
        raise CorpusError(f"{shown(folder)} 清洗后没有剩下一首歌：{'、'.join(reasons) or '文件里没有歌'}")
    say(f"在 {len(songs):,} 首里找重复…")
    keys = [content_key(song.text) for song in songs]
    copies, collections = find_copies(keys, whole_files)
    identical = sum(keys[later] == keys[earlier] for later, earlier in copies.items())
    report |= {"identical": identical, "near_copies": len(copies) - identical, "collections": len(collections)}
    if seen is not None:
        used = [entry for entry in seen if entry.song is not None]
        for later, earlier in copies.items():
            alike = "相同" if keys[later] == keys[earlier] else "大半相同"
            used[later].reason = f"与 {used[earlier].where} {alike}"
        for whole, inside in collections.items():
            used[whole].reason = f"合集：里面的歌（如 {used[inside[0]].where}）另有单首"
    kept = [index for index in range(len(songs)) if index not in copies and index not in collections]
    songs, keys = [songs[index] for index in kept], [keys[index] for index in kept]
    folders = [folder_of(paths[index], folder) for index in kept]
    if len(songs) < 2:
        raise CorpusError(f"{shown(folder)} 清洗去重后只剩 1 首歌，训练与验证至少各要一首")
    return songs, keys, folders


def split_songs(keys: Sequence[str], val_fraction: float) -> tuple[list[int], list[int], list[int]]:
    """按内容哈希划分。

    Returns:
        (训练集序号, 验证集序号, 每首歌的 64 位哈希)；两个集合都按哈希排序，好让同一歌手的歌不相邻。
    """
    digests = [int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") for key in keys]
    order = sorted(range(len(keys)), key=digests.__getitem__)
    threshold = val_fraction * 2**64
    val = [index for index in order if digests[index] < threshold] or order[:1]  # 极小的语料也要有一首验证
    if len(val) == len(order):
        val = order[:1]
    return order[len(val) :], val, digests


def unigram_bits_per_character(train: Sequence[str], val: Sequence[str]) -> float:
    """字一元模型（加一平滑，含歌尾符号）在验证歌曲上的每字比特数：模型起码要低于它。"""
    counts: Counter[str] = Counter()
    for text in train:  # 一首一首地数：整个语料一次数完要几秒，其间不理 Ctrl-C
        counts.update(text)
    counts["</s>"] = len(train)
    total = counts.total() + len(counts) + 1
    held_out = Counter("".join(val))
    held_out["</s>"] = len(val)
    bits = sum(n * -math.log2((counts[symbol] + 1) / total) for symbol, n in held_out.items())
    return bits / sum(map(len, val))

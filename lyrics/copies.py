"""语料里全部片段的索引：写出的歌抄了谁。"""

import functools
import json
import mmap
import os
import shutil
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lyrics.sound import normalise

COPY_INDEX_VERSION = 1  # 索引的内容或格式有变时加一，旧索引随之重建

_CHARACTER = 4  # UTF-32 一个字的字节数

_INDEX_FILES = ("text", "suffixes.npy", "starts.npy", "labels")


class Span(NamedTuple):
    """一段文字里与语料相同的片段。

    Attributes:
        start, length: 在这段文字里的起点与长度（字）。
        song: 歌的序号；有它的歌里最前的一首。
    """

    start: int
    length: int
    song: int


class CopyIndex:
    """语料里全部片段的索引：后缀数组（Manber 与 Myers 1993）。

    不用片段的哈希表：那样每种长度要一张表，还有误报；后缀数组只排一次，任意长度的片段都能查，
    能求最长的片段，逐字比较，不会认错。片段可以跨行，不会跨歌。

    文字存成 UTF-32-BE：位置就是字数，字节的大小次序就是字的次序。每个字在磁盘上占 8 字节，
    都是内存映射，几个进程共用一份。查找要的文字都须先经 `normalise`；n 为语料的字数，
    查一次做 log₂ n 次比较，两千万字约 10 微秒。
    """

    def __init__(self, folder: Path, own: int) -> None:
        with open(folder / "text", "rb") as file:
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._positions = np.load(folder / "suffixes.npy", mmap_mode="r")
        self._suffixes = memoryview(self._positions)  # 逐个取值时比数组快
        self._starts = memoryview(np.load(folder / "starts.npy"))
        self._own_end = self._starts[own]
        self._label_bytes = (folder / "labels").read_bytes()

    @classmethod
    def build(
        cls,
        songs: Sequence[str],
        labels: Sequence[str],
        folder: Path,
        fingerprint: str,
        own: int,
        progress: Callable[[str], None] = lambda message: None,
    ) -> None:
        """建好索引，整个换掉 folder：中途停下，不会留下看似完整的半个索引。同时只能有一个进程在建。

        O(n log n log L) 时间（L 为最长的重复片段），内存约每字 45 字节，另加 songs。

        Args:
            songs: 歌词，未经 `normalise`。
            labels: 每首歌的称呼，与 songs 一一对应。
            fingerprint: 语料的指纹，`load` 时核对。
            own: 开头这么多首是训练用的，其余是留出的。
            progress: 收一行进度消息。

        Raises:
            OSError: 写不了，例如磁盘已满。
            ValueError: 称呼或 own 与歌数不符。
        """
        if len(labels) != len(songs) or not 0 <= own <= len(songs):
            raise ValueError(f"{len(songs)} 首歌、{len(labels)} 个称呼、训练用 {own} 首")
        progress(f"照抄索引：整理 {len(songs):,} 首歌")
        sung = [normalise(song) for song in songs]
        starts = np.cumsum([1, *(len(song) + 1 for song in sung)])  # 第 i 首是 text[starts[i] : starts[i + 1] - 1]
        text = "\0".join(["", *sung, ""]).encode("utf-32-be")
        del sung
        suffixes = _sorted_suffixes(text, progress)

        for leftover in folder.parent.glob(f"{folder.name}.*.tmp"):
            shutil.rmtree(leftover)
        temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        progress("照抄索引：写入磁盘")
        try:
            temporary.mkdir(parents=True)
            lines = "\n".join(" ".join(label.split()) for label in labels)
            contents: tuple[bytes | np.ndarray, ...] = (text, suffixes, starts, lines.encode("utf-8", "replace"))
            for name, content in zip(_INDEX_FILES, contents, strict=True):
                _write_through(temporary / name, content)
            meta = {"version": COPY_INDEX_VERSION, "fingerprint": fingerprint, "own": own, "sizes": _sizes(temporary)}
            _write_through(temporary / "meta.json", json.dumps(meta).encode())
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path, fingerprint: str) -> "CopyIndex | None":
        """读出索引（内存映射）；不存在、版本不符、指纹不以 fingerprint 开头、被截断时 None。"""
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            expected = (COPY_INDEX_VERSION, _sizes(folder))
            if (meta["version"], meta["sizes"]) != expected or not meta["fingerprint"].startswith(fingerprint):
                return None
            return cls(folder, meta["own"])
        except (OSError, ValueError, TypeError, AttributeError, LookupError):
            return None

    def contains(self, span: str, training_only: bool = False) -> bool:
        """语料里有没有这个片段；training_only 时只看训练用的歌。"""
        if training_only:
            return self._first(span) < self._own_end
        target, prefix = self._search(span)
        low = bisect_left(self._suffixes, target, key=prefix)
        return low < len(self._suffixes) and prefix(self._suffixes[low]) == target

    def longest(self, text: str, training_only: bool = False) -> Span:
        """text 里最长的、整段在某一首歌里的片段；一样长的取最前。一个字都没有时 (0, 0, -1)。

        最多查 2 × len(text) 次。
        """
        start = length = 0
        for first in range(len(text)):  # 只试比已有的更长的：片段在语料里，它的每一段也在
            while first + length < len(text) and self.contains(text[first : first + length + 1], training_only):
                start, length = first, length + 1
        if not length:
            return Span(0, 0, -1)
        song = bisect_right(self._starts, self._first(text[start : start + length])) - 1
        return Span(start, length, song)

    def last_span(self, text: str, limit: int, training_only: bool = False) -> int:
        """text 的末尾有多少个字（最多数到 limit）连着在语料里；查 log₂ limit 次。"""
        lengths = range(1, min(len(text), limit) + 1)
        return bisect_left(
            lengths, True, key=lambda length: not self.contains(text[len(text) - length :], training_only)
        )

    def label(self, song: int) -> str:
        """第 song 首（从 0 起）的称呼。

        Raises:
            IndexError: 没有这首歌。
        """
        if not 0 <= song < len(self._starts) - 1:
            raise IndexError(f"没有第 {song} 首歌")
        return self._labels[song]

    @functools.cached_property
    def _labels(self) -> list[str]:
        return self._label_bytes.decode("utf-8").split("\n")

    def _search(self, span: str) -> tuple[bytes, Callable[[int], bytes]]:
        """要找的字节，和「位置 → 那里同样长的字节」。"""
        target = span.encode("utf-32-be")
        text, size = self._text, len(target)
        return target, lambda position: text[_CHARACTER * position : _CHARACTER * position + size]

    def _first(self, span: str) -> int:
        """片段在语料里最前的位置；没有时是语料的末尾。"""
        target, prefix = self._search(span)
        low = bisect_left(self._suffixes, target, key=prefix)
        high = bisect_right(self._suffixes, target, lo=low, key=prefix)
        return int(self._positions[low:high].min(initial=self._starts[-1]))


def _sorted_suffixes(text: bytes, progress: Callable[[str], None]) -> np.ndarray:
    """按「从这里到歌尾」的次序排好的全部字的位置，uint32；分隔符不在内。

    前缀倍增：已按前 h 个字排好名次，(自己的名次, 往后 h 字处的名次) 就是前 2h 个字的次序；
    每轮只排还有并列的。
    """
    codes = np.frombuffer(text, ">u4")
    separators, suffixes = np.flatnonzero(codes == 0), np.flatnonzero(codes).astype(np.uint32)
    rank = codes.astype(np.uint32) + len(separators)
    rank[separators] = np.arange(len(separators))  # 各不相同：比到歌尾就分出先后，不会比进下一首
    places = np.arange(len(suffixes))  # 还有并列的名次
    span = 1
    while len(places):
        progress(f"照抄索引：按前 {2 * span} 个字排序，{len(places):,} 处")
        tied = suffixes[places]
        key = rank[tied].astype(np.uint64) << 32 | rank[tied + span]
        order = np.argsort(key)
        tied, key = tied[order], key[order]
        del order
        suffixes[places] = tied
        fresh = np.append(True, key[1:] != key[:-1])
        rank[tied] = len(separators) + places[fresh][np.cumsum(fresh) - 1]  # 并列的都取其中最小的名次
        places = places[~(fresh & np.append(fresh[1:], True))]
        span *= 2
    return suffixes


def _write_through(path: Path, content: bytes | np.ndarray) -> None:
    """写到磁盘上才返回：断电之后，改好名的索引不会是空的。"""
    with open(path, "wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            np.save(file, content)
        file.flush()
        os.fsync(file.fileno())


def _sizes(folder: Path) -> dict[str, int]:
    return {name: os.path.getsize(folder / name) for name in _INDEX_FILES}

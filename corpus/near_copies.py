"""相同的歌、大半相同的歌（现场版、翻唱），与装着别的歌的合集。"""

import functools
import re
from collections.abc import Callable, Sequence

import numpy as np

CANDIDATE_SPAN = 8  # 两首歌至少共有两个 8 字片段才作比较
COMPARE_SPAN = 4
WHOLE_PART = 0.8  # 一首歌的 4 字片段有这么多在一个文件里，就是整首收在里面
NEAR_COPY = 0.5  # 较短一首的 4 字片段有一半以上在另一首里，就算同一首歌
COMMON_SPAN = 100  # 出现在这么多首歌里的片段是套话，不用来找候选


def content_key(text: str) -> str:
    """用于比较的内容：只留文字与数字，忽略大小写、标点、分行和「妳」「你」之别。"""
    return re.sub(r"[\W_]+", "", text).lower().replace("妳", "你")


def near_copies(keys: Sequence[str]) -> dict[int, int]:
    """找出与先前某首相同或大半相同的歌：{重复的歌的序号: 它重复的、留下的那首的序号}。"""
    return find_copies(keys)[0]


def find_copies(keys: Sequence[str], whole_files: Sequence[int] = ()) -> tuple[dict[int, int], dict[int, list[int]]]:
    """找出与先前某首相同或大半相同的歌，和装着别的歌的合集。

    内容相同的先去掉；余下的先用共有的 8 字片段（数组排序，近似线性）找候选，再逐对算 4 字片段的包含度
    |A∩B| / min(|A|,|B|)（Broder 1997, On the resemblance and containment of documents）。

    Args:
        keys: 每首歌的 `content_key`，按读取次序。
        whole_files: 独占一个文件的歌的序号；只有它们会是合集。

    Returns:
        {重复的歌的序号: 它重复的、留下的那首的序号}，{合集的序号: 它装着的歌的序号}。
    """
    first: dict[str, int] = {}
    copies = {index: kept for index, key in enumerate(keys) if (kept := first.setdefault(key, index)) != index}
    distinct = list(first.values())
    pairs = [(distinct[a], distinct[b]) for a, b in _candidate_pairs(list(first))]
    spans = functools.lru_cache(maxsize=4096)(lambda index: _spans(keys[index]))
    collections = _collections(pairs, spans, set(whole_files) - set(copies))
    for later, earlier in pairs:
        if later in copies or earlier in copies or later in collections or earlier in collections:
            continue
        a, b = spans(earlier), spans(later)
        if len(a & b) >= NEAR_COPY * min(len(a), len(b)):
            copies[later] = earlier
    return copies, collections


def _collections(
    pairs: Sequence[tuple[int, int]], spans: Callable[[int], set[str]], whole_files: set[int]
) -> dict[int, list[int]]:
    """{合集: 它装着的歌}：几首互不相同的歌整首都在里面，合起来占它的大半。"""
    beside: dict[int, list[int]] = {}
    for pair in pairs:
        for one, other in (pair, pair[::-1]):
            if one in whole_files:
                beside.setdefault(one, []).append(other)
    found: dict[int, list[int]] = {}
    for whole, others in beside.items():
        inside: list[int] = []
        covered: set[str] = set()
        content = spans(whole) if len(others) > 1 else set()
        for other in sorted(others, key=lambda index: -len(spans(index)) if content else 0):
            part = spans(other)
            if len(part) >= len(content) or other in found:
                continue
            shared = part & content
            if len(shared) >= WHOLE_PART * len(part) and len(shared & covered) < NEAR_COPY * len(part):
                inside.append(other)
                covered |= shared
        if len(inside) > 1 and len(covered) >= NEAR_COPY * len(content):
            found[whole] = inside
    return found


def _spans(key: str) -> set[str]:
    return {key[start : start + COMPARE_SPAN] for start in range(max(1, len(key) - COMPARE_SPAN + 1))}


def _candidate_pairs(keys: Sequence[str]) -> list[tuple[int, int]]:
    """共有足够多 8 字片段的 (较后, 较前) 歌曲对，按较后者排序。"""
    lengths = np.array([len(key) for key in keys], dtype=np.int64)
    if lengths.max(initial=0) < CANDIDATE_SPAN:
        return []
    codes = np.frombuffer("".join(keys).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    positions = len(codes) - CANDIDATE_SPAN + 1
    hashes = np.zeros(positions, dtype=np.uint64)
    for offset in range(CANDIDATE_SPAN):  # 多项式散列，模 2^64
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + positions]
    song = np.repeat(np.arange(len(keys), dtype=np.int32), lengths)
    within = song[:positions] == song[CANDIDATE_SPAN - 1 :]
    hashes, song = hashes[within], song[:positions][within]

    order = np.argsort(hashes, kind="stable")
    hashes, song = hashes[order], song[order]
    same = np.append((hashes[1:] == hashes[:-1]) & (song[1:] == song[:-1]), False)  # 歌里自己的重复
    hashes, song = hashes[~same], song[~same]
    distinct = np.bincount(song, minlength=len(keys))  # 每首歌不同片段的个数
    starts = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1]))
    sizes = np.diff(np.append(starts, len(hashes)))
    song = song.astype(np.int64)
    earliest, common = song[np.repeat(starts, sizes)], np.repeat(sizes > COMMON_SPAN, sizes)
    common &= song != earliest
    found = [song[common] * len(keys) + earliest[common]]  # 很多歌都有的片段：只与最先的一首比
    shared = np.repeat((sizes > 1) & (sizes <= COMMON_SPAN), sizes)
    hashes, song = hashes[shared], song[shared]
    for distance in range(1, COMMON_SPAN):
        match = np.flatnonzero(hashes[distance:] == hashes[:-distance])
        if not len(match):
            break
        found.append(song[match + distance] * len(keys) + song[match])
    pairs, counts = np.unique(np.concatenate(found), return_counts=True)
    later, earlier = pairs // len(keys), pairs % len(keys)
    enough = counts >= np.maximum(2, 0.1 * np.minimum(distinct[later], distinct[earlier]))
    return list(zip(later[enough].tolist(), earlier[enough].tolist(), strict=True))

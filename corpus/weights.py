"""各个子文件夹的歌，每轮唱几遍。"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from corpus.files import CorpusError

TOP = "."  # 直接放在歌词文件夹里的
MOST_FOLDERS = 2**16 - 1


def parse_weights(text: str | None) -> dict[str, float]:
    """「古典=0.5,新诗=4」→ {子文件夹: 遍数}。"""
    parts = (part.rpartition("=") for part in (text or "").replace("，", ",").split(",") if part)
    return {name.strip().strip("/"): float(times) for name, _, times in parts}


def folder_of(path: Path, lyrics_dir: Path) -> str:
    parts = path.relative_to(lyrics_dir).parts
    return parts[0] if len(parts) > 1 else TOP


def numbered(folders: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """(子文件夹的名字, (歌数,) uint16 每首歌的序号)；多得记不下的算在第一个里。"""
    names = sorted(set(folders))[:MOST_FOLDERS]
    numbers = {name: number for number, name in enumerate(names)}
    return names, np.array([numbers.get(folder, 0) for folder in folders], dtype=np.uint16)


def times_of(folders: np.ndarray, names: Sequence[str], weights: Mapping[str, float]) -> np.ndarray:
    """(歌数,) 每首歌每轮几遍；没有写到的一遍。

    Args:
        folders: (歌数,) 每首歌的子文件夹在 names 里的序号。

    Raises:
        CorpusError: 没有这个子文件夹，或一首歌也不剩。
    """
    unknown = [name for name in weights if name not in names]
    if unknown:
        raise CorpusError(
            f"--lyrics_weights 里的 {'、'.join(unknown)} 不是歌词文件夹的子文件夹；有的是：{'、'.join(names[:20])}"
        )
    times = np.array([weights.get(name, 1.0) for name in names])[folders.astype(np.int64)]
    if not times.any():
        raise CorpusError("--lyrics_weights 把所有的歌都去掉了")
    return times


def shares(lengths: np.ndarray, times: np.ndarray, folders: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """各个子文件夹占每轮词元的几成。"""
    totals = np.bincount(folders.astype(np.int64), weights=lengths * times, minlength=len(names))
    return dict(zip(names, (totals / totals.sum()).tolist(), strict=True))

"""词元流 → 训练与验证的批次。

第 n 步的批次只由 (种子, n) 决定，所以接着训练时不必重放。
"""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

IGNORED = -1  # 补齐位置的目标，不计损失


class SongStream:
    """歌首尾相接的词元流；可以另排次序，有的歌唱几遍，有的不唱。

    Args:
        tokens: 词元流，每首歌以 eos_id 收尾。
    """

    def __init__(self, tokens: np.ndarray, eos_id: int) -> None:
        self.tokens = tokens
        ends = np.flatnonzero(tokens == eos_id) + 1
        if not len(ends) or ends[-1] != len(tokens):
            ends = np.append(ends, len(tokens))
        self.lengths = np.diff(ends, prepend=0)  # (歌数,)
        self._starts = ends - self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def ordered(self, songs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """照 songs（歌的序号）的次序首尾相接成环：位置 → 那里的词元。"""
        ends = np.cumsum(self.lengths[songs])
        shift = self._starts[songs] - (ends - self.lengths[songs])

        def tokens_at(positions: np.ndarray) -> np.ndarray:
            positions = positions % ends[-1]
            return self.tokens[positions + shift[np.searchsorted(ends, positions, side="right")]]

        return tokens_at


def weighted(times: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """歌的序号，第 i 首出现 times[i] 遍；零头的一遍有或没有，由 generator 定。"""
    whole = np.floor(times)
    return np.repeat(np.arange(len(times)), (whole + (generator.random(len(times)) < times - whole)).astype(np.int64))


class Batches:
    """训练批次：`at(step)` 只由 (seed, step) 决定。

    每轮把歌重新洗一遍，首尾相接，切成不重叠的窗口；批次可以跨轮，所以语料比一批还小也行。

    Args:
        stream: 训练的歌。
        seq_len: 窗口长度 T（词元）。
        batch_size: 每步的窗口数 B。
        times: (歌数,)，每轮里每首歌几遍；不给则各一遍。
    """

    def __init__(
        self, stream: SongStream, seq_len: int, batch_size: int, seed: int, times: np.ndarray | None = None
    ) -> None:
        self.stream, self.seq_len, self.batch_size, self.seed = stream, seq_len, batch_size, seed
        self.times = np.ones(len(stream)) if times is None else times
        self.windows_per_epoch = max(1, int(stream.lengths @ self.times) // seq_len)
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def _draw_epoch(self, epoch: int) -> Callable[[np.ndarray], np.ndarray]:
        generator = np.random.default_rng([self.seed, epoch])
        songs = weighted(self.times, generator)
        if not len(songs):  # 都不足一遍，恰好一首也没有抽到
            songs = np.array([int(self.times.argmax())])
        generator.shuffle(songs)
        return self.stream.ordered(songs)

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """第 step 步（从 0 起）的输入与目标，各 (B, T) int64；目标是输入右移一位。"""
        numbers = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(numbers, self.windows_per_epoch)
        positions = places[:, None] * self.seq_len + np.arange(self.seq_len + 1)
        window = np.concatenate([self._epoch(int(epoch))(positions[epochs == epoch]) for epoch in np.unique(epochs)])
        window = window.astype(np.int64)  # (B, T+1)
        return window[:, :-1], window[:, 1:]


class Prefetcher:
    """在另一个线程里先备好下一步的批次，取的时候多半已经好了。

    Args:
        make: 步数 → 那一步的批次；只在那个线程里调用。
    """

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make, self._worker = make, ThreadPoolExecutor(1)
        self._ready: dict[int, Future[Any]] = {}

    def at(self, step: int) -> Any:
        """第 step 步的批次；make 的错误在这里抛出。"""
        batch = self._ready.get(step) or self._worker.submit(self._make, step)
        self._ready = {step + 1: self._worker.submit(self._make, step + 1)}
        return batch.result()


def validation_batches(
    tokens: np.ndarray, seq_len: int, batch_size: int, most: int, rank: int = 0, processes: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """验证批次：依次的不重叠窗口，每个词元恰好预测一次；最后一窗用 IGNORED 补齐。

    Args:
        most: 最多多少个窗口；超过时取均匀分布、每次相同的一部分，与 batch_size 无关。
        rank, processes: 取 processes 份里的第 rank 份；各份的批数相同，最后一批可能是空的。
    """
    starts = np.arange(0, len(tokens) - 1, seq_len)
    if len(starts) > most:
        starts = starts[np.linspace(0, len(starts) - 1, most).astype(np.int64)]
    longest = -(-len(starts) // processes)
    starts = starts[rank::processes]
    for first in range(0, longest, batch_size):
        positions = starts[first : first + batch_size, None] + np.arange(seq_len + 1)
        window = tokens[np.minimum(positions, len(tokens) - 1)].astype(np.int64)
        x, y = window[:, :-1].copy(), window[:, 1:].copy()
        y[positions[:, 1:] >= len(tokens)] = IGNORED
        yield x, y

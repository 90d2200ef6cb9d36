"""CUDA 上把解码的一步录成图再重放。"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from generation import Sampling, Step, TorchStep, draw
from model import GPT, KVCache

T = TypeVar("T")


class StaticCache(KVCache):
    """另一个 KV 缓存的固定形状：位置是设备上的张量，每次接一个词元，看遍整个容量而遮住后面。

    每步的形状与地址都不变，所以可以录成 CUDA 图。写入哪里由 `position` 定，不由 `length`。
    """

    def __init__(self, cache: KVCache) -> None:
        self.__dict__.update(cache.__dict__)  # 同一块内存
        self.entries[:, :, :, :, self.length :] = 0  # 遮住的也要乘以零，不能是 nan
        self.places = torch.arange(self.capacity, device=self.entries.device)
        self.position = self.places[self.length : self.length + 1].clone()  # (1,)

    def angles(self, count: int) -> tuple[Tensor, Tensor]:
        cos, sin = self.rope
        return cos.index_select(0, self.position), sin.index_select(0, self.position)

    def mask(self, count: int) -> Tensor:
        hidden = (self.places > self.position).view(1, 1, 1, -1)
        return torch.zeros(hidden.shape, dtype=self.entries.dtype, device=hidden.device).masked_fill(hidden, -math.inf)

    def advance(self, count: int) -> None:
        pass

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.layers[layer]
        return keys.index_copy_(2, self.position, k), values.index_copy_(2, self.position, v)


def worth_recording(device: torch.device, wanted: bool | None, tokens: int, songs: int) -> bool:
    """要不要录；wanted 为 None 时自定：录一次约合十来步，太短不值；批次大到一步的时间不在启动上时也不值。"""
    return device.type == "cuda" and (tokens >= 32 and songs <= 64 if wanted is None else wanted)


def record(step: Callable[[], T], device: torch.device) -> tuple[Callable[[], None], T]:
    """把一步录成 CUDA 图：返回重放它的函数，与每次重放后结果所在的张量（一个或几个）。"""
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # 录之前先在旁边的流上走几步，让各个库备好工作区
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = step()
    return graph.replay, result


class GraphStep:
    """录成 CUDA 图的一步（`generation.Step`，只走一个词元）：GPU 上两百多个内核各只有几微秒，时间花在逐个启动上。

    写完的歌留在批次里，结果不用：换了形状就要重录，所以写完一半才缩小批次。
    """

    def __init__(self, model: GPT, cache: KVCache, shrinks: bool = True) -> None:
        self.model, self.cache, self.shrinks = model, cache, shrinks
        self._record()

    def _record(self) -> None:
        self.static = StaticCache(self.cache)
        device, count = self.cache.entries.device, self.cache.entries.size(2)
        self.rows: Tensor | None = None  # 还在写的；None 是全部
        self.token = torch.zeros(count, 1, dtype=torch.int64, device=device)
        step = TorchStep(self.model, self.static)
        self.replay, self.logits = record(lambda: step(self.token), device)

    def __call__(self, tokens: Tensor) -> Tensor:
        if self.rows is None:
            self.token.copy_(tokens)
        else:
            self.token[self.rows] = tokens
        self.static.position.fill_(self.cache.length)
        self.replay()
        self.cache.length += 1
        return self.logits.clone() if self.rows is None else self.logits[self.rows]  # 那一块下一步就改写

    def keep_rows(self, rows: Tensor) -> None:
        self.rows = rows if self.rows is None else self.rows[rows]
        if self.shrinks and 2 * len(self.rows) <= self.cache.entries.size(2):
            self.cache.keep_rows(self.rows)
            if self.cache.length < self.cache.capacity:
                self._record()

    def adopt(self, cache: KVCache) -> None:
        """改写进 cache：它的内容搬到录好的那一块上；原来在那里的缓存搬出去，还可以接着用。"""
        before, entries = self.cache, self.static.entries
        before.hold(before.copy(entries.size(2), before.capacity).entries)
        entries[:, :, :, :, : cache.length] = cache.entries[:, :, :, :, : cache.length]
        cache.hold(entries)
        self.cache, self.rows = cache, None


class RecordedStep:
    """读完前文，走第一个单独的词元时录下 `GraphStep`；此前用 `TorchStep`，录不成或结果不符也用它，说明原因。"""

    def __init__(self, model: GPT, cache: KVCache) -> None:
        self.model, self.cache, self.plain = model, cache, TorchStep(model, cache)
        self.alone: Step | None = None  # 走一个词元的

    def __call__(self, tokens: Tensor) -> Tensor:
        if tokens.size(1) > 1 or not self.cache.length:
            return self.plain(tokens)
        if self.alone is None:
            self.alone = self._recorded()
        return self.alone(tokens)

    def keep_rows(self, rows: Tensor) -> None:
        (self.alone or self.plain).keep_rows(rows)

    def _recorded(self) -> Step:
        return checked(self.model, self.cache, self.plain, shrinks=True)


def checked(model: GPT, cache: KVCache, plain: TorchStep, shrinks: bool) -> Step:
    """录好的一步；录不成，或与 plain 的结果不符，就是 plain。"""
    length = cache.length
    token = torch.zeros(cache.entries.size(2), 1, dtype=torch.int64, device=cache.entries.device)
    expected = plain(token).float()
    cache.length = length  # 试写的不算，之后会盖掉
    try:
        graph = GraphStep(model, cache, shrinks)
        found = graph(token).float()
        if (found - expected).norm() <= 0.05 * expected.norm():
            return graph
        problem = "结果不符"
    except RuntimeError as error:
        problem = str(error)
    finally:
        cache.length = length
    warnings.warn(f"用不了 CUDA 图，照旧逐个启动内核：{problem}", stacklevel=2)
    return plain


class GraphPool:
    """录好的图按批次的行数留着，几首歌都用（`generation.MakeStep`）。

    一行一行地写时，每行、每稿都另起一份缓存：换了缓存就把内容搬到录好的那一块上，不必重录
    （85M 的模型，一首歌至多 38 MB）。
    """

    def __init__(self) -> None:
        self.graphs: dict[int, Step] = {}

    def __call__(self, model: GPT, cache: KVCache) -> "PooledStep":
        return PooledStep(self, model, cache)


class PooledStep(RecordedStep):
    """`GraphPool` 里的一步。"""

    def __init__(self, pool: GraphPool, model: GPT, cache: KVCache) -> None:
        super().__init__(model, cache)
        self.pool = pool

    def __call__(self, tokens: Tensor) -> Tensor:
        if tokens.size(1) == 1 and isinstance(self.alone, GraphStep) and self.alone.cache is not self.cache:
            self.alone.adopt(self.cache)
        return super().__call__(tokens)

    def _recorded(self) -> Step:
        rows = self.cache.entries.size(2)
        found = self.pool.graphs.get(rows)
        if found is None:
            whole = self.cache.copy(rows, self.model.config.max_seq_len)
            found = self.pool.graphs[rows] = checked(self.model, whole, TorchStep(self.model, whole), shrinks=False)
        if not isinstance(found, GraphStep):
            return self.plain
        found.adopt(self.cache)
        return found


class RecordedDraw:
    """录成 CUDA 图的抽样（`generation.Draw`）：二十来个小内核并成一次启动。"""

    AFTER = 16  # 同一形状用过这么多次才录：写完的歌离开批次，形状就变了

    def __init__(self) -> None:
        self.used: dict[tuple, int] = {}
        self.recorded: dict[tuple, tuple] = {}

    def __call__(
        self, logits: Tensor, seen: Tensor | None, banned: Tensor | None, uniform: Tensor, sampling: Sampling
    ) -> tuple[Tensor, Tensor]:
        if banned is None or seen is not None:
            return draw(logits, seen, banned, uniform, sampling)
        key = logits.shape, logits.dtype, banned.shape, sampling
        self.used[key] = self.used.get(key, 0) + 1
        if self.used[key] < self.AFTER:
            return draw(logits, seen, banned, uniform, sampling)
        if key not in self.recorded:
            given = logits.clone(), banned.clone(), uniform.clone()
            step = functools.partial(draw, given[0], None, given[1], given[2], sampling)
            self.recorded[key] = given, *record(step, logits.device)
        given, replay, result = self.recorded[key]
        for place, value in zip(given, (logits, banned, uniform), strict=True):
            place.copy_(value)
        replay()
        return result

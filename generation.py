"""logits → 词元：调整分布、抽样、逐个生成。

一级一级往上：adjust_logits → sample → prefill → decode_one → generate；一行一行地写、每行守约束的是 Composer。
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model import GPT, KVCache, StaticCache

LOWEST_TEMPERATURE = 1e-6  # 更低的温度会在 float32 里溢出；这么低已与贪心无异
CANDIDATES = 512  # 排好一万个概率要 0.6 毫秒；top_p 多半只用到最前面这么多，不够时才全排


@dataclass(frozen=True)
class Sampling:
    """抽样设置。

    Attributes:
        max_tokens: 最多写多少个词元。
        min_tokens: 写满这么多个新词元之前不许收尾。
        temperature: 温度；0 表示每步取最可能的（贪心）。
        top_k: 只在最可能的 k 个里抽；0 表示不限。
        top_p: 只在概率合计达到 p 的最少几个里抽（核抽样，Holtzman 等 2020）。
        repetition_penalty: 已出现词元的 logits 除以（为负时乘以）这个数（Keskar 等 2019，CTRL）；1 表示不惩罚。
        seed: 第 i 首用 `song_seed(seed, i)`，所以 fp32 时一首歌不因同批写了几首而变
            （别的精度，一行与多行的舍入略有不同）。
    """

    max_tokens: int = 200
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    seed: int = 0
    min_tokens: int = 0


def song_seed(seed: int, number: int) -> int:
    """第 number 首（从 0 起）的种子：第一首就是 seed，其余由两者的散列定，相邻的种子写不出同一首。"""
    if number == 0:
        return seed
    digest = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 2**31


def adjust_logits(logits: Tensor, seen: Tensor | None, banned: Tensor | None, sampling: Sampling) -> Tensor:
    """重复惩罚、禁用词元。

    Args:
        logits: (B, V)。
        seen: (B, V) bool，要惩罚的已出现词元；None 表示不惩罚。
        banned: (V,) 或 (B, V) bool，不许出现的词元；None 表示不限。

    Returns:
        (B, V) float32。
    """
    logits = logits.float()
    if seen is not None and sampling.repetition_penalty != 1.0:
        penalty = sampling.repetition_penalty
        punished = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits = torch.where(seen, punished, logits)
    if banned is not None:
        logits = logits.masked_fill(banned, float("-inf"))
    return logits


def sample(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """按温度、top_k、top_p 抽一个词元。

    用逆累积分布把给定的均匀随机数变成词元，所以结果只由 logits 与随机数决定，与设备、批次无关。

    Args:
        logits: (B, V) float32，不许的词元为 -inf。
        uniform: (B,) float32，[0, 1) 上的随机数。

    Returns:
        (B,) int64。
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    vocab_size = logits.size(-1)
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(sampling.temperature, LOWEST_TEMPERATURE)
    if sampling.top_k:
        top, index = logits.topk(min(sampling.top_k, vocab_size))
        return _draw(torch.softmax(top, dim=-1), index, uniform, sampling.top_p)
    probabilities = torch.softmax(logits, dim=-1)
    chosen, enough = None, None
    if sampling.top_p < 1 and vocab_size > CANDIDATES:
        top, index = probabilities.topk(CANDIDATES)
        chosen = _draw(top, index, uniform, sampling.top_p)
        enough = top.cumsum(dim=-1)[:, -1] >= sampling.top_p
        if enough.all():
            return chosen
    drawn = _draw(*probabilities.sort(dim=-1, descending=True), uniform, sampling.top_p)
    return drawn if chosen is None else torch.where(enough, chosen, drawn)  # 一行的结果不随同批的别的行而变


def _draw(probabilities: Tensor, index: Tensor, uniform: Tensor, top_p: float) -> Tensor:
    """从大到小排好的概率 (B, K)，留下累积首次达到 top_p 为止的（至少一个），抽出 index (B, K) 中的一个：(B,)。"""
    cumulative = probabilities.cumsum(dim=-1)
    kept = (cumulative - probabilities < top_p).sum(dim=-1, keepdim=True)  # (B, 1)
    total = cumulative.gather(-1, kept - 1)
    chosen = (cumulative <= uniform[:, None].to(cumulative) * total).sum(dim=-1, keepdim=True)
    return index.gather(-1, torch.minimum(chosen, kept - 1)).squeeze(-1)


def prefill(model: GPT, tokens: Tensor, cache: KVCache) -> Tensor:
    """一次前向写入全部前文。tokens: (B, T) → 最后一个位置的 logits (B, V)。"""
    return model.logits(model.hidden(tokens, cache)[:, -1])


def decode_one(model: GPT, token: Tensor, cache: KVCache) -> Tensor:
    """接着一个词元。token: (B,) → logits (B, V)。"""
    return prefill(model, token[:, None], cache)


def _use_graph(device: torch.device, wanted: bool | None, tokens: int, songs: int) -> bool:
    """要不要录 CUDA 图；wanted 为 None 时自定：录一次约合十来步，太短不值；批次大到一步的时间不在启动上时也不值。"""
    return device.type == "cuda" and (tokens >= 32 and songs <= 64 if wanted is None else wanted)


def _record(step: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """把一步录成 CUDA 图：返回重放它的函数，与每次重放后结果所在的张量。"""
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


class _GraphStep:
    """解码一步的 CUDA 图。GPU 上一步的两百多个内核各只有几微秒，时间花在逐个启动上；图只启动一次。

    写完的歌留在批次里，结果不用：换了形状就要重录。
    """

    def __init__(self, model: GPT, cache: KVCache) -> None:
        self.cache, self.static = cache, StaticCache(cache)
        device, count = cache.entries.device, cache.entries.size(2)
        self.rows = torch.arange(count, device=device)  # 还在写的
        self.token = torch.zeros(count, 1, dtype=torch.int64, device=device)
        self.replay, self.logits = _record(lambda: prefill(model, self.token, self.static), device)

    def __call__(self, token: Tensor) -> Tensor:
        """同 decode_one。"""
        self.token[self.rows] = token[:, None]
        self.static.position.fill_(self.cache.length)
        self.replay()
        self.cache.length += 1
        return self.logits[self.rows]


def _graph_step(model: GPT, cache: KVCache) -> _GraphStep | None:
    """录好的一步；录不成，或试一步与逐个启动内核的结果不符，说明原因并返回 None。"""
    length = cache.length
    token = torch.zeros(cache.entries.size(2), dtype=torch.int64, device=cache.entries.device)
    expected = decode_one(model, token, cache).float()
    cache.length = length  # 试写的不算，之后会盖掉
    try:
        graph = _GraphStep(model, cache)
        found = graph(token).float()
        if (found - expected).norm() <= 0.05 * expected.norm():
            return graph
        problem = "结果不符"
    except RuntimeError as error:
        problem = str(error)
    finally:
        cache.length = length
    warnings.warn(f"用不了 CUDA 图，照旧逐个启动内核：{problem}", stacklevel=2)
    return None


class _Context:
    """生成到目前为止的前文与它的 KV 缓存；缓存满时留下后一半，重新算起，歌可以一直写下去。"""

    def __init__(self, model: GPT, prompt: Sequence[int], budget: int) -> None:
        self.model = model
        self.limit = model.config.max_seq_len
        self.tokens = torch.tensor([list(prompt)], device=model.embedding.weight.device)  # (B, T)，先只有一行
        self.capacity = min(self.limit, len(prompt) + budget)
        self.graph: _GraphStep | None = None

    def start(self) -> Tensor:
        """提示词之后的 logits (1, V)。"""
        return self._refill(min(self.tokens.size(1), self.limit))

    def append(self, token: Tensor) -> Tensor:
        """加上各行的新词元 (B,)，返回 logits (B, V)。"""
        self.tokens = torch.cat((self.tokens, token[:, None]), dim=1)
        if self.cache.length == self.cache.capacity:
            return self._refill(max(1, self.limit // 2))
        return decode_one(self.model, token, self.cache) if self.graph is None else self.graph(token)

    def record(self) -> None:
        """之后的每一步都重放 CUDA 图。"""
        self.graph = _graph_step(self.model, self.cache) if self.cache.length < self.cache.capacity else None

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """各行都接上同样的几个词元，返回 logits (B, V)。"""
        added = torch.tensor([list(tokens)] * self.tokens.size(0), device=self.tokens.device)
        self.tokens = torch.cat((self.tokens, added), dim=1)
        if self.cache.length + len(tokens) <= self.cache.capacity:
            return prefill(self.model, added, self.cache)
        whole = self.tokens.size(1)
        return self._refill(whole if whole <= self.limit else max(1, self.limit // 2))

    def branch(self, rows: int, budget: int) -> "_Context":
        """同样的前文复制成几行，各自往下写；自己不变。"""
        copy = object.__new__(_Context)
        copy.model, copy.limit, copy.graph = self.model, self.limit, None
        copy.tokens = self.tokens.expand(rows, -1)
        copy.capacity = min(self.limit, self.cache.length + budget)
        copy.cache = self.cache.copy(rows, copy.capacity)
        return copy

    def keep_rows(self, rows: Tensor) -> None:
        self.tokens = self.tokens[rows]
        if self.graph is not None:
            rows = self.graph.rows = self.graph.rows[rows]
            if 2 * len(rows) > self.cache.entries.size(2):
                return  # 写完一半才缩小批次
        self.cache.keep_rows(rows)
        if self.graph is not None:
            self.record()

    def _refill(self, length: int) -> Tensor:
        tokens = self.tokens[:, -length:]
        self.cache = self.model.new_cache(tokens.size(0), max(length, self.capacity))
        logits = prefill(self.model, tokens, self.cache)
        if self.graph is not None:
            self.record()
        return logits


def _begin(
    model: GPT, prompt: Sequence[int], budget: int, rows: int, cuda_graph: bool | None
) -> tuple[_Context, Tensor]:
    """几首相同的前文只读一遍，再复制成 rows 行，要用 CUDA 图时录好。返回前文与 logits (rows, V)。"""
    context = _Context(model, prompt, budget)
    logits = context.start()
    if rows > 1:
        context, logits = context.branch(rows, budget), logits.expand(rows, -1)
    if _use_graph(logits.device, cuda_graph, budget, rows):
        context.record()
    return context, logits


def _mask(ids: Sequence[int], vocab_size: int, device: torch.device) -> Tensor:
    """(V,) bool，ids 处为真；不在词表里的不计。"""
    mask = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    mask[[number for number in ids if 0 <= number < vocab_size]] = True
    return mask


def _seen(context: _Context, punishable: Tensor, rows: int) -> Tensor:
    """(rows, V) bool，前文里出现过、要惩罚的词元。"""
    seen = torch.zeros(rows, len(punishable), dtype=torch.bool, device=punishable.device)
    return seen.scatter_(1, context.tokens, True) & punishable


def _draw_again(
    logits: Tensor, token: Tensor, chosen: list[int], uniform: Tensor, refused: frozenset[int], sampling: Sampling
) -> None:
    """抽到 refused 里的，遮住它们、用同一个随机数另抽；就地改 token 与 chosen。"""
    for place in [place for place, choice in enumerate(chosen) if choice in refused]:
        logits[place, list(refused)] = float("-inf")
        token[place] = sample(logits[place : place + 1], uniform[place : place + 1], sampling)[0]
        chosen[place] = int(token[place])


@torch.inference_mode()
def generate(
    model: GPT,
    prompt: Sequence[int],
    sampling: Sampling,
    stop_id: int,
    banned_ids: Sequence[int] = (),
    unpunished_ids: Sequence[int] = (),
    num_samples: int = 1,
    cuda_graph: bool | None = False,
    refused_ids: Sequence[int] = (),
) -> Iterator[list[tuple[int, int]]]:
    """从同一段前文写 num_samples 首，逐步给出。

    Args:
        prompt: 前文词元，至少一个；超过 max_seq_len 时只看末尾一段。
        stop_id: 写到它就停（不给出它）。
        banned_ids: 不许出现的词元。
        refused_ids: 抽到了就另抽的词元；没有抽到它们的歌，与不管它们时一字不差。
        unpunished_ids: 不受重复惩罚的词元（换行若受罚，行会越写越长）。
        cuda_graph: 在 CUDA 上把解码的一步录成图再重放；None 为自定。别的设备上不起作用。

    Yields:
        每步一个列表 [(第几首, 词元), …]，只含还没写完的歌。

    Raises:
        ValueError: 前文为空。
    """
    if not prompt:
        raise ValueError("前文为空")
    device = model.embedding.weight.device
    vocab_size = model.config.vocab_size
    generators = [torch.Generator().manual_seed(song_seed(sampling.seed, row)) for row in range(num_samples)]
    banned = _mask(banned_ids, vocab_size, device)
    unfinished = _mask([*banned_ids, stop_id], vocab_size, device)  # 写满 min_tokens 之前禁用的
    punishable = ~_mask(unpunished_ids, vocab_size, device)
    refused = frozenset(refused_ids)
    rows = list(range(num_samples))  # 还在写的是第几首
    context, logits = _begin(model, prompt, sampling.max_tokens, num_samples, cuda_graph)
    seen = _seen(context, punishable, num_samples) if sampling.repetition_penalty != 1.0 else None
    for step in range(sampling.max_tokens):
        uniform = torch.cat([torch.rand(1, generator=generators[row]) for row in rows]).to(device)
        forbidden = unfinished if step < sampling.min_tokens else banned
        adjusted = adjust_logits(logits, seen, forbidden, sampling)
        token = sample(adjusted, uniform, sampling)  # (B,)
        chosen = token.tolist()
        _draw_again(adjusted, token, chosen, uniform, refused, sampling)
        going = [place for place, choice in enumerate(chosen) if choice != stop_id]
        if not going:
            return
        yield [(rows[place], chosen[place]) for place in going]
        if step + 1 == sampling.max_tokens:
            return
        if len(going) < len(rows):  # 写完的歌离开批次
            kept = torch.tensor(going, device=device)
            token, rows = token[kept], [rows[place] for place in going]
            context.keep_rows(kept)
            seen = seen[kept] if seen is not None else None
        if seen is not None:
            seen.scatter_(1, token[:, None], punishable[token][:, None])
        logits = context.append(token)


# ---------------------------------------------------------------------------
# 守着约束，一行一行地写
# ---------------------------------------------------------------------------


class Constraint(Protocol):
    """一行要守的约束，随写随变。"""

    def forbidden(self) -> np.ndarray:
        """(V,) bool，接下来不许出现的词元。"""

    def refuses(self, token: int) -> bool:
        """抽到 token 时再细看一遍：不许则重抽，等于也把它遮住再归一。"""

    def push(self, token: int) -> None:
        """写下了 token。"""


@dataclass
class Draft:
    """一行的一稿。

    Attributes:
        tokens: 词元，写完的以换行或 `</s>` 结尾。
        log_probability: 不加约束与抽样设置时，模型给这些词元的对数概率（自然对数）之和。
        whole: 是否写完；False 表示半途无字可用，或太长。
    """

    constraint: Constraint
    tokens: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    whole: bool = False

    @property
    def likelihood(self) -> float:
        """每个词元的平均对数概率。"""
        return self.log_probability / max(1, len(self.tokens))


class Composer:
    """一行一行地写一首歌：每行同时起几稿，每稿守着约束，取模型自己最看好的一稿。

    Args:
        prompt: 前文词元，至少一个。
        ends: 结束一行的词元：换行与 `</s>`。
        banned_ids, refused_ids, unpunished_ids: 同 `generate`。
        candidates: 每行起几稿。
    """

    ATTEMPTS = 8  # 一行没有一稿可用时，最多重写几遍

    def __init__(
        self,
        model: GPT,
        prompt: Sequence[int],
        sampling: Sampling,
        ends: Sequence[int],
        banned_ids: Sequence[int] = (),
        unpunished_ids: Sequence[int] = (),
        candidates: int = 1,
        refused_ids: Sequence[int] = (),
    ) -> None:
        self.sampling, self.ends, self.candidates = sampling, set(ends), candidates
        device, vocab_size = model.embedding.weight.device, model.config.vocab_size
        self._refused = frozenset(refused_ids)
        self._banned = _mask(banned_ids, vocab_size, device)
        self._punishable = ~_mask(unpunished_ids, vocab_size, device)
        self._generator = torch.Generator().manual_seed(sampling.seed)
        with torch.inference_mode():
            self._context = _Context(model, prompt, model.config.max_seq_len)
            self._logits = self._context.start()  # (1, V)

    @torch.inference_mode()
    def feed(self, tokens: Sequence[int]) -> None:
        """接上现成的词元。"""
        if tokens:
            self._logits = self._context.extend(tokens)

    def line(
        self,
        constraint: Callable[[], Constraint],
        longest: int,
        unwanted: Callable[[Draft], bool] = lambda draft: False,
        following: Sequence[int] = (),
        may_cut: bool = False,
    ) -> Draft | None:
        """写一行并接在前文之后。

        Args:
            constraint: 每稿取一个新的约束。
            longest: 一稿最多几个词元。
            unwanted: 几稿之中尽量不取的，例如重复前面的行。
            following: 已定的下一行；取的一稿要与它相接。
            may_cut: 写满 longest 个词元而没有写完的也算。

        Returns:
            选中的一稿；重写几遍也写不出来时 None。
        """
        fallback = None
        for _ in range(self.ATTEMPTS):
            drafts, branch = self._drafts(constraint, self.candidates, longest)
            drafts = [draft for draft in drafts if draft.whole or (may_cut and len(draft.tokens) == longest)]
            if drafts and self.candidates == 1:
                self._context = branch  # 只有一稿：它的缓存就是前文的缓存
                self.feed(drafts[0].tokens[-1:])
                return drafts[0]
            wanted = [draft for draft in drafts if not unwanted(draft)]
            if wanted:
                fallback = self._best(wanted, following)
                break
            fallback = fallback or (self._best(drafts, following) if drafts else None)
        if fallback is not None:
            self.feed(fallback.tokens)
        return fallback

    def _best(self, drafts: Sequence[Draft], following: Sequence[int]) -> Draft:
        if not following:
            return max(drafts, key=lambda draft: draft.likelihood)
        scores = self.score([[*draft.tokens, *following] for draft in drafts])
        means = [score / len([*draft.tokens, *following]) for score, draft in zip(scores, drafts, strict=True)]
        return drafts[max(range(len(drafts)), key=means.__getitem__)]

    def drafts(self, constraint: Callable[[], Constraint], count: int, longest: int) -> list[Draft]:
        """起 count 稿，不接到前文上；写完的才给出。"""
        return [draft for draft in self._drafts(constraint, count, longest)[0] if draft.whole]

    @torch.inference_mode()
    def score(self, continuations: Sequence[Sequence[int]]) -> list[float]:
        """每种接法（至少一个词元）在前文之后的对数概率之和；上下文装不下时，前文只留末尾一段，接法只算开头一段。"""
        limit = self._context.limit
        continuations = [row[: max(1, limit // 2)] for row in continuations]
        length = max(map(len, continuations))
        rows = torch.tensor([[*row, *[0] * (length - len(row))] for row in continuations])  # 右边的补零不影响左边
        rows = rows.to(self._logits.device)
        base, logits = self._context, self._logits
        if base.cache.length + length - 1 > limit:
            base = _Context(base.model, base.tokens[0, length - 1 - limit :].tolist(), 0)
            logits = base.start()
        context = base.branch(len(rows), length)
        hidden = context.model.hidden(rows[:, :-1], context.cache) if length > 1 else None
        logits = logits.expand(len(rows), -1)[:, None]  # (B, 1, V)
        if hidden is not None:
            logits = torch.cat((logits, context.model.logits(hidden)), dim=1)  # (B, T, V)
        found = torch.log_softmax(logits.float(), dim=-1).gather(-1, rows[..., None]).squeeze(-1)
        return [found[place, : len(row)].sum().item() for place, row in enumerate(continuations)]

    @torch.inference_mode()
    def _drafts(self, constraint: Callable[[], Constraint], count: int, longest: int) -> tuple[list[Draft], _Context]:
        drafts = [Draft(constraint()) for _ in range(count)]
        going = list(drafts)  # 还在写的，与批次的行一一对应
        room = longest if count > 1 else self._context.limit  # 只有一稿时，它的缓存会接着用下去
        context = self._context.branch(count, room)
        logits = self._logits.expand(count, -1)
        while True:
            chosen = self._draw(logits, context, going)
            likelihoods = torch.log_softmax(logits.float(), dim=-1)
            kept, tokens = [], []
            for place, (draft, token) in enumerate(zip(going, chosen, strict=True)):
                if token is None:
                    continue
                draft.constraint.push(token)
                draft.tokens.append(token)
                draft.log_probability += likelihoods[place, token].item()
                draft.whole = token in self.ends
                if not draft.whole and len(draft.tokens) < longest:
                    kept.append(place)
                    tokens.append(token)
            if not kept:
                return drafts, context
            if len(kept) < len(going):
                context.keep_rows(torch.tensor(kept, device=logits.device))
                going = [going[place] for place in kept]
            logits = context.append(torch.tensor(tokens, device=logits.device))

    def _draw(self, logits: Tensor, context: _Context, going: Sequence[Draft]) -> list[int | None]:
        """每稿抽一个词元；无字可用时是 None。"""
        forbidden = torch.from_numpy(np.stack([draft.constraint.forbidden() for draft in going]))
        forbidden = forbidden.to(logits.device) | self._banned
        seen = None
        if self.sampling.repetition_penalty != 1.0:
            seen = torch.zeros_like(forbidden).scatter_(1, context.tokens, True) & self._punishable
        adjusted = adjust_logits(logits, seen, forbidden, self.sampling)
        possible = (~forbidden).any(dim=1).tolist()
        uniform = torch.rand(len(going), generator=self._generator).to(logits.device)
        chosen: list[int | None] = sample(adjusted.nan_to_num(neginf=-1e30), uniform, self.sampling).tolist()
        for place, draft in enumerate(going):
            if not possible[place]:
                chosen[place] = None
            while chosen[place] is not None and (
                chosen[place] in self._refused or draft.constraint.refuses(chosen[place])
            ):
                adjusted[place, chosen[place]] = float("-inf")
                if adjusted[place].isneginf().all():
                    chosen[place] = None
                else:
                    again = torch.rand(1, generator=self._generator).to(logits.device)
                    chosen[place] = int(sample(adjusted[place : place + 1], again, self.sampling))
        return chosen

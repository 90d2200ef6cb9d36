"""logits → 词元：调整分布、抽样、逐个生成。

一级一级往上：adjust_logits → sample → prefill → decode_one → generate。
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model import GPT, KVCache

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
        seed: 第 i 首用 seed + i，所以 fp32 时一首歌不因同批写了几首而变（别的精度，一行与多行的舍入略有不同）。
    """

    max_tokens: int = 200
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    seed: int = 0
    min_tokens: int = 0


def adjust_logits(logits: Tensor, seen: Tensor | None, banned: Tensor | None, sampling: Sampling) -> Tensor:
    """重复惩罚、禁用词元。

    Args:
        logits: (B, V)。
        seen: (B, V) bool，要惩罚的已出现词元；None 表示不惩罚。
        banned: (V,) bool，不许出现的词元；None 表示不限。

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


class _Context:
    """生成到目前为止的前文与它的 KV 缓存；缓存满时留下后一半，重新算起，歌可以一直写下去。"""

    def __init__(self, model: GPT, prompt: Sequence[int], rows: int, budget: int) -> None:
        self.model = model
        self.limit = model.config.max_seq_len
        self.tokens = torch.tensor([list(prompt)] * rows, device=model.embedding.weight.device)  # (B, T)
        self.capacity = min(self.limit, len(prompt) + budget)

    def start(self) -> Tensor:
        """提示词之后的 logits (B, V)。"""
        return self._refill(min(self.tokens.size(1), self.limit))

    def append(self, token: Tensor) -> Tensor:
        """加上各行的新词元 (B,)，返回 logits (B, V)。"""
        self.tokens = torch.cat((self.tokens, token[:, None]), dim=1)
        if self.cache.length < self.cache.capacity:
            return decode_one(self.model, token, self.cache)
        return self._refill(max(1, self.limit // 2))

    def keep_rows(self, rows: Tensor) -> None:
        self.tokens = self.tokens[rows]
        self.cache.keep_rows(rows)

    def _refill(self, length: int) -> Tensor:
        tokens = self.tokens[:, -length:]
        self.cache = self.model.new_cache(tokens.size(0), max(length, self.capacity))
        return prefill(self.model, tokens, self.cache)


def _mask(ids: Sequence[int], vocab_size: int, device: torch.device) -> Tensor:
    """(V,) bool，ids 处为真；不在词表里的不计。"""
    mask = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    mask[[number for number in ids if 0 <= number < vocab_size]] = True
    return mask


@torch.inference_mode()
def generate(
    model: GPT,
    prompt: Sequence[int],
    sampling: Sampling,
    stop_id: int,
    banned_ids: Sequence[int] = (),
    unpunished_ids: Sequence[int] = (),
    num_samples: int = 1,
) -> Iterator[list[tuple[int, int]]]:
    """从同一段前文写 num_samples 首，逐步给出。

    Args:
        prompt: 前文词元，至少一个；超过 max_seq_len 时只看末尾一段。
        stop_id: 写到它就停（不给出它）。
        banned_ids: 不许出现的词元。
        unpunished_ids: 不受重复惩罚的词元（换行若受罚，行会越写越长）。

    Yields:
        每步一个列表 [(第几首, 词元), …]，只含还没写完的歌。

    Raises:
        ValueError: 前文为空。
    """
    if not prompt:
        raise ValueError("前文为空")
    device = model.embedding.weight.device
    vocab_size = model.config.vocab_size
    generators = [torch.Generator().manual_seed(sampling.seed + row) for row in range(num_samples)]
    banned = _mask(banned_ids, vocab_size, device)
    unfinished = _mask([*banned_ids, stop_id], vocab_size, device)  # 写满 min_tokens 之前禁用的
    punishable = ~_mask(unpunished_ids, vocab_size, device)
    rows = list(range(num_samples))  # 还在写的是第几首
    context = _Context(model, prompt, num_samples, sampling.max_tokens)
    seen = None
    if sampling.repetition_penalty != 1.0:
        seen = torch.zeros(num_samples, vocab_size, dtype=torch.bool, device=device)
        seen.scatter_(1, context.tokens, True)
        seen &= punishable

    logits = context.start()
    for step in range(sampling.max_tokens):
        uniform = torch.cat([torch.rand(1, generator=generators[row]) for row in rows]).to(device)
        forbidden = unfinished if step < sampling.min_tokens else banned
        token = sample(adjust_logits(logits, seen, forbidden, sampling), uniform, sampling)  # (B,)
        chosen = token.tolist()
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

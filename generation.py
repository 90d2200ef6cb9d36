"""logits → 词元：调整分布、抽样、逐个生成。

一级一级往上：adjust_logits → sample → Step → Context → generate。
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model import GPT, KVCache

LOWEST_TEMPERATURE = 1e-6  # 更低的温度会在 float32 里溢出；这么低已与贪心无异
CANDIDATES = 2048  # 排好一万个概率要 0.5 毫秒；top_p 多半只用到最前面这么多（0.07 毫秒），不够时才全排


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
    chosen = None
    if sampling.top_p < 1 and vocab_size > CANDIDATES and not logits.is_cuda:  # 显卡上全排也快，而问够不够要等它
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


def draw(
    logits: Tensor, seen: Tensor | None, banned: Tensor | None, uniform: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """调整、抽样：词元 (B,) 与调整过的 logits (B, V)。参数见 `adjust_logits`、`sample`。"""
    adjusted = adjust_logits(logits, seen, banned, sampling)
    return sample(adjusted, uniform, sampling), adjusted


Draw = Callable[[Tensor, Tensor | None, Tensor | None, Tensor, Sampling], tuple[Tensor, Tensor]]


class Uniforms:
    """每首歌自己的一串随机数，一段一段地先抽好搬到设备上：逐个搬，显卡每个词元都要等一次。

    Args:
        seeds: 每首歌的种子。
    """

    BLOCK = 64

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._device = device

    def at(self, step: int) -> Tensor:
        """第 step 步（从 0 起，依次取）各首的随机数 (歌数,)。"""
        place = step % self.BLOCK
        if not place:
            songs = [torch.cat([torch.rand(1, generator=each) for _ in range(self.BLOCK)]) for each in self._generators]
            self._block = torch.stack(songs, dim=1).to(self._device)
        return self._block[place]


class Step(Protocol):
    """解码的一步，写进它的 KV 缓存。"""

    def __call__(self, tokens: Tensor) -> Tensor:
        """各行接下来的词元 (B, T) → 最后一个位置的 logits (B, V)。"""

    def keep_rows(self, rows: Tensor) -> None:
        """之后只留批次中的这些行。"""


class TorchStep:
    """用模型自己的前向走一步。"""

    def __init__(self, model: GPT, cache: KVCache) -> None:
        self.model, self.cache = model, cache

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.model.logits(self.model.hidden(tokens, self.cache)[:, -1])

    def keep_rows(self, rows: Tensor) -> None:
        self.cache.keep_rows(rows)


MakeStep = Callable[[GPT, KVCache], Step]


class Context:
    """生成到目前为止的前文与它的 KV 缓存；缓存满时留下后一半，重新算起，歌可以一直写下去。

    Args:
        prompt: 前文词元；超过 max_seq_len 时只看末尾一段。
        budget: 打算再写几个词元。
        make_step: 备好一步解码；缓存换了就再备一次。
    """

    def __init__(self, model: GPT, prompt: Sequence[int], budget: int, make_step: MakeStep = TorchStep) -> None:
        self.model, self.make_step = model, make_step
        self.limit = model.config.max_seq_len
        self.tokens = torch.tensor([list(prompt)], device=model.embedding.weight.device)  # (B, T)，先只有一行
        self.capacity = min(self.limit, len(prompt) + budget)

    def start(self) -> Tensor:
        """提示词之后的 logits (1, V)。"""
        return self._refill(min(self.tokens.size(1), self.limit))

    def append(self, token: Tensor) -> Tensor:
        """加上各行的新词元 (B,)，返回 logits (B, V)。"""
        self.tokens = torch.cat((self.tokens, token[:, None]), dim=1)
        if self.cache.length == self.cache.capacity:
            return self._refill(max(1, self.limit // 2))
        return self.step(token[:, None])

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """各行都接上同样的几个词元，返回 logits (B, V)。"""
        added = torch.tensor([list(tokens)] * self.tokens.size(0), device=self.tokens.device)
        self.tokens = torch.cat((self.tokens, added), dim=1)
        if self.cache.length + len(tokens) <= self.cache.capacity:
            return self.step(added)
        whole = self.tokens.size(1)
        return self._refill(whole if whole <= self.limit else max(1, self.limit // 2))

    def rewind(self) -> None:
        """退回一个词元：之后接的是它前面那一个。"""
        self.tokens = self.tokens[:, :-1]
        self.cache.length -= 1

    def branch(self, rows: int, budget: int) -> "Context":
        """同样的前文复制成几行，各自往下写；自己不变。"""
        copy = object.__new__(Context)
        copy.model, copy.limit, copy.make_step = self.model, self.limit, self.make_step
        copy.tokens = self.tokens.expand(rows, -1)
        copy.capacity = min(self.limit, self.cache.length + budget)
        copy._hold(self.cache.copy(rows, copy.capacity))
        return copy

    def keep_rows(self, rows: Tensor) -> None:
        self.tokens = self.tokens[rows]
        self.step.keep_rows(rows)

    def _refill(self, length: int) -> Tensor:
        tokens = self.tokens[:, -length:]
        self._hold(self.model.new_cache(tokens.size(0), max(length, self.capacity)))
        return self.step(tokens)

    def _hold(self, cache: KVCache) -> None:
        self.cache, self.step = cache, self.make_step(self.model, cache)


def token_mask(ids: Sequence[int], vocab_size: int, device: torch.device) -> Tensor:
    """(V,) bool，ids 处为真；不在词表里的不计。"""
    mask = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    mask[[number for number in ids if 0 <= number < vocab_size]] = True
    return mask


def seen_tokens(context: Context, punishable: Tensor) -> Tensor:
    """(B, V) bool，前文里出现过、要惩罚的词元。"""
    rows = context.tokens.size(0)
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
    refused_ids: Sequence[int] = (),
    make_step: MakeStep = TorchStep,
    draw: Draw = draw,
) -> Iterator[list[tuple[int, int]]]:
    """从同一段前文写 num_samples 首，逐步给出。

    Args:
        prompt: 前文词元，至少一个，否则 ValueError；超过 max_seq_len 时只看末尾一段。
        stop_id: 写到它就停（不给出它）。
        banned_ids: 不许出现的词元。
        refused_ids: 抽到了就另抽的词元；没有抽到它们的歌，与不管它们时一字不差。
        unpunished_ids: 不受重复惩罚的词元（换行若受罚，行会越写越长）。
        make_step, draw: 解码的一步、抽样：模型自己的前向与 `draw`，或更快的。

    Yields:
        每步一个列表 [(第几首, 词元), …]，只含还没写完的歌。
    """
    if not prompt:
        raise ValueError("前文为空")
    device = model.embedding.weight.device
    vocab_size = model.config.vocab_size
    uniforms = Uniforms([song_seed(sampling.seed, row) for row in range(num_samples)], device)
    banned = token_mask(banned_ids, vocab_size, device)
    unfinished = token_mask([*banned_ids, stop_id], vocab_size, device)  # 写满 min_tokens 之前禁用的
    punishable = ~token_mask(unpunished_ids, vocab_size, device)
    refused = frozenset(refused_ids)
    rows = list(range(num_samples))  # 还在写的是第几首
    places = torch.arange(num_samples, device=device)
    context = Context(model, prompt, sampling.max_tokens, make_step)
    logits = context.start()
    if num_samples > 1:  # 几首相同的前文只读一遍
        context, logits = context.branch(num_samples, sampling.max_tokens), logits.expand(num_samples, -1)
    seen = seen_tokens(context, punishable) if sampling.repetition_penalty != 1.0 else None
    for step in range(sampling.max_tokens):
        uniform = uniforms.at(step)[places]
        forbidden = unfinished if step < sampling.min_tokens else banned
        token, adjusted = draw(logits, seen, forbidden, uniform, sampling)
        chosen = token.tolist()
        _draw_again(adjusted, token, chosen, uniform, refused, sampling)
        going = [place for place, choice in enumerate(chosen) if choice != stop_id]
        if going:
            yield [(rows[place], chosen[place]) for place in going]
        if not going or step + 1 == sampling.max_tokens:
            return
        if len(going) < len(rows):  # 写完的歌离开批次
            rows, kept = [rows[place] for place in going], torch.tensor(going, device=device)
            places = torch.tensor(rows, device=device)
            context.keep_rows(kept)
            token, seen = token[kept], seen[kept] if seen is not None else None
        if seen is not None:
            seen.scatter_(1, token[:, None], punishable[token][:, None])
        logits = context.append(token)

"""守着约束，一行一行地写：每行起几稿，取模型自己最看好的一稿。"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from generation import Context, Draw, MakeStep, Sampling, TorchStep, draw, sample, seen_tokens, token_mask
from model import GPT

SEARCH_STEPS = 200  # 退着找一行时，每一轮最多走这么多步

SEARCH_LOOKS = 20_000  # 每一轮最多细看这么多个词元（各约 30 微秒）


class Constraint(Protocol):
    """一行要守的约束，随写随变。"""

    text: str  # 写到现在的这一行

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
    def empty(self) -> bool:
        """什么也没写就结束了这一行：空一行，或收尾。"""
        return self.whole and len(self.tokens) == 1 and not self.constraint.text

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
        make_step, draw: 同 `generate`。
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
        make_step: MakeStep = TorchStep,
        draw: Draw = draw,
    ) -> None:
        self.sampling, self.ends, self.candidates = sampling, set(ends), candidates
        device, vocab_size = model.embedding.weight.device, model.config.vocab_size
        self._refused = frozenset(refused_ids)
        self._banned = token_mask(banned_ids, vocab_size, torch.device("cpu"))
        self._draw_tokens = draw
        self._punishable = ~token_mask(unpunished_ids, vocab_size, device)
        self._generator = torch.Generator().manual_seed(sampling.seed)
        with torch.inference_mode():
            self._context = Context(model, prompt, model.config.max_seq_len, make_step)
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
        count: int = 1,
    ) -> Draft | None:
        """写一行并接在前文之后。

        Args:
            constraint: 每稿取一个新的约束。
            longest: 一稿最多几个词元。
            unwanted: 几稿之中尽量不取的，例如重复前面的行。
            following: 已定的下一行；取的一稿要与它相接。
            may_cut: 写满 longest 个词元而没有写完的也算。
            count: 至少起这么多稿。

        Returns:
            选中的一稿；重写几遍、再退着找也写不出来时 None。
        """
        fallback = None
        count = max(count, self.candidates)
        for _ in range(self.ATTEMPTS):
            drafts, branch = self._drafts(constraint, count, longest)
            if count > 1 and drafts[0].empty:  # 分节还是收尾，只由第一稿定：它们短，比起来总占便宜
                fallback = drafts[0]
                break
            drafts = [draft for draft in drafts if draft.whole or (may_cut and len(draft.tokens) == longest)]
            drafts = [draft for draft in drafts if count == 1 or not draft.empty]
            if drafts and count == 1:
                self._context = branch  # 只有一稿：它的缓存就是前文的缓存
                self.feed(drafts[0].tokens[-1:])
                return drafts[0]
            wanted = [draft for draft in drafts if not unwanted(draft)]
            if wanted:
                fallback = self._best(wanted, following)
                break
            fallback = fallback or (self._best(drafts, following) if drafts else None)
        if fallback is None:
            fallback = self._search(constraint, longest)
        if fallback is not None:
            self.feed(fallback.tokens)
        return fallback

    @torch.inference_mode()
    def _search(self, start: Callable[[], Constraint], longest: int) -> Draft | None:
        """一步一步地写；无字可用就退回一步，换一个词元，直到写成。

        每一步至多换几次就再往前退；走了 `SEARCH_STEPS` 步还不成，放宽几倍从行首重来，最后不留余地。
        """
        for width in (2, 8, len(self._banned)):
            context, self._looks = self._context.branch(1, self._context.limit), SEARCH_LOOKS
            tokens: list[int] = []
            steps = [(self._logits, start(), set[int]())]  # 每一步之前的 logits、约束，与走不通的词元
            for _ in range(SEARCH_STEPS):
                logits, constraint, dead = steps[-1]
                full = len(dead) >= width or len(tokens) == longest
                token = None if full else self._pick(logits, constraint, dead, min(8 * width, len(self._banned)))
                if token is None and not tokens:
                    break
                if token is None:
                    steps.pop()
                    steps[-1][2].add(tokens.pop())
                    context.rewind()
                    continue
                tokens.append(token)
                constraint = copy.copy(constraint)
                constraint.push(token)
                if token in self.ends:
                    found = [torch.log_softmax(step[0].float(), dim=-1)[0] for step in steps]
                    total = sum(row[token].item() for row, token in zip(found, tokens, strict=True))
                    return Draft(constraint, tokens, total, whole=True)
                steps.append((context.append(torch.tensor([token], device=logits.device)), constraint, set()))
        return None

    def _pick(self, logits: Tensor, constraint: Constraint, dead: set[int], most: int) -> int | None:
        """照概率不放回地依次抽（Gumbel），至多看 most 个，取第一个合约束的；没有时 None。"""
        forbidden = torch.from_numpy(constraint.forbidden())[None] | self._banned
        forbidden[0, [*dead, *self._refused]] = True
        allowed = min(int((~forbidden).sum()), most, self._looks)
        if not allowed:
            return None
        scores = logits.float().cpu().masked_fill(forbidden, float("-inf"))
        if self.sampling.temperature:
            uniform = torch.rand(scores.shape, generator=self._generator)
            scores = scores / self.sampling.temperature - torch.log(-torch.log(uniform.clamp(1e-9, 1 - 1e-7)))
        self._looks -= allowed
        return next(
            (token for token in scores[0].topk(allowed).indices.tolist() if not constraint.refuses(token)), None
        )

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
            base = Context(base.model, base.tokens[0, length - 1 - limit :].tolist(), 0)
            logits = base.start()
        context = base.branch(len(rows), length)
        hidden = context.model.hidden(rows[:, :-1], context.cache) if length > 1 else None
        logits = logits.expand(len(rows), -1)[:, None]  # (B, 1, V)
        if hidden is not None:
            logits = torch.cat((logits, context.model.logits(hidden)), dim=1)  # (B, T, V)
        found = torch.log_softmax(logits.float(), dim=-1).gather(-1, rows[..., None]).squeeze(-1)
        found = found.cpu()
        return [found[place, : len(row)].sum().item() for place, row in enumerate(continuations)]

    @torch.inference_mode()
    def _drafts(self, constraint: Callable[[], Constraint], count: int, longest: int) -> tuple[list[Draft], Context]:
        drafts = [Draft(constraint()) for _ in range(count)]
        going = list(drafts)  # 还在写的，与批次的行一一对应
        room = longest if count > 1 else self._context.limit  # 只有一稿时，它的缓存会接着用下去
        context = self._context.branch(count, room)
        logits = self._logits.expand(count, -1)
        while True:
            chosen = self._draw(logits, context, going)
            likelihoods = self._likelihoods(logits, chosen)
            kept, tokens = [], []
            for place, (draft, token) in enumerate(zip(going, chosen, strict=True)):
                if token is None:
                    continue
                draft.constraint.push(token)
                draft.tokens.append(token)
                draft.log_probability += likelihoods[place]
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

    @staticmethod
    def _likelihoods(logits: Tensor, chosen: Sequence[int | None]) -> list[float]:
        """各行选中的词元的对数概率；一起取，显卡只等一次。"""
        tokens = torch.tensor([[token or 0] for token in chosen], device=logits.device)
        return torch.log_softmax(logits.float(), dim=-1).gather(-1, tokens)[:, 0].tolist()

    def _draw(self, logits: Tensor, context: Context, going: Sequence[Draft]) -> list[int | None]:
        """每稿抽一个词元；无字可用时是 None。"""
        forbidden = torch.from_numpy(np.stack([draft.constraint.forbidden() for draft in going]))
        forbidden |= self._banned
        possible = (~forbidden).any(dim=1)
        forbidden[~possible, 0] = False  # 全不许的也抽一个，不用
        seen = None
        if self.sampling.repetition_penalty != 1.0:
            seen = seen_tokens(context, self._punishable)
        uniform = torch.rand(len(going), generator=self._generator).to(logits.device)
        drawn, adjusted = self._draw_tokens(logits, seen, forbidden.to(logits.device), uniform, self.sampling)
        chosen: list[int | None] = drawn.tolist()
        for place, draft in enumerate(going):
            if not possible[place]:
                chosen[place] = None
            while (token := chosen[place]) is not None and (token in self._refused or draft.constraint.refuses(token)):
                adjusted[place, token] = float("-inf")
                if adjusted[place].isneginf().all():
                    chosen[place] = None
                else:
                    again = torch.rand(1, generator=self._generator).to(logits.device)
                    chosen[place] = int(sample(adjusted[place : place + 1], again, self.sampling))
        return chosen

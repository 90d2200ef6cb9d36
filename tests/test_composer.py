"""一行一行地写：抽样、缓存、几稿取一。"""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from generation import Sampling, generate
from lyrics.constraint import ANY_LINE, LineConstraint, LineRule, Vocabulary
from model import GPT, ModelConfig
from writing.drafts import Composer

CHARACTERS = "花家歌我月夜一你路书海来水飞高好楼走山天"
EOS, NEWLINE, FIRST = 2, 3, 4
ENDS = [NEWLINE, EOS]
BANNED = [0, 1]
VOCABULARY = Vocabulary([b"", b"", b"", b"\n", *(character.encode() for character in CHARACTERS)], NEWLINE, EOS)
MODEL = ModelConfig(vocab_size=FIRST + len(CHARACTERS), max_seq_len=48, n_layers=2, n_heads=2, n_embed=16)
PROMPT = [1, 5, 9, 7]


@pytest.fixture(scope="module")
def model() -> GPT:
    """前文对下一个词元影响明显的随机模型。"""
    torch.manual_seed(2)
    model = GPT(MODEL).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=0.3 if name == "embedding.weight" else 0.8)
    return model


def composer(model: GPT, candidates: int = 1, prompt: Sequence[int] = PROMPT, **sampling) -> Composer:
    return Composer(
        model, prompt, Sampling(**{"top_p": 1.0, **sampling}), ENDS, BANNED, [NEWLINE], candidates=candidates
    )


def free() -> LineConstraint:
    return LineConstraint(VOCABULARY, ANY_LINE)


def exactly(count: int):
    return lambda: LineConstraint(VOCABULARY, LineRule(count, count, ends_song=False))


def last_logits(model: GPT, tokens: Sequence[int]) -> Tensor:
    """从头算整段前文的最后一个位置 (V,)。"""
    return model(torch.tensor([list(tokens)]))[0, -1]


def log_probability(model: GPT, context: Sequence[int], tokens: Sequence[int]) -> float:
    """从头算 tokens 接在 context 之后的对数概率之和。"""
    found = torch.log_softmax(model(torch.tensor([[*context, *tokens]]))[0], -1)
    return sum(found[len(context) + place - 1, token].item() for place, token in enumerate(tokens))


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-4)


# ---- 一稿 ----


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {}, {"top_k": 5, "temperature": 0.7}, {"top_p": 0.6}])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_without_a_constraint_it_writes_what_generate_writes(model, monkeypatch, sampling, penalty):
    """没有约束、一稿：与 `generate` 用同样的随机数，写的也相同，一直到收尾或写满。"""
    original, bias = model.logits, torch.zeros(MODEL.vocab_size)
    bias[NEWLINE] = 2.5
    monkeypatch.setattr(model, "logits", lambda hidden: original(hidden) + bias)
    lengths = []
    for seed in range(6):
        settings = Sampling(**{"max_tokens": 30, "top_p": 1.0, **sampling}, seed=seed, repetition_penalty=penalty)
        expected = []
        for step in generate(model, PROMPT, settings, EOS, BANNED, [NEWLINE]):
            expected += [token for _, token in step]
        writer = Composer(model, PROMPT, settings, ENDS, BANNED, [NEWLINE])
        found = []
        while len(found) < 30 and EOS not in found:
            found += writer.line(free, 30 - len(found), may_cut=True).tokens
        assert [token for token in found if token != EOS] == expected
        lengths.append(expected.count(NEWLINE))
    assert max(lengths) > 0


def test_same_seed_same_song(model):
    """种子定了，每一行都定了；换种子就不同；不动全局的随机状态。"""
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    songs = []
    for seed in (7, 7, 8):
        writer = composer(model, 4, seed=seed)
        songs.append([tuple(writer.line(exactly(4), 30).tokens) for _ in range(3)])
    assert songs[0] == songs[1] != songs[2]
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("candidates", [1, 5])
def test_banned_tokens_and_the_rule_are_kept(model, candidates):
    """禁用的词元不出现，每行都守约束，以换行结束。"""
    writer = composer(model, candidates, temperature=1.5)
    for count in (1, 3, 6):
        draft = writer.line(exactly(count), 40)
        assert draft.whole
        assert draft.tokens[-1] == NEWLINE
        assert len(draft.tokens) == count + 1
        assert not set(draft.tokens) & {*BANNED, EOS}
        assert draft.constraint.text == "".join(VOCABULARY.texts[token] for token in draft.tokens[:-1])


# ---- 对数概率 ----


@pytest.mark.parametrize("candidates", [1, 4])
def test_log_probability_is_the_models_own(model, candidates):
    """对数概率不受约束、温度、top_p、禁用的影响，等于从头算的和。"""
    writer = composer(model, candidates, temperature=0.6, top_k=9, repetition_penalty=1.2, seed=4)
    context = list(PROMPT)
    for _ in range(5):
        draft = writer.line(lambda: LineConstraint(VOCABULARY, LineRule(2, 6, ends_song=False)), 30)
        expected = log_probability(model, context, draft.tokens)
        assert draft.log_probability == pytest.approx(expected, abs=1e-3)
        assert draft.likelihood == pytest.approx(expected / len(draft.tokens), abs=1e-3)
        context += draft.tokens


def test_score_equals_sums_from_scratch(model):
    """`score`：长短不一的几种接法，各等于从头算的和；前文不变。"""
    writer = composer(model)
    continuations = [[5], [5, 6, 7, NEWLINE], [9, 9], [20, 3, 8], [4, 5, 6, 7, 8]]
    before = writer._logits.clone()
    expected = [log_probability(model, PROMPT, tokens) for tokens in continuations]
    for _ in range(2):
        assert writer.score(continuations) == pytest.approx(expected, abs=1e-3)
    assert writer.score([[5], [6]]) == pytest.approx(
        [log_probability(model, PROMPT, [5]), log_probability(model, PROMPT, [6])], abs=1e-3
    )
    assert torch.equal(writer._logits, before)
    writer.feed([6, 7])
    assert close(writer._logits[0], last_logits(model, [*PROMPT, 6, 7]))


@pytest.mark.parametrize("length", [MODEL.max_seq_len - 1, MODEL.max_seq_len, MODEL.max_seq_len + 9])
def test_score_at_the_end_of_the_context(model, length):
    """前文快满、已满时也能给接法打分，不出错，分数有限。"""
    prompt = [1, *(FIRST + place % 20 for place in range(length - 1))]
    scores = composer(model, prompt=prompt).score([[5, 6, 7, 8, NEWLINE], [9]])
    assert len(scores) == 2
    assert all(-200 < score < 0 for score in scores)


# ---- 缓存 ----


@pytest.mark.parametrize("candidates", [1, 3])
def test_the_cache_holds_what_was_written(model, candidates):
    """写几行、接上现成的行之后，logits 与从头算的相同（不超过 max_seq_len 时）。"""
    writer = composer(model, candidates, seed=3)
    context = list(PROMPT)
    for number in range(5):
        if number % 2:
            context += [8, 9, 10, 11, NEWLINE]
            writer.feed([8, 9, 10, 11, NEWLINE])
        else:
            context += writer.line(exactly(5), 40).tokens
        assert len(context) <= MODEL.max_seq_len
        assert writer._context.tokens.tolist() == [context]
        assert close(writer._logits[0], last_logits(model, context)), len(context)


@pytest.mark.parametrize("candidates", [1, 3])
def test_the_whole_context_is_used(model, candidates):
    """前文不超过 max_seq_len 时，最早的词元也还看得见。"""
    for first in (5, 6):
        writer = composer(model, candidates, prompt=[first, 9, 7, 11], seed=3)
        context = [first, 9, 7, 11]
        while len(context) + 9 <= MODEL.max_seq_len:
            writer.feed([8, 9, 10, NEWLINE])
            context += [8, 9, 10, NEWLINE]
            assert close(writer._logits[0], last_logits(model, context)), len(context)


def test_an_abandoned_line_leaves_no_trace(model):
    """几稿之中没取的、写不出来的，不留在缓存里。"""
    writer = composer(model, 4)
    assert writer.drafts(exactly(4), 6, 30)
    assert writer.line(lambda: Stuck(2), 30) is None
    assert writer._context.tokens.tolist() == [PROMPT]
    assert close(writer._logits[0], last_logits(model, PROMPT))
    draft = writer.line(exactly(3), 30)
    assert close(writer._logits[0], last_logits(model, [*PROMPT, *draft.tokens]))


@pytest.mark.parametrize("candidates", [1, 3])
def test_a_song_longer_than_the_context_goes_on(model, monkeypatch, candidates):
    """前文与歌超过 max_seq_len：照样写；模型看到的从不超过 max_seq_len，也不少于末尾一半。"""
    seen = []
    original = model.hidden

    def watched(tokens, cache=None):
        hidden = original(tokens, cache)
        seen.append(cache.length)
        return hidden

    monkeypatch.setattr(model, "hidden", watched)
    writer = composer(model, candidates, prompt=[1] + [5, 6, 7] * 20, seed=1)
    for number in range(30):
        draft = writer.line(exactly(5), 40)
        assert draft is not None, number
        assert len(draft.constraint.text) == 5
        writer.feed([8, 9, NEWLINE])
        assert writer._context.tokens[0, -len(draft.tokens) - 3 :].tolist() == [*draft.tokens, 8, 9, NEWLINE]
    assert max(seen) <= MODEL.max_seq_len
    assert min(seen) >= MODEL.max_seq_len // 2


def test_after_an_overflow_the_logits_are_those_of_the_latest_words(model):
    """满了之后，logits 等于末尾一段从头算的。"""
    writer = composer(model, prompt=[1] + [5, 6, 7] * 20, seed=1)
    tokens = [1] + [5, 6, 7] * 20
    for _ in range(10):
        tokens += writer.line(exactly(4), 40).tokens
        kept = writer._context.cache.length
        assert MODEL.max_seq_len // 2 <= kept <= MODEL.max_seq_len
        assert close(writer._logits[0], last_logits(model, tokens[-kept:]))


# ---- 几稿取一 ----


def test_the_most_likely_draft_is_taken(model, monkeypatch):
    """取平均对数概率最高的一稿；稿子各不相同，一稿写的没有这么好。"""
    seen = []
    original = Composer._drafts

    def recorded(self, *arguments):
        drafts, context = original(self, *arguments)
        seen.append(drafts)
        return drafts, context

    monkeypatch.setattr(Composer, "_drafts", recorded)
    writer = composer(model, 8, seed=2)
    for _ in range(4):
        chosen = writer.line(lambda: LineConstraint(VOCABULARY, LineRule(2, 6)), 40)
        likelihoods = [draft.likelihood for draft in seen[-1]]
        assert len(likelihoods) == 8
        assert len(set(likelihoods)) > 4
        assert len({len(draft.tokens) for draft in seen[-1]}) > 1
        assert chosen.likelihood == max(likelihoods)


def test_unwanted_drafts_are_taken_only_when_there_is_nothing_else(model):
    """不想要的不取；全都不想要时，重写几遍之后取其中最好的。"""
    writer = composer(model, 6, temperature=0.5, seed=2)
    texts = {draft.constraint.text for draft in writer.drafts(exactly(1), 60, 30)}
    favourite = composer(model, 6, temperature=0.5, seed=2).line(exactly(1), 30).constraint.text
    assert favourite in texts
    other = composer(model, 6, temperature=0.5, seed=2).line(
        exactly(1), 30, lambda draft: draft.constraint.text == favourite
    )
    assert other.constraint.text != favourite
    tries = []
    nothing = composer(model, 6, seed=2).line(exactly(1), 30, lambda draft: tries.append(draft) or True)
    assert nothing is not None
    assert nothing.whole
    assert len(tries) == 6 * Composer.ATTEMPTS


def test_the_line_fits_the_one_that_follows(model, monkeypatch):
    """下一行已定：取与它连起来最好的一稿。"""
    seen = []
    original = Composer._drafts

    def recorded(self, *arguments):
        drafts, context = original(self, *arguments)
        seen.extend(drafts)
        return drafts, context

    monkeypatch.setattr(Composer, "_drafts", recorded)
    following, different = [6, 20, 11, 15], 0
    for seed in range(6):
        seen.clear()
        chosen = composer(model, 8, seed=seed).line(exactly(3), 30, following=following)
        totals = [log_probability(model, PROMPT, [*draft.tokens, *following]) for draft in seen]
        assert log_probability(model, PROMPT, [*chosen.tokens, *following]) == pytest.approx(max(totals), abs=1e-3)
        different += chosen.likelihood < max(draft.likelihood for draft in seen)
    assert different


# ---- 写不出来 ----


class Stuck:
    """写下几个词元之后，再没有字可用；在 forbidden 里，或在 refuses 里。"""

    def __init__(self, after: int, masked: bool = True) -> None:
        self.after, self.masked, self.written = after, masked, 0

    def forbidden(self):
        mask = VOCABULARY.unbreakable.copy()
        mask[[NEWLINE, EOS]] = True
        return mask | (self.masked and self.written >= self.after)

    def refuses(self, token: int) -> bool:
        return not self.masked and self.written >= self.after

    def push(self, token: int) -> None:
        self.written += 1


@pytest.mark.parametrize(("candidates", "masked", "after"), itertools.product((1, 3), (True, False), (0, 2)))
def test_a_dead_end_is_none(model, candidates, masked, after):
    """没有字可用：几遍之后 None，前文不变；may_cut 也不把它当作写成了。"""
    writer = composer(model, candidates, temperature=1.2)
    tries = []
    assert writer.line(lambda: tries.append(1) or Stuck(after, masked), 20) is None
    assert len(tries) == candidates * Composer.ATTEMPTS + 3  # 最后退着找，三轮
    assert writer.line(lambda: Stuck(after, masked), 20, may_cut=True) is None
    assert writer._context.tokens.tolist() == [PROMPT]


@pytest.mark.parametrize("candidates", [1, 3])
def test_too_long_a_line_is_none_unless_it_may_be_cut(model, candidates):
    """写满 longest 还没写完：不算；may_cut 时算，恰好 longest 个词元，接着能写。"""
    writer = composer(model, candidates)
    assert writer.line(exactly(8), 5) is None
    draft = writer.line(exactly(8), 5, may_cut=True)
    assert len(draft.tokens) == 5
    assert not draft.whole
    assert close(writer._logits[0], last_logits(model, [*PROMPT, *draft.tokens]))


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"top_k": 2}, {"top_p": 1e-9}, {"temperature": 1e-6}])
def test_refused_tokens_are_redrawn_however_narrow_the_sampling(model, sampling):
    """贪心、top_k、top_p 再窄，遮住的与拒绝的之外只要有一个词元就能写。"""

    class OnlyOne(Stuck):
        """只有「天」不被拒绝，两个字一行。"""

        def forbidden(self):
            mask = super().forbidden()
            mask[:] |= self.written >= self.after
            mask[NEWLINE] = self.written < self.after
            return mask

        def refuses(self, token: int) -> bool:
            return token not in (NEWLINE, VOCABULARY.characters["天"])

    for candidates in (1, 4):
        draft = composer(model, candidates, **sampling).line(lambda: OnlyOne(2), 10)
        assert draft.tokens == [VOCABULARY.characters["天"]] * 2 + [NEWLINE]


def test_a_refused_token_leaves_the_others_in_proportion(model):
    """拒绝一个词元，等于把它遮住再归一：各词元的比例就是模型的。"""

    class Without(Stuck):
        def __init__(self, refused: int, masked: bool) -> None:
            super().__init__(99)
            self.refused, self.hidden = refused, masked

        def forbidden(self):
            mask = super().forbidden()
            mask[self.refused] = self.hidden
            return mask

        def refuses(self, token: int) -> bool:
            return token == self.refused

    likely = int(last_logits(model, PROMPT)[FIRST:].argmax()) + FIRST
    probabilities = torch.softmax(last_logits(model, PROMPT), -1)
    probabilities[[*BANNED, EOS, NEWLINE, likely]] = 0
    probabilities /= probabilities.sum()
    for masked in (True, False):
        drafts, _ = composer(model, seed=1)._drafts(lambda masked=masked: Without(likely, masked), 4000, 1)
        found = torch.bincount(torch.tensor([draft.tokens[0] for draft in drafts]), minlength=MODEL.vocab_size) / 4000
        assert torch.allclose(found, probabilities, atol=0.03)


def test_inference_mode_does_not_leak(model):
    writer = composer(model, 2)
    writer.line(exactly(2), 10)
    writer.score([[5]])
    assert not torch.is_inference_mode_enabled()

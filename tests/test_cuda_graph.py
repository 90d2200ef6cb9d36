"""一行一行地写也重放 CUDA 图：没有 GPU 时，用同样只重放一步的替身代替录制。"""

import copy

import pytest
import torch

from generation import Sampling, draw
from lyrics.constraint import LineConstraint, LineRule, Vocabulary
from model import GPT, ModelConfig
from writing import cuda_graph
from writing.cuda_graph import GraphPool, RecordedDraw
from writing.drafts import Composer

CHARACTERS = "花家歌我月夜一你路书海来水飞高好楼走山天"
EOS, NEWLINE, FIRST = 2, 3, 4
VOCABULARY = Vocabulary([b"", b"", b"", b"\n", *(character.encode() for character in CHARACTERS)], NEWLINE, EOS)
MODEL = ModelConfig(vocab_size=FIRST + len(CHARACTERS), max_seq_len=48, n_layers=2, n_heads=2, n_embed=16)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(2)
    model = GPT(MODEL).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=0.3 if name == "embedding.weight" else 0.8)
    return model


@pytest.fixture
def recorded(monkeypatch):
    """录制的替身：结果总在同一块内存上，重放时才算。返回录了几次的清单。"""
    times = []

    def record(step, device):
        whole = step()
        whole = whole if isinstance(whole, tuple) else (whole,)
        result = tuple(torch.zeros_like(each) for each in whole)
        times.append(len(whole[0]))

        def replay():
            again = step()
            for place, value in zip(result, again if isinstance(again, tuple) else (again,), strict=True):
                place.copy_(value)

        return replay, result if len(result) > 1 else result[0]

    monkeypatch.setattr(cuda_graph, "record", record)
    return times


def write(composer: Composer, lines: int) -> list[list[int]]:
    rule = LineRule(3, 3, ends_song=False)
    written = [composer.line(lambda: LineConstraint(VOCABULARY, rule), 8) for _ in range(lines)]
    return [draft.tokens for draft in written if draft is not None]


def composer(model: GPT, seed: int, candidates: int, penalty: float = 1.0, **options) -> Composer:
    sampling = Sampling(seed=seed, repetition_penalty=penalty)
    return Composer(model, [1, 5, 9, 7], sampling, [NEWLINE, EOS], [0, 1], [NEWLINE], candidates=candidates, **options)


@pytest.mark.parametrize("candidates", [1, 4])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_lines_equal_the_usual_and_nothing_is_recorded_twice(model, recorded, candidates, penalty):
    """二十行（写满上下文、重新算起）与平常写的逐词元相同；每种行数只录一次，下一首歌接着用。"""
    pool, draws = GraphPool(), RecordedDraw()
    for seed in (3, 4):
        expected = write(composer(model, seed, candidates, penalty), 20)
        assert len(expected) == 20
        found = write(composer(model, seed, candidates, penalty, make_step=pool, draw=draws), 20)
        assert found == expected
    assert len(pool.graphs) <= candidates
    assert len(recorded) <= len(pool.graphs) + len(draws.recorded)
    assert bool(draws.recorded) == (penalty == 1.0)


def test_two_songs_by_turns(model, recorded):
    """两首歌轮流写、用同一张图：谁也不弄乱谁的前文。"""
    pool = GraphPool()
    expected = [write(composer(model, seed, 1), 8) for seed in (5, 6)]
    both = [composer(model, seed, 1, make_step=pool) for seed in (5, 6)]
    found: list[list[list[int]]] = [[], []]
    for _ in range(8):
        for song, one in zip(found, both, strict=True):
            song += write(one, 1)
    assert found == expected
    assert len(recorded) == 1


def test_recorded_draw_is_the_plain_one(recorded):
    """同样的 logits、随机数与禁用的词元，抽出同样的；形状或设置变了另录。"""
    generator = torch.Generator().manual_seed(1)
    draws = RecordedDraw()
    for rows in (3, 2):
        for sampling in (Sampling(), Sampling(temperature=0.7, top_k=5)):
            for _ in range(draws.AFTER + 4):
                logits = torch.randn(rows, 40, generator=generator)
                banned = torch.rand(40, generator=generator) < 0.3
                uniform = torch.rand(rows, generator=generator)
                expected = draw(logits, None, banned, uniform, sampling)
                found = draws(logits, None, banned, uniform, sampling)
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(draws.recorded) == len(recorded) == 4


def test_a_line_no_word_fits(model):
    """一稿无字可用时没有这一稿，不出错。"""
    only = LineRule(2, 2, first="龟", ends_song=False)  # 词表里没有
    assert composer(model, 1, 2).line(lambda: LineConstraint(VOCABULARY, only), 8) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="没有 CUDA")
def test_lines_on_a_gpu(model):
    """真的录：与逐个启动内核写的相同。"""
    on_gpu = copy.deepcopy(model).cuda()
    expected = write(composer(on_gpu, 3, 4), 12)
    assert write(composer(on_gpu, 3, 4, make_step=GraphPool(), draw=RecordedDraw()), 12) == expected

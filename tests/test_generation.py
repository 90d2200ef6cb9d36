"""抽样与生成循环。"""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import generation
from generation import Sampling, adjust_logits, generate, sample
from model import GPT, KVCache, ModelConfig
from writing import cuda_graph
from writing.cuda_graph import RecordedStep, StaticCache, worth_recording

TINY = ModelConfig(vocab_size=24, max_seq_len=16, n_layers=2, n_heads=2, n_embed=16)
STOP = 2
LARGEST_UNIFORM = 1 - 2**-24  # torch.rand 能给出的最大 float32


@pytest.fixture(scope="module")
def model() -> GPT:
    """前文对下一个词元影响明显的随机模型。"""
    torch.manual_seed(2)
    model = GPT(TINY).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=0.4 if name == "embedding.weight" else 0.8)
    return model


def songs(model: GPT, prompt: list[int], sampling: Sampling, num_samples: int = 1, **options) -> list[list[int]]:
    """每首写出的词元。"""
    written = [[] for _ in range(num_samples)]
    options = {"stop_id": STOP, **options}
    for step in generate(model, prompt, sampling, num_samples=num_samples, **options):
        for row, token in step:
            written[row].append(token)
    return written


def reference(logits: list[float], temperature: float, top_k: int, top_p: float) -> dict[int, float]:
    """照定义逐个算：{可抽的词元: 概率}，双精度。"""
    order = sorted(range(len(logits)), key=lambda index: -logits[index])
    order = order[: top_k or len(order)]
    weights = [math.exp((logits[index] - logits[order[0]]) / temperature) for index in order]
    probabilities = [weight / sum(weights) for weight in weights]
    kept, reached = [], 0.0
    for index, probability in zip(order, probabilities, strict=True):
        kept.append((index, probability))
        reached += probability
        if reached >= top_p:
            break
    return {index: probability / sum(p for _, p in kept) for index, probability in kept}


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 3, 7, 100]),
    top_p=st.sampled_from([0.05, 0.33, 0.6, 0.9, 1.0]),
)
def test_sample_equals_brute_force(seed, temperature, top_k, top_p):
    """均匀地取遍随机数：每个词元抽中的比例就是照定义算出的概率，定义之外的从不抽中。"""
    logits = torch.randn(12, generator=torch.Generator().manual_seed(seed)) * 2
    expected = reference(logits.double().tolist(), temperature, top_k, top_p)
    grid = 2000
    uniform = (torch.arange(grid) + 0.5) / grid
    chosen = sample(logits.expand(grid, -1), uniform, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    found = torch.bincount(chosen, minlength=12) / grid
    for token in range(12):
        assert found[token].item() == pytest.approx(expected.get(token, 0.0), abs=1.01 / grid), token


def test_each_row_uses_its_own_logits_and_number():
    """一批里各行互不影响。"""
    generator = torch.Generator().manual_seed(0)
    logits, uniform = torch.randn(6, 12, generator=generator), torch.rand(6, generator=generator)
    sampling = Sampling(top_k=5, top_p=0.8)
    together = sample(logits, uniform, sampling).tolist()
    assert together == [sample(logits[row : row + 1], uniform[row : row + 1], sampling).item() for row in range(6)]
    assert len(set(together)) > 1


def test_top_p_keeps_at_least_one():
    """top_p 再小也留下最可能的那个。"""
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    for number in (0.0, 0.5, LARGEST_UNIFORM):
        assert sample(logits, torch.tensor([number]), Sampling(top_p=1e-9)).item() == 1


@pytest.mark.parametrize("top_k", [0, 5])
def test_forbidden_tokens_are_never_drawn_at_the_edges_of_the_numbers(top_k):
    """随机数取最小、最大时，也抽不到 -inf 的词元。"""
    logits = torch.randn(400, 40, generator=torch.Generator().manual_seed(0)) * 3
    logits[:, 3:] = float("-inf")
    for number in (0.0, 0.5, LARGEST_UNIFORM):
        chosen = sample(logits, torch.full((400,), number), Sampling(top_p=1.0, top_k=top_k))
        assert chosen.max() < 3
        if number == 0.0:
            assert torch.equal(chosen, logits.argmax(dim=-1))


@pytest.mark.parametrize("temperature", [0.0, 1e-4, 1e-30, 1e-39, 1e-45])
def test_vanishing_temperature_is_greedy(temperature):
    """温度为 0 是贪心，趋近 0 的也是，不因溢出出错。"""
    logits = torch.randn(8, 30, generator=torch.Generator().manual_seed(0)) * 10
    for number in (0.0, LARGEST_UNIFORM):
        chosen = sample(logits, torch.full((8,), number), Sampling(temperature=temperature))
        assert torch.equal(chosen, logits.argmax(dim=-1))


def test_repetition_penalty_lowers_seen_tokens_only():
    """出现过的：正的除以惩罚，负的乘以，都变小；没出现过的不变；禁用的为 -inf。"""
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0, 1.0]])
    seen = torch.tensor([[True, True, False, False, False]])
    banned = torch.tensor([False, False, False, False, True])
    found = adjust_logits(logits, seen, banned, Sampling(repetition_penalty=2.0))
    assert found.tolist() == [[1.0, -4.0, 2.0, -2.0, float("-inf")]]
    assert adjust_logits(logits, seen, None, Sampling(repetition_penalty=1.0)).tolist() == logits.tolist()
    assert adjust_logits(logits.bfloat16(), None, None, Sampling()).dtype == torch.float32


def test_repetition_penalty_reaches_the_song(model):
    """很大的惩罚下，提示词与写过的都不再重复；不受罚的词元照样可以重复。"""
    sampling = Sampling(max_tokens=15, temperature=0, repetition_penalty=1e6)
    positive = rigged(model, dict.fromkeys(range(24), 50.0))  # logits 全为正，受罚的必然排在最后
    song = songs(positive, [5, 6, 7], sampling, stop_id=-1)[0]
    assert len(set(song)) == 15
    assert not {5, 6, 7} & set(song)
    favourite = rigged(model, {**dict.fromkeys(range(24), 50.0), 9: 80.0})
    exempt = songs(favourite, [5, 9], sampling, stop_id=-1, unpunished_ids=[9])[0]
    assert exempt == [9] * 15
    assert songs(favourite, [5, 9], sampling, stop_id=-1)[0].count(9) == 0


def rigged(model: GPT, biases: dict[int, float]) -> GPT:
    """某些词元的 logits 固定加上一个数的模型（经由多出的一维）。"""
    biased = GPT(TINY).eval().requires_grad_(False)
    biased.load_state_dict(model.state_dict())
    original = biased.logits
    extra = torch.zeros(TINY.vocab_size)
    for token, bias in biases.items():
        extra[token] = bias
    biased.logits = lambda hidden: original(hidden) + extra
    return biased


def test_temperature_zero_takes_the_most_likely_each_step(model):
    """贪心的缓存生成与每步从头重算整段前文相同（不超过 max_seq_len 时），与种子无关。"""
    prompt = [1, 5, 9]
    expected = list(prompt)
    for _ in range(TINY.max_seq_len - len(prompt)):
        expected.append(model(torch.tensor([expected]))[0, -1].argmax().item())
    sampling = Sampling(max_tokens=TINY.max_seq_len - len(prompt), temperature=0, seed=1)
    found = songs(model, prompt, sampling, stop_id=-1)[0]
    assert found == expected[3:]
    assert len(set(found)) > 2
    assert songs(model, prompt, Sampling(max_tokens=13, temperature=0, seed=99), stop_id=-1)[0] == found


def test_sampled_tokens_follow_the_seeded_numbers(model):
    """抽样的缓存生成与每步重算、用 seed 的随机数逐个抽相同。"""
    sampling = Sampling(max_tokens=10, temperature=1.1, top_k=8, top_p=0.9, seed=42)
    numbers = torch.Generator().manual_seed(42)
    expected = [4, 8]
    for _ in range(10):
        expected.append(sample(model(torch.tensor([expected]))[:, -1], torch.rand(1, generator=numbers), sampling))
        expected[-1] = expected[-1].item()
    assert songs(model, [4, 8], sampling, stop_id=-1)[0] == expected[2:]


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.9999])
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_a_large_vocabulary_is_sampled_like_a_sorted_one(top_p, scale):
    """词表大时先只排最前面的：抽中的与全部排序后抽的相同；一行不因同批的行平坦而变。"""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 3 * generation.CANDIDATES, generator=generator) * scale
    logits[::2] *= 4  # 一半尖，一半平
    uniform = torch.rand(12, generator=generator)
    found = sample(logits, uniform, Sampling(top_p=top_p)).tolist()
    for row in range(12):
        probabilities, index = torch.softmax(logits[row].double(), -1).sort(descending=True)
        cumulative = probabilities.cumsum(0)
        kept = int((cumulative - probabilities < top_p).sum())
        place = int((cumulative[:kept] <= uniform[row] * cumulative[kept - 1]).sum())
        assert abs(index.tolist().index(found[row]) - place) <= 1  # 双精度的边界可差一位
        assert sample(logits[row : row + 1], uniform[row : row + 1], Sampling(top_p=top_p)).item() == found[row]


def test_min_tokens_forbids_the_stop_token_until_then(model):
    """不满 min_tokens 不收尾，满了照常；其余词元的抽法不变。"""
    eager = rigged(model, {STOP: 99.0})
    for least in (0, 1, 9):
        written = songs(eager, [1], Sampling(max_tokens=20, min_tokens=least), num_samples=2)
        assert [len(song) for song in written] == [least, least]
        assert STOP not in written[0]
    assert len(songs(eager, [1], Sampling(max_tokens=5, min_tokens=50))[0]) == 5
    sampling = Sampling(max_tokens=12, min_tokens=12, seed=2)
    banned = songs(model, [1], sampling, stop_id=-1, banned_ids=[STOP])
    assert songs(model, [1], sampling) == banned


def test_banned_tokens_never_appear(model):
    """被禁的即使最可能也不出现，贪心与抽样都如此。"""
    eager = rigged(model, {3: 50.0, 4: 50.0})
    assert set(songs(eager, [1], Sampling(max_tokens=20), stop_id=-1)[0]) <= {3, 4}
    for temperature in (0, 1.5):
        sampling = Sampling(max_tokens=60, temperature=temperature, top_p=1.0)
        written = songs(eager, [1], sampling, num_samples=3, stop_id=-1, banned_ids=[3, 4])
        assert not {3, 4} & set(sum(written, []))
        assert [len(song) for song in written] == [60] * 3


def test_stops_at_the_stop_token_without_giving_it(model):
    """写到 stop_id 就停，不给出它；它之前的与不停时相同。"""
    sampling = Sampling(max_tokens=200, top_p=1.0, seed=3)
    endless = songs(model, [1], sampling, stop_id=-1)[0]
    stop = endless[5]
    stopped = songs(model, [1], sampling, stop_id=stop)[0]
    assert stopped == endless[: endless.index(stop)]
    assert songs(rigged(model, {STOP: 99.0}), [1], sampling) == [[]]


@pytest.mark.parametrize("limit", [1, 7])
def test_max_tokens_is_the_exact_limit(model, limit):
    """恰好写 max_tokens 个。"""
    assert len(songs(model, [1], Sampling(max_tokens=limit), stop_id=-1)[0]) == limit


def test_songs_of_a_batch_equal_the_songs_alone(model, monkeypatch):
    """一批里第 i 首等于单独用 song_seed(seed, i) 写的；先写完的离开批次，其余不受影响。"""
    sampling = Sampling(max_tokens=40, top_p=0.95, repetition_penalty=1.1, seed=11)
    batch_sizes = []
    original = GPT.hidden

    def recorded(model, tokens, cache=None):
        batch_sizes.append(tokens.size(0))
        return original(model, tokens, cache)

    monkeypatch.setattr(GPT, "hidden", recorded)
    soon = rigged(model, {STOP: 1.0})
    together = songs(soon, [1, 5], sampling, num_samples=6)
    first, *steps = batch_sizes
    assert first == 1  # 几首的前文相同，只读一遍
    assert steps[0] == 6
    assert steps == sorted(steps, reverse=True)
    assert len(set(steps)) >= 4  # 有几首先后离开
    assert len({len(song) for song in together}) >= 4
    for row in range(6):
        alone = songs(soon, [1, 5], Sampling(**{**vars(sampling), "seed": generation.song_seed(11, row)}))[0]
        assert together[row] == alone, row


def test_steps_hold_only_unfinished_songs_in_order(model):
    """每步给出的是还没写完的几首，编号递增，写完的不再出现。"""
    gone, last = set(), set(range(5))
    for step in generate(rigged(model, {STOP: 1.0}), [1], Sampling(max_tokens=30), stop_id=STOP, num_samples=5):
        rows = [row for row, _ in step]
        assert rows == sorted(set(rows))
        assert not gone & set(rows)
        gone |= last - set(rows)
        last = set(rows)
    assert gone


def test_same_seed_same_song_other_seed_other_song(model):
    """种子决定歌；不动全局的随机状态。"""
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (songs(model, [1], Sampling(max_tokens=30, seed=s), stop_id=-1)[0] for s in (7, 7, 8))
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), before)


def watch_context(model: GPT, monkeypatch) -> list[int]:
    """记下每次前向之后模型看到的前文长度。"""
    lengths = []
    original = model.hidden

    def watched(tokens, cache=None):
        hidden = original(tokens, cache)
        lengths.append(cache.length)
        return hidden

    monkeypatch.setattr(model, "hidden", watched)
    return lengths


@pytest.mark.parametrize("num_samples", [1, 3])
def test_a_song_longer_than_the_context_goes_on(model, monkeypatch, num_samples):
    """写过 max_seq_len 之后继续写；模型看到的从不超过 max_seq_len，也从不少于一半。"""
    lengths = watch_context(model, monkeypatch)
    sampling = Sampling(max_tokens=5 * TINY.max_seq_len, seed=1)
    written = songs(model, [1, 5, 9], sampling, num_samples=num_samples, stop_id=-1)
    assert [len(song) for song in written] == [80] * num_samples
    assert max(lengths) <= TINY.max_seq_len
    assert min(lengths[TINY.max_seq_len :]) >= TINY.max_seq_len // 2
    for row, song in enumerate(written):
        assert (
            song == songs(model, [1, 5, 9], Sampling(max_tokens=80, seed=generation.song_seed(1, row)), stop_id=-1)[0]
        )


def test_after_the_context_is_full_the_latest_words_still_count(model):
    """满了之后接着写的那一个，就是只看最近半段前文时最可能的。"""
    sampling = Sampling(max_tokens=TINY.max_seq_len, temperature=0)
    prompt = [1, 5, 9]
    full = prompt + songs(model, prompt, sampling, stop_id=-1)[0]
    half = torch.tensor([full[: TINY.max_seq_len + 1][-(TINY.max_seq_len // 2) :]])
    assert full[TINY.max_seq_len + 1] == model(half)[0, -1].argmax().item()


@pytest.mark.parametrize("extra", [0, 1, 30])
def test_a_prompt_longer_than_the_context_counts_by_its_end(model, monkeypatch, extra):
    """前文等于或超过 max_seq_len 时照样写，只看末尾一段。"""
    lengths = watch_context(model, monkeypatch)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(3, 24, (TINY.max_seq_len + extra,), generator=generator).tolist()
    sampling = Sampling(max_tokens=20, seed=2)
    found = songs(model, prompt, sampling, stop_id=-1)[0]
    assert len(found) == 20
    assert max(lengths) <= TINY.max_seq_len
    assert found == songs(model, prompt[-TINY.max_seq_len :], sampling, stop_id=-1)[0]
    other_end = prompt[:-1] + [3 if prompt[-1] != 3 else 4]
    assert found != songs(model, other_end, sampling, stop_id=-1)[0]


def test_empty_prompt_is_an_error(model):
    """没有前文就没有可接的，报错说明。"""
    with pytest.raises(ValueError, match="前文"):
        next(generate(model, [], Sampling(), stop_id=STOP))


def test_inference_mode_does_not_leak_to_the_caller(model):
    """两步之间，调用者仍在普通模式里。"""
    for _ in generate(model, [1], Sampling(max_tokens=3), stop_id=-1):
        assert not torch.is_inference_mode_enabled()
    assert not torch.is_inference_mode_enabled()


# ---------------------------------------------------------------------------
# CUDA 图：没有 GPU 时，用同样只重放一步的替身代替录制
# ---------------------------------------------------------------------------

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def recorded(monkeypatch):
    """换掉录制与对设备的判断；记下每次录的批次大小。"""
    sizes = []

    def record(step, device):
        result = torch.full_like(step(), torch.nan)  # 录的时候并不计算
        sizes.append(len(result))
        return lambda: result.copy_(step()), result

    monkeypatch.setattr(cuda_graph, "record", record)
    return sizes


@pytest.fixture
def dirty(monkeypatch):
    """新分配的缓存里什么都可能有。"""
    hold = KVCache.hold

    def filled(cache, entries):
        if not hasattr(cache, "entries"):
            entries.fill_(torch.nan)
        hold(cache, entries)

    monkeypatch.setattr(KVCache, "hold", filled)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("num_samples", [1, 6])
@pytest.mark.parametrize("max_tokens", [10, 5 * TINY.max_seq_len])
@pytest.mark.parametrize("stop_id", [STOP, -1])
def test_replayed_songs_equal_the_usual(model, recorded, dirty, num_samples, max_tokens, stop_id):
    """写满上下文、有几首先写完、带重复惩罚时，逐词元与平常写的相同。"""
    soon = rigged(model, {STOP: 1.0})
    sampling = Sampling(max_tokens=max_tokens, top_p=0.95, repetition_penalty=1.1, seed=11)
    options = {"num_samples": num_samples, "stop_id": stop_id}
    expected = songs(soon, [1, 5, 9], sampling, **options)
    assert not recorded
    assert songs(soon, [1, 5, 9], sampling, make_step=RecordedStep, **options) == expected
    assert recorded


def test_batch_is_recorded_again_only_when_halved(model, recorded):
    """写完的歌先留在批次里，只剩一半才缩小、重录。"""
    sampling = Sampling(max_tokens=TINY.max_seq_len - 2, seed=3, top_p=1.0)
    written = songs(rigged(model, {STOP: 2.0}), [1], sampling, num_samples=16, make_step=RecordedStep)
    assert len({len(song) for song in written}) >= 5
    assert recorded[0] >= 8
    assert len(recorded) >= 3
    assert all(later * 2 <= earlier for earlier, later in zip(recorded, recorded[1:], strict=False))


@pytest.mark.parametrize("fault", ["raises", "wrong"])
def test_unusable_graph_is_told_and_left(model, recorded, monkeypatch, fault):
    """录不成或结果不符：警告一句，照常写出同样的歌。"""

    def record(step, device):
        if fault == "raises":
            raise RuntimeError("不支持")
        result = step().clone()
        return lambda: result.add_(1.0), result

    monkeypatch.setattr(cuda_graph, "record", record)
    sampling = Sampling(max_tokens=12, seed=4)
    with pytest.warns(UserWarning, match="不支持" if fault == "raises" else "不符"):
        found = songs(model, [1, 5], sampling, make_step=RecordedStep, num_samples=2)
    assert found == songs(model, [1, 5], sampling, num_samples=2)


def test_static_step_sees_nothing_after_its_place(model):
    """定长缓存的一步等于平常的一步，后面位置上是什么都不影响。"""
    tokens = torch.tensor([[1, 5, 9, 7]])
    with torch.inference_mode():
        cache = model.new_cache(1, 12)
        model(tokens[:, :3], cache)
        static = StaticCache(cache)
        first = model(tokens[:, 3:], static)
        cache.entries[:, :, :, :, 4:] = 1e4
        again = model(tokens[:, 3:], static)
        expected = model(tokens[:, 3:], cache)
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("device", "wanted", "tokens", "count", "expected"),
    [
        (CUDA, None, 200, 1, True),
        (CUDA, None, 8, 1, False),
        (CUDA, None, 200, 256, False),
        (CUDA, True, 8, 256, True),
        (CUDA, False, 200, 1, False),
        (CPU, True, 200, 1, False),
        (CPU, None, 200, 1, False),
    ],
)
def test_when_a_graph_is_used(device, wanted, tokens, count, expected):
    """只在 CUDA 上；不指定时看步数与批次。"""
    assert worth_recording(device, wanted, tokens, count) is expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="没有 CUDA")
def test_recorded_on_a_gpu(model):
    """真的录一次：写出的与逐个启动内核的相同。"""
    on_gpu = copy.deepcopy(model).cuda()
    sampling = Sampling(max_tokens=60, seed=5)
    expected = songs(on_gpu, [1, 5], sampling, num_samples=4, stop_id=-1)
    assert songs(on_gpu, [1, 5], sampling, num_samples=4, stop_id=-1, make_step=RecordedStep) == expected


def test_neighbouring_seeds_share_no_song():
    """种子 7 的第二首不是种子 8 的第一首；第一首就是种子本身。"""
    seeds = [generation.song_seed(seed, number) for seed in range(200) for number in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert [generation.song_seed(seed, 0) for seed in (0, 7, 2**31 - 1)] == [0, 7, 2**31 - 1]
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_refused_words_are_drawn_again_and_nothing_else_changes(model):
    """抽到了才另抽：歌里没有这些词元的，与不管它们时一样；有的，从那里起才不同。"""
    for seed in range(12):
        free = songs(model, [1, 5], Sampling(max_tokens=30, seed=seed), stop_id=-1)[0]
        refused = set(free[10:12])
        kept = songs(model, [1, 5], Sampling(max_tokens=30, seed=seed), stop_id=-1, refused_ids=sorted(refused))[0]
        assert not refused & set(kept)
        first = min(free.index(token) for token in refused)
        assert kept[:first] == free[:first]

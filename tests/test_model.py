"""模型：与参考实现一致、因果、RoPE、KV 缓存、初始化。"""

import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lively import CPU, TINY, lively, new_cache, some_tokens

import config
import model as model_module
from benchmark import as_neox
from model import GPT, Attention, FeedForward, ModelConfig, View, apply_rope, rope_cos_sin


def test_default_size_is_85_million_outside_the_embedding():
    """config.py 的默认值就是承诺的 85M。"""
    with torch.device("meta"):
        model = GPT(
            ModelConfig(config.BPE_VOCAB_SIZE, config.MAX_SEQ_LEN, config.N_LAYERS, config.N_HEADS, config.N_EMBED)
        )
    body, embedding = model.parameter_counts()
    assert 84e6 <= body <= 86e6
    assert embedding == 10000 * 768
    assert body + embedding == sum(parameter.numel() for parameter in model.parameters())


def test_logits_equal_the_reference_implementation():
    """与 transformers 的 GPT-NeoX（顺序残差、rotary_pct=1、erf GELU、共用输出层）同权重、同结果。"""
    model, tokens = lively(), some_tokens(32, batch=3)
    neox = as_neox(model)
    assert neox.config.rope_parameters["partial_rotary_factor"] == 1.0
    with torch.no_grad():
        expected, found = neox(tokens).logits, model(tokens)
    assert expected.std() > 0.5  # 结果有分量，误差界才有意义
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_reference_differs_where_the_architecture_differs():
    """上面的比较抓得住差别：换一种残差或 GELU 的参考，误差就超出 1e-4。"""
    model, tokens = lively(), some_tokens(32)
    neox = as_neox(model)
    assert neox.config.rope_parameters["partial_rotary_factor"] == 1.0
    with torch.no_grad():
        for layer in neox.gpt_neox.layers:
            layer.mlp.act = torch.nn.GELU(approximate="tanh")
        assert (neox(tokens).logits - model(tokens)).abs().max() > 1e-4
        for layer in neox.gpt_neox.layers:
            layer.mlp.act = torch.nn.GELU()
            layer.use_parallel_residual = True
        assert (neox(tokens).logits - model(tokens)).abs().max() > 1e-2


@settings(max_examples=30)
@given(st.sets(st.integers(1, 15)), st.integers(0, 5))
def test_cached_forward_equals_uncached_for_any_split(cuts, spare):
    """前文怎样分段写入缓存，logits 都与一次算完的相同。"""
    model, tokens = lively(), some_tokens(16)
    cache = new_cache(2, 16 + spare)
    edges = [0, *sorted(cuts), 16]
    pieces = [model(tokens[:, a:b], cache) for a, b in zip(edges, edges[1:], strict=False)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), atol=1e-5, rtol=1e-5)
    assert cache.length == 16


def test_cache_overflow_is_an_error_and_leaves_the_cache_usable():
    """装不下时报错，不默默丢词元；报错之后缓存还是原来的样子。"""
    model, tokens = lively(), some_tokens(9, batch=1)
    cache = new_cache(1, 8)
    model(tokens[:, :7], cache)
    with pytest.raises(ValueError, match="8"):
        model(tokens[:, 7:], cache)
    assert cache.length == 7
    torch.testing.assert_close(model(tokens[:, 7:8], cache)[:, 0], model(tokens[:, :8])[:, -1], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="缓存"):
        model(tokens[:, 8:], cache)


def test_keep_rows_keeps_the_right_songs():
    """有行离开批次后，留下的行接着算的结果不变。"""
    model, tokens = lively(), some_tokens(10, batch=4)
    cache = new_cache(4, 10)
    model(tokens[:, :9], cache)
    rows = torch.tensor([3, 1])
    cache.keep_rows(rows)
    found = model(tokens[rows, 9:], cache)
    torch.testing.assert_close(found[:, 0], model(tokens)[rows, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", [0, 1, 7, 18, 19])
def test_changing_a_token_changes_nothing_before_it(position):
    """因果：改第 t 个词元，t 之前的 logits 一位不变，t 处及以后改变。"""
    model, tokens = lively(), some_tokens(20, batch=1)
    changed = tokens.clone()
    changed[0, position] = (changed[0, position] + 1) % TINY.vocab_size
    before, after = model(tokens)[0], model(changed)[0]
    assert torch.equal(before[:position], after[:position])
    assert ((before[position:] - after[position:]).abs().amax(dim=-1) > 1e-4).all()


@pytest.mark.parametrize("shift", [1, 13, 500])
def test_rope_scores_depend_on_distance_only(shift):
    """RoPE：q·k 只由两者的距离决定；距离不同则不同。"""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(16, generator=generator).expand(1, 1, 40, 16) for _ in range(2))

    def scores(start: int) -> torch.Tensor:
        cos, sin = rope_cos_sin(start, 40, 16, 10000.0, CPU)
        return (apply_rope(q, cos, sin) @ apply_rope(k, cos, sin).transpose(-1, -2))[0, 0]

    here = scores(0)
    torch.testing.assert_close(scores(shift), here, atol=1e-3, rtol=0)
    for distance in (0, 1, 5, -5):
        along = here.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-4, rtol=0)
    assert (here[0, 1:] - here[0, :-1]).abs().max() > 0.1


def test_rope_leaves_position_zero_and_lengths_alone():
    """位置 0 不旋转；旋转不改变长度。"""
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    rotated = apply_rope(x, *rope_cos_sin(0, 5, 8, 10000.0, CPU))
    assert torch.equal(rotated[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
    assert (rotated[:, :, 1:] - x[:, :, 1:]).abs().max() > 0.1


def test_dropout_acts_only_in_training():
    """评估时与没有丢弃的模型完全相同；训练时词嵌入、注意力、残差处都有丢弃。"""
    dropping = ModelConfig(**{**asdict(TINY), "dropout": 0.3})
    model, plain, tokens = lively(dropping), lively(), some_tokens(16)
    assert torch.equal(model(tokens), plain(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))
    used = []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda module, *_: used.append(module.p))
    model(tokens)
    assert used == [0.3] * (1 + 2 * TINY.n_layers)
    model.eval()
    assert torch.equal(model(tokens), plain(tokens))


def test_attention_weights_are_dropped_only_in_training(monkeypatch):
    """丢弃率也传给了注意力，评估时为 0。"""
    rates = []
    original = F.scaled_dot_product_attention

    def recorded(*arguments, **options):
        rates.append(options["dropout_p"])
        return original(*arguments, **options)

    monkeypatch.setattr(model_module.F, "scaled_dot_product_attention", recorded)
    model, tokens = lively(ModelConfig(**{**asdict(TINY), "dropout": 0.3})), some_tokens(4)
    model(tokens)
    assert rates == [0.0, 0.0]
    model.train()
    model(tokens)
    assert rates[2:] == [0.3, 0.3]


def test_initialisation_is_that_of_gpt2():
    """N(0, 0.02)，汇入残差的投影除以 sqrt(2L)，偏置 0，LayerNorm 1 与 0。"""
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=500, max_seq_len=16, n_layers=3, n_heads=4, n_embed=128))
    seen = set()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == (1.0 if name.endswith("weight") else 0.0)).all(), name
            seen.add("norm")
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
            seen.add("bias")
        else:
            residual = name.endswith(("attention.proj.weight", "feed_forward.proj.weight"))
            expected = 0.02 / math.sqrt(2 * 3) if residual else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
            assert abs(parameter.mean().item()) < expected * 0.05, name
            seen.add("residual" if residual else "weight")
    assert seen == {"norm", "bias", "residual", "weight"}


def test_untrained_loss_is_that_of_a_uniform_guess():
    """刚初始化时每个词元的损失约为 ln V。"""
    torch.manual_seed(0)
    model, tokens = GPT(TINY), some_tokens(32, batch=4)
    loss = model.loss(tokens[:, :-1], tokens[:, 1:]).item() / (4 * 31)
    assert loss == pytest.approx(math.log(TINY.vocab_size), abs=0.1)


def test_state_dict_holds_parameters_only_and_the_head_is_the_embedding():
    """检查点里没有 RoPE 表；输出层与词嵌入是同一个参数。"""
    model = GPT(TINY)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert not list(model.buffers())
    of_vocabulary = [name for name, p in model.named_parameters() if TINY.vocab_size in p.shape]
    assert of_vocabulary == ["embedding.weight"]
    hidden = torch.randn(2, 3, TINY.n_embed)
    assert torch.equal(model.logits(hidden), hidden @ model.embedding.weight.T)


def test_gradient_of_the_tied_weight_has_both_sources():
    """共用的权重既收到输出层的梯度，也收到词嵌入的。"""
    model = lively().requires_grad_(True)
    model.loss(torch.tensor([[5]]), torch.tensor([[7]])).backward()
    gradient = model.embedding.weight.grad
    assert gradient[9].abs().max() > 0  # 既非输入又非目标：只来自输出层
    untied = F.softmax(model(torch.tensor([[5]])), -1)[0, 0, 5] * model.hidden(torch.tensor([[5]]))[0, 0]
    assert (gradient[5] - untied).abs().max() > 1e-4  # 输入的那一行还有词嵌入一份


def test_loss_is_the_summed_cross_entropy_without_ignored_targets():
    """求和，不平均；-1 的位置不计，也没有梯度从那里来。"""
    model, tokens = lively(), some_tokens(12)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[0, 3:6] = -1
    targets[1, 0] = -1
    logits = model(inputs)
    kept = targets != -1
    expected = F.cross_entropy(logits[kept], targets[kept], reduction="sum")
    torch.testing.assert_close(model.loss(inputs, targets), expected)
    parts = model.loss(inputs[:1], targets[:1]) + model.loss(inputs[1:], targets[1:])
    torch.testing.assert_close(parts, expected)
    assert model.loss(inputs, torch.full_like(targets, -1)).item() == 0.0


def test_rope_tables_are_precise_at_large_positions():
    """余弦与正弦始终是 float32；位置 4000 附近与双精度相差不到千分之二。"""
    cos, sin = rope_cos_sin(4000, 96, 64, 10000.0, CPU)
    assert cos.dtype == sin.dtype == torch.float32
    frequencies = 10000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    angles = torch.outer(torch.arange(4000, 4096, dtype=torch.float64), frequencies).repeat(1, 2)
    assert (cos - angles.cos()).abs().max() < 2e-3
    signs = torch.tensor([-1.0] * 32 + [1.0] * 32)  # 前一半已取负
    assert (sin - angles.sin() * signs).abs().max() < 2e-3


def test_rope_angles_do_not_become_bfloat16_with_the_model():
    """模型转成 bfloat16 后，远处位置的 logits 与 float32 的差不比近处大。

    角度若跟着变成 bfloat16，位置 256 以后连相邻两个都分不开。
    """
    long = ModelConfig(vocab_size=50, max_seq_len=1024, n_layers=1, n_heads=2, n_embed=32)
    model = lively(long)
    with torch.no_grad():
        model.blocks[0].attention.qkv.weight.mul_(3)  # 注意力集中，位置错一格就看得出
    half = GPT(long).eval().requires_grad_(False)
    half.load_state_dict(model.state_dict())
    half.bfloat16()
    rounded = GPT(long).eval().requires_grad_(False)
    rounded.load_state_dict(half.state_dict())  # 同样的权重，用 float32 计算
    tokens = some_tokens(900, batch=1)
    error = (half(tokens).float() - rounded(tokens)).abs().mean(dim=-1)[0]
    assert half(tokens).dtype == torch.bfloat16
    assert error[600:].mean() < 1.5 * error[50:250].mean() + 1e-3


def test_gelu_is_the_exact_one():
    """前馈网络用 erf 的 GELU，不是 tanh 近似。"""
    feed_forward = FeedForward(TINY).eval().requires_grad_(False)
    x = torch.linspace(-4, 4, 32).expand(1, 1, 32)
    feed_forward.fc.weight.copy_(torch.eye(32).repeat(4, 1))
    feed_forward.proj.weight.copy_(torch.cat((torch.eye(32), torch.zeros(32, 96)), dim=1))
    feed_forward.fc.bias.zero_(), feed_forward.proj.bias.zero_()
    exact = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    torch.testing.assert_close(feed_forward(x), exact, atol=1e-6, rtol=1e-6)
    assert (F.gelu(x, approximate="tanh") - exact).abs().max() > 1e-4


def test_attention_is_scaled_by_the_root_of_the_head_dimension():
    """单层注意力与照公式写出的结果相同（缩放、因果、各头分开）。"""
    torch.manual_seed(0)
    attention = Attention(TINY, 0).eval().requires_grad_(False)
    x = torch.randn(1, 6, 32)
    cos, sin = rope_cos_sin(0, 6, 8, 10000.0, CPU)
    q, k, v = attention.qkv(x)[0].chunk(3, dim=-1)
    heads = []
    for head in range(4):
        columns = slice(8 * head, 8 * head + 8)
        turned_q = apply_rope(q[None, None, :, columns], cos, sin)[0, 0]
        turned_k = apply_rope(k[None, None, :, columns], cos, sin)[0, 0]
        scores = turned_q @ turned_k.T / math.sqrt(8)
        scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf"))
        heads.append(scores.softmax(dim=-1) @ v[:, columns])
    expected = attention.proj(torch.cat(heads, dim=-1))
    view = View(cos[:, None, None], sin[:, None, None])
    torch.testing.assert_close(attention(x, view)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("n_heads", "n_embed"), [(3, 32), (4, 12), (32, 32)])
def test_head_dimension_must_be_even(n_heads, n_embed):
    """RoPE 要成对旋转：分不匀或每头奇数维的配置在建模型之前就报错。"""
    with pytest.raises(ValueError, match="n_heads"):
        ModelConfig(vocab_size=10, max_seq_len=8, n_layers=1, n_heads=n_heads, n_embed=n_embed)


def test_config_survives_a_dictionary():
    """ModelConfig 经字典往返不变（检查点里存的就是字典）。"""
    model_config = ModelConfig(9, 8, 1, 2, 8, dropout=0.2, rope_base=500.0, layer_norm_eps=1e-6)
    assert ModelConfig(**asdict(model_config)) == model_config


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_the_loss_in_parts_equals_the_whole(monkeypatch, rows):
    """分块算的损失与梯度同一次算完的一致（1e-5），分块不整除、带补齐的目标也一样。"""
    torch.manual_seed(0)
    model = GPT(ModelConfig(50, max_seq_len=8, n_layers=2, n_heads=2, n_embed=8))
    tokens, targets = torch.randint(50, (2, 5, 5))
    targets[1, 3:] = -1
    whole = model.loss(tokens, targets)
    whole.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    largest = []
    original = GPT.logits
    monkeypatch.setattr(GPT, "logits", lambda self, hidden: largest.append(len(hidden)) or original(self, hidden))
    monkeypatch.setattr(model_module, "MOST_LOGITS", 50 * rows)
    parts = model.loss(tokens, targets)
    parts.backward()
    assert max(largest) == rows
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-5)


def test_recomputing_activations_changes_nothing():
    """ACTIVATION_CHECKPOINTING：带丢弃时损失与每个梯度也一位不差，留着等反传的内存明显少；评估时不起作用。"""
    torch.manual_seed(0)
    model = GPT(ModelConfig(50, 32, 4, 4, 32, dropout=0.3)).train()
    tokens, targets = some_tokens(32), some_tokens(32, seed=2)
    found = []
    for model.activation_checkpointing in (False, True):
        kept = []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            loss = model.loss(tokens, targets)
            total = sum(kept)
        loss.backward()
        found.append((loss, [parameter.grad.clone() for parameter in model.parameters()], total))
        model.zero_grad()
    (plain, gradients, kept), (recomputed, same, less) = found
    assert torch.equal(plain, recomputed)
    assert all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))
    assert less < kept / 2


def test_rope_tables_follow_the_model_but_stay_float32():
    """RoPE 的表不在检查点里，随模型换设备，不随半精度转换；比上下文还长的一段也能算。"""
    model = lively()
    assert not any("rope" in name for name in model.state_dict())
    model.to(torch.bfloat16)
    assert all(table.dtype == torch.float32 for table in model.rope)
    assert all(table.is_meta for table in lively().to("meta").rope)
    longer = some_tokens(40)
    torch.testing.assert_close(lively()(longer)[:, :32], lively()(longer[:, :32]), atol=1e-5, rtol=1e-5)


def test_songs_in_a_window_do_not_see_each_other():
    """分歌的损失等于各首歌单独的损失之和（RoPE 只看相对位置）；不分歌的不等；有缓存时不看 song_start。"""
    model = lively()
    start = 1
    songs = [torch.cat((torch.tensor([start]), 2 + some_tokens(length, seed=length)[0] % 20)) for length in (5, 1, 9)]
    window = torch.cat(songs)[None]
    targets = torch.cat([torch.cat((song[1:], torch.tensor([-1]))) for song in songs])[None]
    with torch.no_grad():
        apart = sum(model.loss(song[None, :-1], song[None, 1:]) for song in songs if len(song) > 1)
        seen = model.loss(window, targets)
        model.song_start = start
        found = model.loss(window, targets)
        cached = model.hidden(window, new_cache(1, window.size(1)))
        model.song_start = None
        plain = model.hidden(window)
    torch.testing.assert_close(found, apart, atol=1e-4, rtol=1e-5)
    assert abs(seen - apart) > 1e-2
    torch.testing.assert_close(cached, plain, atol=1e-4, rtol=1e-4)

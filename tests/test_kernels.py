"""写歌用的模型：排布、量化之后与原来的相符。"""

import copy

import pytest
import torch
import torch.nn.functional as F
from lively import TINY, lively

from model import GPT, ModelConfig
from writing import kernels
from writing.kernels import WRITING_DTYPES, WritingLinear, prepare_for_writing

LARGER = ModelConfig(vocab_size=320, max_seq_len=48, n_layers=2, n_heads=2, n_embed=64)


def decoded(model: GPT, tokens: torch.Tensor, prompt: int) -> torch.Tensor:
    """先一次写入 prompt 个，其余逐个写入，各位置的 logits (B, T, V)。"""
    cache = model.new_cache(tokens.size(0), tokens.size(1))
    pieces = [model(tokens[:, :prompt], cache)]
    pieces += [model(tokens[:, t : t + 1], cache) for t in range(prompt, tokens.size(1))]
    return torch.cat(pieces, dim=1).float()


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("bf16", 0.02), ("fp16", 0.005), ("int8", 0.04)])
@pytest.mark.parametrize("batch", [1, 3])
def test_prepared_model_equals_the_plain_one(dtype, tolerance, batch):
    """排布、量化之后，整段与逐个解码的 logits 都与原模型相同（相对误差）；fp32 贪心的词元全部相同。"""
    plain = lively(LARGER)
    tokens = torch.randint(320, (batch, 24), generator=torch.Generator().manual_seed(3))
    expected = plain(tokens)
    found = decoded(prepare_for_writing(lively(LARGER), dtype), tokens, 5)
    assert (found - expected).norm() < tolerance * expected.norm()
    if dtype == "fp32":
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert torch.equal(found.argmax(-1), expected.argmax(-1))


KERNELS = ("_blocks", "_fp16", "_onednn_packed", "_int8_one_row", "_int8_rows")


def missing(*_):
    raise AttributeError("没有这个算子")


@pytest.mark.parametrize("dtype", WRITING_DTYPES)
def test_a_broken_or_missing_operator_is_not_used(dtype, monkeypatch):
    """内部算子没有、备好后一用就报错、或算错时，退回 F.linear，结果照旧。"""
    weight, bias, x = torch.randn(48, 32), torch.randn(48), torch.randn(11, 32)
    expected = F.linear(x, weight, bias)
    for fake in (missing, lambda *_: missing, lambda *_: lambda x: F.linear(x, weight * 0.9, bias)):
        for kernel in KERNELS:
            monkeypatch.setattr(kernels, kernel, fake)
        layer = WritingLinear(weight, bias, dtype)
        assert layer.kernels.one is layer.kernels.many
        assert not layer.kernels.special
        for rows in (x, x[:1]):
            found = layer(rows).float()
            assert (found - expected[: len(rows)]).norm() <= (1e-6 if dtype == "fp32" else 0.02) * expected.norm()


@pytest.mark.parametrize("dtype", WRITING_DTYPES)
@pytest.mark.parametrize("outputs", [48, 53])
def test_every_kernel_agrees_with_the_plain_layer(dtype, outputs):
    """一行多行用不同的核：每一行都与原来的线性层相符，带前面的维度也行；全零的一行得到偏置；输出数是质数也行。"""
    weight, bias = torch.randn(outputs, 32), torch.randn(outputs)
    layer = WritingLinear(weight, bias, dtype)
    for rows in (1, 2, 8, 9, 33):
        x = torch.randn(rows, 32)
        expected = F.linear(x, weight, bias)
        found = layer(x)
        assert (found - expected).norm() <= (1e-5 if dtype == "fp32" else 0.02) * expected.norm()
        assert torch.equal(layer(x[None, :, None]), found[None, :, None])
        torch.testing.assert_close(layer(x * 0).float(), bias.expand(rows, -1), rtol=0.01, atol=0.01)


def test_int8_rows_do_not_depend_on_each_other():
    """同一批里别的行再大，也不改变这一行的结果：一个位也不差。"""
    layer = WritingLinear(torch.randn(48, 32), torch.randn(48), "int8")
    x = torch.randn(5, 32)
    alone = layer(x)
    x[0] *= 1000
    assert torch.equal(layer(x)[1:], alone[1:])


@pytest.mark.parametrize("vnni", [True, False])
def test_int8_without_vnni_uses_seven_bits(vnni, monkeypatch):
    """没有 VNNI 的 CPU 上激活只用 7 位：单位阵照出激活量化成几种值，一行与多行都是。"""
    monkeypatch.setattr(kernels, "_eight_bits", lambda: vnni)
    layer = WritingLinear(torch.eye(512), torch.zeros(512), "int8")
    assert layer.kernels.special
    x = torch.linspace(-1, 1, 512)
    for rows in (x[None], x.repeat(3, 1)):
        found = layer(rows)
        torch.testing.assert_close(found, rows, rtol=0, atol=0.02)
        kinds = len(found[0].unique())
        assert kinds > 192 if vnni else 64 < kinds < 192


def test_int8_without_fbgemm(monkeypatch):
    """排布不了 int8 权重的 torch 或 CPU：照样能用，只是不快。"""

    def missing(*_):
        raise RuntimeError("没有 FBGEMM")

    monkeypatch.setattr(torch, "_make_per_channel_quantized_tensor", missing)
    weight, bias, x = torch.randn(48, 32), torch.randn(48), torch.randn(3, 32)
    layer = WritingLinear(weight, bias, "int8")
    assert not layer.kernels.special
    expected = F.linear(x, weight, bias)
    assert (layer(x) - expected).norm() <= 0.02 * expected.norm()


def test_int8_rounds_each_output_channel_by_its_own_scale():
    """每个输出通道按自己的最大值量化：误差不超过半格，一个大的通道不影响小的；全零的通道仍是零。"""
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    weight[3] *= 1000
    weight[5] = 0
    layer = WritingLinear(weight, None, "int8")
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    together = layer(torch.eye(64)).T  # (40, 64)：逐个权重
    one_by_one = torch.stack([layer(row[None])[0] for row in torch.eye(64)]).T
    for found in (together, one_by_one):
        assert ((found - weight).abs() <= step * 0.5 + weight.abs() * 1e-5).all()
        assert (found[5] == 0).all()


@pytest.fixture(scope="module")
def learned() -> tuple[GPT, torch.Tensor]:
    """训练过的模型，与它没有见过的一段。"""
    generator = torch.Generator().manual_seed(0)
    following = torch.randint(320, (320, 3), generator=generator)  # 每个词元后面只会是这三个之一

    def sequences(count: int) -> torch.Tensor:
        rows = [torch.randint(320, (count,), generator=generator)]
        for _ in range(40):
            rows.append(following[rows[-1], torch.randint(3, (count,), generator=generator)])
        return torch.stack(rows, dim=1)

    torch.manual_seed(0)
    model = GPT(LARGER).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        tokens = sequences(32)
        (model.loss(tokens[:, :-1], tokens[:, 1:]) / tokens.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval().requires_grad_(False), sequences(1)[:, :40]


@pytest.mark.parametrize(("dtype", "most"), [("bf16", 0.002), ("fp16", 0.001), ("int8", 0.005)])
def test_lower_precision_barely_changes_the_loss_of_a_trained_model(learned, dtype, most):
    """训练过的模型换成低精度，整段算与逐个解码的损失都只差千分之几。"""
    model, tokens = copy.deepcopy(learned[0]), learned[1]

    def loss(logits: torch.Tensor) -> float:
        return F.cross_entropy(logits[0, :-1].float(), tokens[0, 1:]).item()

    expected = loss(model(tokens))
    assert expected < 2.5  # 真的学到了：瞎猜是 5.8
    prepare_for_writing(model, dtype)
    for prompt in (40, 1):
        assert abs(loss(decoded(model, tokens, prompt)) / expected - 1) < most


def test_int8_needs_a_cpu():
    """不在 CPU 上的模型不能用 int8，报错而不是默默用别的。"""
    with torch.device("meta"):
        model = GPT(TINY)
    with pytest.raises(ValueError, match="int8"):
        prepare_for_writing(model, "int8")

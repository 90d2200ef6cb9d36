"""参数分组、Muon、AdamW 与学习率曲线。"""

import pytest
import torch

from model import GPT, ModelConfig
from optimizer import (
    WeightAverage,
    build_optimizers,
    learning_rate_at,
    orthogonalised,
    parameter_groups,
    set_learning_rate,
)

TINY = ModelConfig(vocab_size=20, max_seq_len=8, n_layers=2, n_heads=2, n_embed=8)
DECAYED = {
    f"blocks.{layer}.{name}.weight"
    for layer in range(2)
    for name in ("attention.qkv", "attention.proj", "feed_forward.fc", "feed_forward.proj")
}
KEPT = {"embedding.weight", "norm.weight", "norm.bias"} | {
    f"blocks.{layer}.{name}"
    for layer in range(2)
    for name in (
        "norm_1.weight",
        "norm_1.bias",
        "norm_2.weight",
        "norm_2.bias",
        "attention.qkv.bias",
        "attention.proj.bias",
        "feed_forward.fc.bias",
        "feed_forward.proj.bias",
    )
}


def names_in(model: GPT, group: dict) -> list[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for parameter in group["params"]]


def test_every_parameter_is_in_exactly_one_group():
    """逐个写明哪些参数衰减、哪些不衰减；没有遗漏，也没有重复。"""
    model = GPT(TINY)
    decayed, kept = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert set(names_in(model, decayed)) == DECAYED
    assert set(names_in(model, kept)) == KEPT
    every = names_in(model, decayed) + names_in(model, kept)
    assert sorted(every) == sorted(name for name, _ in model.named_parameters())


def test_decay_shrinks_only_the_weight_matrices():
    """梯度为零时走一步：线性层的权重缩小 lr·λ，其余一位不动。"""
    model = GPT(TINY)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build_optimizers("adamw", model, 0.5, 0.1, weight_decay=0.2)["adamw"].step()
    for name, parameter in model.named_parameters():
        if name in DECAYED:
            torch.testing.assert_close(parameter.detach(), before[name] * 0.9)
        else:
            assert torch.equal(parameter, before[name]), name


def test_adamw_settings():
    """β 与学习率如说明所写。"""
    (optimizer,) = build_optimizers("adamw", GPT(TINY), 2e-3, 5e-3, 0.1).values()
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert group["betas"] == (0.9, 0.95)
        assert group["lr"] == 2e-3


def test_muon_takes_the_weight_matrices_and_adamw_the_rest():
    """每个参数恰好归一个优化器：Muon 是线性层的权重矩阵，AdamW 是其余；各用自己的学习率。"""
    model = GPT(TINY)
    optimizers = build_optimizers("muon", model, 2e-3, 5e-3, 0.1)
    assert {name: type(optimizer).__name__ for name, optimizer in optimizers.items()} == {
        "muon": "Muon",
        "adamw": "AdamW",
    }
    (muon,), (adamw,) = (optimizer.param_groups for optimizer in optimizers.values())
    assert set(names_in(model, muon)) == DECAYED
    assert set(names_in(model, adamw)) == KEPT
    assert (muon["lr"], muon["weight_decay"]) == (5e-3, 0.1)
    assert (adamw["lr"], adamw["weight_decay"], adamw["betas"]) == (2e-3, 0.0, (0.9, 0.95))


def test_muon_is_the_one_of_torch_but_for_the_stacked_projections():
    """两步：除了 qkv，与 `torch.optim.Muon`（match_rms_adamw）的更新相同；qkv 等于把三块各当作一个矩阵。"""
    ours, theirs = GPT(TINY), GPT(TINY)
    theirs.load_state_dict(ours.state_dict())
    muon = build_optimizers("muon", ours, 2e-3, 1e-2, 0.1)["muon"]
    apart = {
        name: [torch.nn.Parameter(part.clone()) for part in parameter.chunk(3 if "qkv" in name else 1)]
        for name, parameter in theirs.named_parameters()
        if name in DECAYED
    }
    reference = torch.optim.Muon(
        [part for parts in apart.values() for part in parts], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        for name, parameter in ours.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            if name in apart:
                for part, gradient in zip(apart[name], parameter.grad.chunk(len(apart[name])), strict=True):
                    part.grad = gradient.clone()
        muon.step()
        reference.step()
    for name, parameter in ours.named_parameters():
        if name in apart:
            found, expected = parameter.detach(), torch.cat(apart[name]).detach()
            before = theirs.get_parameter(name).detach()
            assert (found - expected).norm() < 0.05 * (expected - before).norm(), name


def test_a_muon_update_is_nearly_orthogonal():
    """Muon 的一步：更新的奇异值几乎相等，均方根约为 0.2 倍学习率，与梯度的大小无关。"""
    model = GPT(TINY)
    muon = build_optimizers("muon", model, 2e-3, 1.0, 0.0)["muon"]
    weight = model.blocks[0].attention.proj.weight
    before = weight.detach().clone()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn(parameter.shape, generator=generator)
    muon.step()
    update = before - weight.detach()
    singular = torch.linalg.svdvals(update)
    assert singular.max() / singular.min() < 3
    assert 0.1 < update.square().mean().sqrt() < 0.3


def test_learning_rate_curve():
    """预热线性升到最高，余弦的中点是均值，最后一步正好是最低。"""

    def rate(step: int) -> float:
        return learning_rate_at(step, total=111, warmup=10, peak=1e-3, minimum=1e-4)

    assert [rate(step) for step in range(10)] == pytest.approx([1e-4 * (step + 1) for step in range(10)])
    assert rate(9) == rate(10) == pytest.approx(1e-3)
    assert rate(60) == pytest.approx((1e-3 + 1e-4) / 2)
    assert rate(35) == pytest.approx(1e-4 + 9e-4 * (1 + 0.5**0.5) / 2)
    assert rate(110) == pytest.approx(1e-4)
    assert rate(109) > rate(110)
    falling = [rate(step) for step in range(10, 111)]
    assert all(a > b for a, b in zip(falling, falling[1:], strict=False))


def test_learning_rate_stays_at_the_minimum_after_the_end():
    """超过总步数（例如接着训练时改小了 TRAIN_ITERS）不会回升。"""
    assert learning_rate_at(500, total=100, warmup=10, peak=1e-3, minimum=1e-4) == pytest.approx(1e-4)


@pytest.mark.parametrize("total", [1, 2, 3, 10])
def test_learning_rate_of_short_runs_is_within_bounds(total):
    """没有预热、只有一两步的训练也有正常的学习率。"""
    for step in range(total):
        assert 1e-4 <= learning_rate_at(step, total, warmup=0, peak=1e-3, minimum=1e-4) <= 1e-3
    assert learning_rate_at(0, total, warmup=0, peak=1e-3, minimum=1e-4) == pytest.approx(1e-3)


def test_set_learning_rate_sets_every_group():
    """每组都按自己最高学习率的同一倍数改；下一步真的用新的学习率。"""
    model = GPT(TINY)
    optimizers = build_optimizers("muon", model, 1.0, 3.0, weight_decay=0.0)
    for optimizer in optimizers.values():
        set_learning_rate(optimizer, 0.5)
        set_learning_rate(optimizer, 0.01)
    assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers.values()] == [0.03, 0.01]
    before = model.norm.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers["adamw"].step()
    torch.testing.assert_close(before - model.norm.weight.detach(), torch.full_like(before, 0.01), atol=1e-5, rtol=0)


def test_weight_average():
    """滑动平均：照公式；窗口短到没有意义时就是当前的权重；换上再换回，什么也没变。"""
    torch.manual_seed(0)
    model = GPT(TINY)
    weight = model.embedding.weight
    average = WeightAverage(model, 10)
    expected = weight.detach().clone()
    for step in range(1, 200):
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))
        average.update(step)
        decay = min(0.9, step / (step + 9))
        expected = decay * expected + (1 - decay) * weight.detach()
    torch.testing.assert_close(average.state()["embedding.weight"], expected)
    current = weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(model.embedding.weight.detach(), expected)
    assert torch.equal(model.embedding.weight, current)
    again = WeightAverage(model, 10)
    again.load(average.state())
    assert all(torch.equal(a, b) for a, b in zip(again.tensors, average.tensors, strict=True))
    off = WeightAverage(model, 1)
    off.update(1)
    with off.applied():
        assert torch.equal(model.embedding.weight, current)
    assert off.state() == {}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_every_precision_orthogonalises_the_smallest_gradients(precision):
    """fp16 装不下的小梯度也正交化；三种精度相差无几。"""
    matrices = 1e-9 * torch.randn(2, 48, 96, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalised(matrices, precision).float())
    assert singular.min() > 0.6
    assert singular.max() < 1.25


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16, None])
def test_muon_uses_what_the_hardware_has(run, monkeypatch, half):
    """没有 bf16 的设备上不用模拟的：有 fp16 用 fp16，都没有用 fp32；与是否混合精度无关。"""
    used = set()

    def watched(matrices, precision):
        used.add(precision)
        return orthogonalised(matrices, precision)

    monkeypatch.setattr("optimizer.orthogonalised", watched)
    monkeypatch.setattr("train.native_half", lambda device: half)
    assert run("half", "--optimizer", "muon", "--use_amp", "false", "--train_iters", "2")[0] == 0
    assert used == {half or torch.float32}

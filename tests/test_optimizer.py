"""参数分组、AdamW 与学习率曲线。"""

import pytest
import torch

from model import GPT, ModelConfig
from optimizer import build_adamw, learning_rate_at, parameter_groups, set_learning_rate

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
    build_adamw(model, learning_rate=0.5, weight_decay=0.2).step()
    for name, parameter in model.named_parameters():
        if name in DECAYED:
            torch.testing.assert_close(parameter.detach(), before[name] * 0.9)
        else:
            assert torch.equal(parameter, before[name]), name


def test_adamw_settings():
    """β 与学习率如说明所写。"""
    optimizer = build_adamw(GPT(TINY), learning_rate=2e-3, weight_decay=0.1)
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert group["betas"] == (0.9, 0.95)
        assert group["lr"] == 2e-3


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
    """两组都改到；下一步真的用新的学习率。"""
    model = GPT(TINY)
    optimizer = build_adamw(model, learning_rate=1.0, weight_decay=0.0)
    set_learning_rate(optimizer, 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(old - parameter.detach(), torch.full_like(old, 0.01), atol=1e-5, rtol=0)

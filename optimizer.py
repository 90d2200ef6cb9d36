"""参数分组、优化器与学习率曲线。"""

import math

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """两组参数：线性层的权重矩阵衰减；偏置、LayerNorm 和词嵌入不衰减。

    词嵌入不衰减，因为罕见字很少得到梯度，衰减会把它们抹平。
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed, kept = [], []
    for parameter in model.parameters():
        (decayed if parameter.dim() >= 2 and id(parameter) not in embeddings else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def build_adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW，β = (0.9, 0.95)（Brown 等 2020，GPT-3 附录 B）。"""
    device = next(model.parameters()).device
    return torch.optim.AdamW(
        parameter_groups(model, weight_decay),
        lr=learning_rate,
        betas=(0.9, 0.95),
        fused=device.type in ("cpu", "cuda"),
    )


def learning_rate_at(step: int, total: int, warmup: int, peak: float, minimum: float) -> float:
    """第 step 步（从 0 起）的学习率：线性预热到 peak，再余弦退火，最后一步是 minimum。"""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    return minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate

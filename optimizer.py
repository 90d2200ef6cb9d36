"""参数分组、优化器与学习率曲线。"""

import math

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """两组参数：线性层的权重矩阵衰减；偏置、LayerNorm 和词嵌入不衰减。

    词嵌入不衰减，因为罕见字很少得到梯度，衰减会把它们抹平。
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        (decayed if parameter.dim() >= 2 and id(parameter) not in embeddings else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def build_optimizers(
    name: str, model: nn.Module, learning_rate: float, muon_learning_rate: float, weight_decay: float
) -> dict[str, torch.optim.Optimizer]:
    """每个参数恰好归一个优化器；最高学习率记在各组的 `peak_lr` 里。

    Args:
        name: `adamw`：全部用 AdamW，β = (0.9, 0.95)（Brown 等 2020，GPT-3 附录 B）。
            `muon`：线性层的权重矩阵用 Muon（Jordan 等 2024），其余用 AdamW。Muon 把每个矩阵的更新正交化，
            再缩放到与 AdamW 相当的大小（Liu 等 2025，Muon is Scalable for LLM Training，2.2 节）。
        learning_rate, muon_learning_rate: AdamW 与 Muon 的最高学习率。
    """
    decayed, kept = parameter_groups(model, weight_decay)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")

    def adamw(*groups: dict) -> torch.optim.AdamW:
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=fused)

    if name == "muon":
        muon = torch.optim.Muon([decayed], lr=muon_learning_rate, adjust_lr_fn="match_rms_adamw")
        optimizers = {"muon": muon, "adamw": adamw(kept)}
    else:
        optimizers = {"adamw": adamw(decayed, kept)}
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def learning_rate_at(step: int, total: int, warmup: int, peak: float, minimum: float) -> float:
    """第 step 步（从 0 起）的学习率：线性预热到 peak，再余弦退火，最后一步是 minimum。"""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    return minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, fraction: float) -> None:
    """把每组的学习率设为它最高学习率的 fraction 倍。"""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * fraction

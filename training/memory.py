"""训练要多少显存；微批次随它来，不必先失败一次。"""

import torch

from flags import RunConfig
from model import GPT, MOST_LOGITS
from training.device import Runtime

ENOUGH_TOKENS = 2**15  # 一次前向有这么多词元就占满了一块 H100，再多也不更快（docs/measurements.md）
SHARE = 0.95  # 空闲的显存用到几成：碎片、cuBLAS 的工作区
# 每个词元、每层为反传留下的字节，以隐藏维度 C 为单位；编译与否差不到百分之三
SAVED = 40  # 两份 fp32 残差，其余是半精度的 qkv、旋转后的 q 与 k、注意力、四倍宽的两份
SAVED_DROPOUT = 2  # 两个丢弃各留一份遮罩
SAVED_INPUT = 4  # 重算各层时只留每层的输入
ENDS = 16  # 各层之外：词嵌入、最后的 LayerNorm 与它们的梯度
FULL_PRECISION = 1.4  # 不用混合精度时，是它的几倍
LOGIT_BYTES = 10  # 一块 logits：半精度的一份，fp32 的一份与它的梯度


def activation_bytes(model: GPT, tokens: int, mixed: bool) -> int:
    """一个微批次（共 tokens 个词元）前向时留给反传的字节。"""
    c = model.config
    layer, layers = SAVED + SAVED_DROPOUT * (c.dropout > 0), c.n_layers
    weights = 2 * model.parameter_counts()[0]  # 权重的半精度副本
    inside = layers * layer
    if model.activation_checkpointing:  # 反传到哪一层，哪一层全在
        inside, weights = layers * SAVED_INPUT + layer, weights // layers
    kept = tokens * c.n_embed * (inside + ENDS)
    return kept + weights if mixed else int(FULL_PRECISION * kept)


def fixed_bytes(model: GPT, optimizer: str, averaged: bool) -> int:
    """权重、梯度、优化器与滑动平均，都是 fp32，与微批次无关。"""
    inside, embedding = model.parameter_counts()
    states = {"adamw": 2 * (inside + embedding), "muon": inside + 2 * embedding}[optimizer]
    return 4 * ((3 if averaged else 2) * (inside + embedding) + states)


def step_bytes(model: GPT, config: RunConfig, rows: int, mixed: bool) -> int:
    """一步的显存峰值（字节）的估计，rows 个序列一次前向。"""
    tokens = rows * config.max_seq_len
    logits = LOGIT_BYTES * min(tokens * model.config.vocab_size, MOST_LOGITS)
    fixed = fixed_bytes(model, config.optimizer, config.average * config.train_iters >= 2)
    return fixed + logits + activation_bytes(model, tokens, mixed)


def free_bytes(device: torch.device) -> int | None:
    """这个进程还能用多少显存（CUDA 上是当前的卡）；问不到时 None。"""
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info()
    cap = int(torch.cuda.get_per_process_memory_fraction() * total)
    return min(free + torch.cuda.memory_reserved(), cap) - torch.cuda.memory_allocated()


def first_micro_batch(model: GPT, config: RunConfig, environment: Runtime, rows: int, free: int | None) -> int:
    """头一次试的微批次：够快就行，并且装得下。CPU 上整批一次。

    Args:
        rows: 这个进程每步几个序列。
        free: 空闲的显存（字节），模型已经在上面；None 是问不到。
    """
    if environment.device.type == "cpu":
        return rows
    count = min(rows, max(1, ENOUGH_TOKENS // config.max_seq_len))
    weights = 4 * sum(model.parameter_counts())
    while count > 1 and free is not None:
        if step_bytes(model, config, count, environment.amp_dtype is not None) - weights <= SHARE * free:
            break
        count //= 2
    return count

"""向老师学：损失的一部分朝着训练好的检查点的预测。"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from flags import RunConfig
from model import GPT, MOST_LOGITS
from terminal import UserError
from training import checkpoint

TEACHER_SHARE = 0.45  # 损失里朝着老师的那一份
TEMPERATURE = 1.2  # 两边的分布都摊平这么多再比，老师排在第二、第三的词元也说得上话


def teacher_paths(config: RunConfig) -> list[Path]:
    """TEACHER 里的各个检查点；相对路径从当前文件夹算起。"""
    return [Path(part.strip()).expanduser() for part in (config.teacher or "").split(",") if part.strip()]


def load_teachers(config: RunConfig) -> list[dict[str, Any]]:
    """
    Raises:
        CheckpointError: 不存在或损坏。
        UserError: 几个老师的分词器不同。
    """
    teachers = [checkpoint.load(path) for path in teacher_paths(config)]
    if len({teacher["tokenizer"] for teacher in teachers}) > 1:
        raise UserError("TEACHER 里几个检查点的分词器不同，不能一起教")
    return teachers


class Distillation:
    """学生的损失：(1 − α) 真实的下一个词元 + α τ² 与老师们平均的预测的交叉熵（Hinton 等 2015）。

    Args:
        teachers: 检查点的内容。
        tokenizer: 学生的分词器。

    Raises:
        UserError: 分词器不同。
    """

    def __init__(
        self, model: GPT, teachers: Sequence[Mapping[str, Any]], tokenizer: bytes, device: torch.device
    ) -> None:
        if any(teacher["tokenizer"] != tokenizer for teacher in teachers):
            raise UserError("TEACHER 的分词器与这次训练的不同：用老师的语料与词表从头训练，或换一个老师")
        self.model = model
        restored = (checkpoint.restore(teacher, Path("TEACHER"))[0] for teacher in teachers)
        self.teachers = [teacher.to(device).eval().requires_grad_(False) for teacher in restored]

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """全部目标之和（nat），目标为 -1 的不计。tokens、targets: (B, T) int64。"""
        with torch.no_grad():
            taught = [teacher.hidden(tokens).flatten(0, 1) for teacher in self.teachers]
        hidden, targets = self.model.hidden(tokens).flatten(0, 1), targets.flatten()
        rows = max(1, MOST_LOGITS // self.model.config.vocab_size // (1 + len(taught)))
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            parts = hidden[part], targets[part], *(states[part] for states in taught)
            total = total + recompute(self._sum_of_losses, *parts, use_reentrant=False, preserve_rng_state=False)
        return total

    def _sum_of_losses(self, hidden: Tensor, targets: Tensor, *taught: Tensor) -> Tensor:
        logits = self.model.logits(hidden).float()  # (N, V)
        true = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
        with torch.no_grad():
            each = (teacher.logits(states).float() for teacher, states in zip(self.teachers, taught, strict=True))
            wanted = sum(torch.softmax(logits / TEMPERATURE, -1) for logits in each) / len(taught)
            wanted = wanted * (targets >= 0)[:, None]
        towards = -(wanted * torch.log_softmax(logits / TEMPERATURE, -1)).sum()
        return (1 - TEACHER_SHARE) * true + TEACHER_SHARE * TEMPERATURE**2 * towards

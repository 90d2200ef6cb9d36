"""一步的结果，和损失或梯度不是有限的数而跳过的步。"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from terminal import Display, UserError
from training.processes import PeerError
from training.progress import Progress

MOST_IN_A_ROW = 5  # 连续跳过这么多步，就停下


class StepResult(NamedTuple):
    """一个优化步。"""

    iteration: int
    loss: float  # 整批的平均（nat/词元）
    gradient_norm: float  # 裁剪前的
    learning_rate: float

    @property
    def skipped(self) -> bool:
        """损失与梯度有一个不是有限的数，没有更新权重。"""
        return not (math.isfinite(self.loss) and math.isfinite(self.gradient_norm))


class Unread(NamedTuple):
    """做完了、还在设备上或路上的一步。"""

    iteration: int
    values: Tensor  # (2,)：损失、梯度范数，在主机上
    learning_rate: float
    arrived: torch.cuda.Event | None  # values 到了主机

    def read(self) -> StepResult:
        if self.arrived is not None:
            self.arrived.synchronize()
        loss, gradient_norm = self.values.tolist()
        return StepResult(self.iteration, loss, gradient_norm, self.learning_rate)


class SkippedSteps:
    """数着跳过的步，太多了就停下训练。"""

    def __init__(self, progress: Progress, scaler: torch.amp.GradScaler, is_main: bool, display: Display) -> None:
        self.progress, self.scaler, self.is_main, self.display = progress, scaler, is_main, display
        self.in_a_row = 0
        self._unread: list[Unread] = []

    def add(self, values: Tensor, learning_rate: float) -> None:
        """刚做完的一步。values: (2,) 损失、梯度范数；在显卡上的不等它，晚一步再读。"""
        arrived, found = None, values
        if values.is_cuda:
            found, arrived = values.to("cpu", non_blocking=True), torch.cuda.Event()
            arrived.record()
        self._unread.append(Unread(self.progress.iteration, found, learning_rate, arrived))
        while len(self._unread) > values.is_cuda:
            self._count(self._unread.pop(0).read())

    def settle(self) -> None:
        """把还没有读的都读了：评估、保存、记录之前。

        Raises:
            UserError: 连续跳过太多步。
        """
        while self._unread:
            self._count(self._unread.pop(0).read())

    def _count(self, result: StepResult) -> None:
        self.latest = result
        if not result.skipped:
            self.in_a_row = 0
            return
        self.progress.skipped_steps += 1
        if self.scaler.is_enabled() and math.isfinite(result.loss) and self.scaler.get_scale() >= 1:
            return  # fp16 的放大倍数还在往下试探，是常事
        self.in_a_row += 1
        number, found = result.iteration, f"损失 {result.loss:.4f}，梯度 {result.gradient_norm:.4f}"
        self.display.line(f"第 {number} 步跳过，权重不变：{found}（共跳过 {self.progress.skipped_steps} 步）")
        if self.in_a_row == MOST_IN_A_ROW:
            if not self.is_main:  # 各进程同时到这里，由主进程来说
                raise PeerError
            raise UserError(
                f"连续 {MOST_IN_A_ROW} 步的损失或梯度不是有限的数，停在第 {number} 步（{found}）。\n"
                "上一次的 latest.pt 完好：请调小 --learning_rate 或 --grad_clip，或加 --use_amp false，"
                "再运行就从它接着训练"
            )

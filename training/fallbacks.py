"""一批的损失与梯度，和训练头几步的退路：内存不足就把微批次减半，编译不了就逐步执行。"""

from collections.abc import Callable

import torch
from torch import Tensor

from model import GPT
from terminal import is_out_of_memory
from training.device import Runtime, seed_step
from training.processes import StopSignals
from training.reduction import GradientSum

ADAPTING_STEPS = 10  # 启动后的头几步才退；之后同样的错误都是真的错误
DONE, COMPILER_FAILED, OUT_OF_MEMORY, ABANDONED = range(4)  # 一次前向与反向的结局；各进程取最大的一个


class Abandoned(Exception):
    """收到停止的信号，手上的事没做完就放下；状态还停在上一步之后。"""


class ForwardBackward:
    """前向与反向，按微批次分几次做；数学不随微批次的大小而变。

    Args:
        seed: 丢弃等随机性由 (seed, 步数) 决定。
        batch_targets: 整批的目标数，含别的进程的；损失是它们的平均。
        micro_batch_size: 一次前向的序列数，各进程相同。
        say: 收一行消息。
        loss: 与 `GPT.loss` 同样的和；不给就是它。
    """

    def __init__(
        self,
        model: GPT,
        scaler: torch.amp.GradScaler,
        environment: Runtime,
        seed: int,
        batch_targets: int,
        micro_batch_size: int,
        use_compile: bool,
        say: Callable[[str], None],
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.model, self.scaler, self.environment, self.say = model, scaler, environment, say
        self.seed, self.batch_targets, self.micro_batch_size = seed, batch_targets, micro_batch_size
        self.stop = StopSignals()
        self.gradient_sum = GradientSum(model.parameters(), environment.processes)
        self.compiled = use_compile
        self.plain_loss = self.loss_function = loss or model.loss
        self._calls = 0
        if use_compile:
            try:  # dynamic=False：微批次减半后另编译一次，不要变成较慢的动态形状
                self.loss_function = torch.compile(self.plain_loss, dynamic=False)
            except RuntimeError as error:  # 这个 Python 或平台不支持
                self._do_without_compile(error)

    def __call__(self, x: Tensor, y: Tensor, iteration: int) -> Tensor:
        """x、y: (B, T) int64，这个进程的那部分。返回整批的平均损失 ()；`.grad` 是它的梯度，各进程相同。

        Raises:
            Abandoned: 编译时收到停止的信号。
        """
        adapting = self._calls < ADAPTING_STEPS
        self._calls += 1
        while True:
            loss, problem = None, DONE
            try:
                loss = self._accumulate(x, y, iteration, early=not adapting)
            except Exception as error:
                problem = self._problem_of(error, adapting)
            # 到了 except 之外再重来：异常还挂着那次前向的全部张量。
            if adapting:
                problem = self.environment.processes.all_reduce_max(problem)
            if problem == DONE and loss is not None:
                self.gradient_sum.finish(loss)
                return loss
            self.model.zero_grad(set_to_none=True)
            if problem == ABANDONED:
                raise Abandoned
            if problem == OUT_OF_MEMORY:
                self._halve_micro_batch()

    def _accumulate(self, x: Tensor, y: Tensor, iteration: int, early: bool) -> Tensor:
        """early：最后一次反传时就开始与别的进程相加；还会重来的头几步不能。"""
        seed_step(self.seed, iteration, self.environment.processes.rank)
        self.model.train()
        size = self.micro_batch_size
        total = torch.zeros((), device=x.device)
        for start in range(0, len(x), size):
            with self.environment.autocast():
                loss = self.loss_function(x[start : start + size], y[start : start + size]) / self.batch_targets
            if early and start + size >= len(x):
                self.gradient_sum.start_with_backward()
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _problem_of(self, error: Exception, adapting: bool) -> int:
        """头几步里对付得了的错误；别的照常抛出。"""
        if is_out_of_memory(error) and adapting and self.micro_batch_size > 1:
            return OUT_OF_MEMORY
        if not (adapting and self.compiled and _from_compiler(error)):
            raise error
        if self.stop.received:  # 编译器多半是被同一个信号停下的，不能因此就不编译
            return ABANDONED
        self._do_without_compile(error)
        return COMPILER_FAILED

    def _do_without_compile(self, error: BaseException) -> None:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        self.say(f"torch.compile 在这里不可用，改为逐步执行（{reason}）")
        self.loss_function, self.compiled = self.plain_loss, False

    def _halve_micro_batch(self) -> None:
        self.micro_batch_size = max(1, (self.micro_batch_size + 1) // 2)
        if self.environment.device.type == "cuda":
            torch.cuda.empty_cache()
        self.say(
            f"显存不足：微批次减为 {self.micro_batch_size}，多分几次累积，每步的数学不变"
            f"（在 config.py 里设 MICRO_BATCH_SIZE = {self.micro_batch_size} 可省去这次试探）"
        )


def _from_compiler(error: BaseException) -> bool:
    """错误是否来自 torch.compile（没有 C++ 编译器、没有 Triton …），而不是我们的代码。"""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "torch._functorch"))

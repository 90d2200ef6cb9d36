"""几个进程的梯度相加，与反传同时进行。"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors  # torch.nn.parallel 也用

from training.processes import Processes, Transfer

BUCKET_BYTES = 2**25  # 一块：小了时间花在往返上，大了开始得晚


class GradientSum:
    """反传到哪一块参数，就开始把哪一块的梯度与别的进程的相加，不等反传做完；传的时候多占一份梯度的内存。

    `torch.compile` 的一张图到最后才一起给出全部梯度，那时各块只是连着传，不一块一块地等。

    Args:
        parameters: 模型的全部参数；反传从后往前给出梯度。
    """

    def __init__(self, parameters: Iterable[Tensor], processes: Processes) -> None:
        self._processes = processes
        self._buckets: list[list[Tensor]] = [[]]  # 照传的次序
        self._sent: list[tuple[Tensor, Transfer]] = []  # 前面这些块拼成的，正在传
        self._armed = False
        if processes.count == 1:
            return
        size = 0
        for parameter in reversed(list(parameters)):
            size += parameter.nbytes
            if self._buckets[-1] and size > BUCKET_BYTES:
                self._buckets.append([])
                size = parameter.nbytes
            self._buckets[-1].append(parameter)
        places = {id(each): place for place, bucket in enumerate(self._buckets) for each in bucket}
        for bucket in self._buckets:
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(lambda found: self._ready(places[id(found)]))

    def start_with_backward(self) -> None:
        """接下来的一次反传是这一步最后的：边做边传。"""
        self._waiting = [len(bucket) for bucket in self._buckets]
        self._armed = True

    def finish(self, total: Tensor) -> None:
        """等各块传完；没有开始的现在传。total () 与全部 `.grad` 就地换成各进程之和。"""
        if self._processes.count == 1:
            return
        self._armed = False
        while len(self._sent) < len(self._buckets):
            self._send()
        self._processes.all_reduce_sum([total])
        for bucket, (flat, transfer) in zip(self._buckets, self._sent, strict=True):
            transfer.wait()
            gradients = [_gradient(parameter) for parameter in bucket]
            torch._foreach_copy_(gradients, _unflatten_dense_tensors(flat, gradients))
        self._sent.clear()

    def _ready(self, place: int) -> None:
        """一个参数的梯度齐了。各进程照同样的次序传，所以前面的块齐了才传后面的。"""
        if not self._armed:
            return
        self._waiting[place] -= 1
        while len(self._sent) < len(self._buckets) and not self._waiting[len(self._sent)]:
            self._send()

    def _send(self) -> None:
        flat = _flatten_dense_tensors([_gradient(parameter) for parameter in self._buckets[len(self._sent)]])
        self._sent.append((flat, self._processes.begin_sum(flat)))


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad

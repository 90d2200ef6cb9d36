"""记下走过的算子：精度、设备、回主机问了几次。"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {f"aten.{name}.default" for name in ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select")}


class Trace(TorchDispatchMode):
    """其间走过的算子、注意力的输入的类型、各个结果的类型，和回主机问的次数。

    假张量（FakeTensorMode）没有值：问到的都答 answer，照样数。
    """

    def __init__(self, answer: float | None = None):
        super().__init__()
        self.answer = answer
        self.names: list[str] = []
        self.attention: set[torch.dtype] = set()
        self.results: set[torch.dtype] = set()
        self.reads: list[str] = []  # 各次问的是哪种设备上的张量
        self.on_cpu: list[str] = []  # 用到 CPU 张量（不是单个的数）的算子

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = str(op)
        self.names.append(name)
        masks = name.startswith(("aten.index.", "aten.index_put")) and args[1]
        if name in READS or any(each is not None and each.dtype == torch.bool for each in masks or ()):
            self.reads.append(args[0].device.type)
            if self.answer is not None and name in READS:
                return self.answer
        result = op(*args, **(kwargs or {}))
        if "scaled_dot_product" in name and "backward" not in name:
            self.attention |= {each.dtype for each in args[:3]}
        found, given = (
            [each for each in tree_leaves(tree) if isinstance(each, torch.Tensor)] for tree in (result, args)
        )
        self.results |= {each.dtype for each in found}
        if any(each.device.type == "cpu" and each.dim() for each in found + given):
            self.on_cpu.append(name)
        return result

"""参数分组、优化器与学习率曲线。"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn


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


class Muon(torch.optim.Optimizer):
    """把每个矩阵的动量正交化，作为更新（Jordan 等 2024）；再缩放到与 AdamW 相当的大小（Liu 等 2025，2.2 节）。

    `torch.optim.Muon` 一次一个矩阵；这里同样形状的叠在一起算，qkv 的权重拆成查询、键、值三个，各自正交化。
    状态与它的相同，从前的检查点接得上。

    Args:
        parameters: 都是矩阵。
        triples: 其中由三个矩阵上下拼成的。
        precision: 正交化用的类型。
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        triples: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        precision: torch.dtype = torch.bfloat16,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._precision = precision
        self._triples = {id(parameter) for parameter in triples}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """`found_inf`（GradScaler 的约定：设备上的 0 或 1）是 1 时什么也不变，不必回主机问。"""
        (group,) = self.param_groups
        found_inf = getattr(self, "found_inf", None)
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters]
        averages = [self._momentum(parameter) for parameter in parameters]
        kept = 1 - group["lr"] * group["weight_decay"]
        if found_inf is not None:  # 梯度换成动量，动量就不变
            broken = found_inf > 0
            gradients = [torch.where(broken, *pair) for pair in zip(averages, gradients, strict=True)]
            kept = torch.where(broken, 1.0, kept)
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, averages, group["momentum"])  # Nesterov
        torch._foreach_mul_(parameters, kept)
        stacks: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = {}
        for parameter, update in zip(parameters, updates, strict=True):
            parts = 3 if id(parameter) in self._triples else 1
            matrices = update.view(parts, -1, parameter.size(1))
            stacks.setdefault(tuple(matrices.shape[1:]), []).append((parameter, matrices))
        for shape, members in stacks.items():
            changes = orthogonalised(torch.cat([matrices for _, matrices in members]), self._precision).float()
            if found_inf is not None:
                changes = torch.where(broken, 0.0, changes)
            parts = changes.split([len(matrices) for _, matrices in members])
            whole = [change.view_as(parameter) for (parameter, _), change in zip(members, parts, strict=True)]
            step_size = group["lr"] * 0.2 * math.sqrt(max(shape))
            torch._foreach_add_([parameter for parameter, _ in members], whole, alpha=-step_size)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def orthogonalised(matrices: Tensor, precision: torch.dtype) -> Tensor:
    """(n, r, c) 的各个矩阵换成最近的（半）正交矩阵，近似：五次 Newton–Schulz，系数取自 Jordan 等 2024。"""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.float() if precision is torch.float16 else matrices.to(precision)  # fp16 装不下很小的数，先归一
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)).to(precision)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def build_optimizers(
    name: str,
    model: nn.Module,
    learning_rate: float,
    muon_learning_rate: float,
    weight_decay: float,
    half: torch.dtype | None = torch.bfloat16,
) -> dict[str, torch.optim.Optimizer]:
    """每个参数恰好归一个优化器；最高学习率记在各组的 `peak_lr` 里。

    Args:
        name: `adamw`：全部用 AdamW，β = (0.9, 0.95)（Brown 等 2020，GPT-3 附录 B）。
            `muon`：线性层的权重矩阵用 Muon（Jordan 等 2024），其余用 AdamW。Muon 把每个矩阵的更新正交化，
            再缩放到与 AdamW 相当的大小（Liu 等 2025，Muon is Scalable for LLM Training，2.2 节）。
        learning_rate, muon_learning_rate: AdamW 与 Muon 的最高学习率。
        half: 设备有硬件支持的半精度，Muon 用它正交化；None 是没有，用 fp32：由软件模拟的 bf16 慢得多
            （只有 AVX2 的 CPU 上五十倍，docs/log.md）。
    """
    decayed, kept = parameter_groups(model, weight_decay)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")

    def adamw(*groups: dict) -> torch.optim.AdamW:
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=fused)

    if name == "muon":
        triples = [parameter for name, parameter in model.named_parameters() if name.endswith("qkv.weight")]
        muon = Muon(decayed["params"], triples, muon_learning_rate, weight_decay, half or torch.float32)
        optimizers = {"muon": muon, "adamw": adamw(kept)}
    else:
        optimizers = {"adamw": adamw(decayed, kept)}
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def update_unless(broken: Tensor, optimizers: Iterable[torch.optim.Optimizer], scaler: torch.amp.GradScaler) -> None:
    """各走一步；broken（设备上的 bool）为真时权重与优化器的状态都不变。

    显卡上不等结果：由设备自己决定走不走，主机接着备下一步；MPS 上没有融合的 AdamW，仍要等。

    Args:
        scaler: 已经对各个优化器 `unscale_` 过。
    """
    if broken.device.type == "mps":
        if not broken:
            for optimizer in optimizers:
                optimizer.step()
    else:
        for optimizer in optimizers:
            optimizer.found_inf = broken.float()  # type: ignore[attr-defined]  # GradScaler 与融合的优化器之间的约定
            optimizer.step()
    scaler.update()


def learning_rate_at(step: int, total: int, warmup: int, peak: float, minimum: float) -> float:
    """第 step 步（从 0 起）的学习率：线性预热到 peak，再余弦退火，最后一步是 minimum。"""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    return minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * progress))


def scheduled_rate(step: int, total: int, warmup: int, peak: float, minimum: float, extended_from: int = 0) -> float:
    """第 step 步（从 0 起）的学习率。extended_from: 从走完的第几步接着训，从那里重新预热、退火；0 是没有。"""
    if not extended_from:
        return learning_rate_at(step, total, warmup, peak, minimum)
    steps = total - extended_from
    return max(minimum, learning_rate_at(step - extended_from, steps, min(warmup, steps // 10), peak, minimum))


def set_learning_rate(optimizer: torch.optim.Optimizer, fraction: float) -> None:
    """把每组的学习率设为它最高学习率的 fraction 倍。"""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * fraction


class WeightAverage:
    """权重的滑动平均，大约是最近 horizon 步的；模型还在晃，平均的已经到了中间（Polyak 与 Juditsky 1992）。

    Args:
        horizon: 不到 2 就是当前的权重，不另占内存。
    """

    def __init__(self, model: nn.Module, horizon: float) -> None:
        self._model, self._decay = model, 1 - 1 / max(1.0, horizon)
        self.tensors = [parameter.detach().clone() for parameter in model.parameters()] if horizon >= 2 else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """完成了第 step 步（从 1 起）。头几步的窗口短些，不留着初始化的权重。"""
        if self.tensors:
            decay = min(self._decay, step / (step + 9))
            current = [parameter.detach() for parameter in self._model.parameters()]
            torch._foreach_lerp_(self.tensors, current, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """其间模型的权重换成平均的。"""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for place, parameter in enumerate(self._model.parameters() if self.tensors else ()):
            parameter.data, self.tensors[place] = self.tensors[place], parameter.data

    def state(self) -> dict[str, Tensor]:
        names = [name for name, _ in self._model.named_parameters()]
        return dict(zip(names, self.tensors, strict=False))

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """从前的检查点没有的，从当前的权重起。"""
        for tensor, (name, parameter) in zip(self.tensors, self._model.named_parameters(), strict=False):
            tensor.copy_(saved.get(name, parameter.detach()))

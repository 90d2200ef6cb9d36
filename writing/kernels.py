"""只用于写歌的线性层：逐个词元解码时，时间几乎全花在把权重从内存读一遍上。"""

import functools
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import GPT

WRITING_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}

Multiply = Callable[[Tensor], Tensor]  # (…, 输入) → (…, 输出)


class Kernels(NamedTuple):
    """一行的、多行的核；special：这个 torch 有更快的多行的核。"""

    one: Multiply
    many: Multiply
    special: bool


class WritingLinear:
    """只用于写歌的线性层，在 CPU 上：权重换一种排布或精度，一行输入时少等内存。

    - 多行：算力要紧，用 oneDNN 的矩阵乘，权重预先排布；fp16 时用 float32 算，许多 CPU 没有 fp16 的矩阵乘。
    - 一行，fp32：`F.linear` 只用一个线程读权重；按输出分成几块成批地乘，每个线程读一块。
    - 一行，bf16、fp16：权重放进 fp16（bf16 的权重 fp16 也装得下，误差不过 2⁻²⁵），它的一行的核比 bf16 的快一倍。
    - int8：权重逐输出通道、激活逐行量化（同 torchao 的 int8_dynamic_activation_int8_weight），用 FBGEMM 相乘；
      一行时由它自己量化，快三成，激活的量化不对称。

    全项目只有这里的几个核用 torch 的内部算子；每个都先试算，报错或与 `F.linear` 不符就不用它。

    Args:
        weight: (输出, 输入)，float32；不改动它。
        bias: (输出,) 或 None。
        dtype: `WRITING_DTYPES` 的一个名称。
        one_row: 要不要备一行的核；另有编译好的一步时不要。

    第一次用到才排布：有编译好的一步时，多半用不到。
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: str, one_row: bool = True) -> None:
        self._given: tuple[Tensor, Tensor | None] | None = (weight, bias)
        self.dtype, self.one_row = dtype, one_row

    @functools.cached_property
    def kernels(self) -> Kernels:
        assert self._given is not None
        (weight, bias), self._given = self._given, None
        weight = weight.detach()
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        one, many, plain = _kernels(weight, self.dtype)
        faster = _working(many, weight, bias)
        several = faster or plain(bias)
        alone = self.one_row and _worth_its_own_kernel(self.dtype)
        return Kernels((_working(one, weight, bias) if alone else None) or several, several, faster is not None)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (…, 输入) → (…, 输出)，类型是所用的核的。"""
        kernels = self.kernels
        return (kernels.one if x.numel() == x.size(-1) else kernels.many)(x)


def _kernels(weight: Tensor, dtype: str) -> tuple[tuple, tuple, Callable[[Tensor], Multiply]]:
    """一行的核、多行的核（各连同备好的权重），和两者都用不了时的。"""
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32  # 多行时用它算
    if dtype == "int8":
        scale = (weight.abs().amax(dim=1) / 127).clamp_min(1e-12)  # (输出,)
        quantised = (weight / scale[:, None]).round().to(torch.int8)
        packed = _fbgemm_packed(quantised, scale)
        return (_int8_one_row, packed), (_int8_rows, packed), lambda bias: _plain(quantised * scale[:, None], bias)
    rounded = weight.to(WRITING_DTYPES[dtype]).float()
    one = _blocks if dtype == "fp32" else _fp16
    return (one, rounded), (_onednn_packed, rounded.to(kind)), lambda bias: _plain(rounded.to(kind), bias)


@functools.cache
def _worth_its_own_kernel(dtype: str) -> bool:
    """一行的核是不是真的不比多行的慢：因 CPU 而异（换一家的，fp16 的反而慢三成），所以现量，不到一秒。"""
    weight = torch.linspace(-1, 1, 16384).repeat(1024).view(16384, 1024)  # 缓存装不下，才像真的
    one, many, _ = _kernels(weight, dtype)
    with torch.inference_mode():
        alone, together = (_working(kernel, weight, weight.new_zeros(len(weight))) for kernel in (one, many))
        if alone is None or together is None:
            return True
        pairs = [[_seconds(call, weight[:1]) for call in (alone, together)] for _ in range(8)]  # 交替，取最快的
    fastest = [min(times) for times in zip(*pairs, strict=True)]
    return fastest[0] < 1.15 * fastest[1]  # 差不多时总取同一个，免得同样的种子这次与下次舍入不同


def _seconds(multiply: Multiply, x: Tensor) -> float:
    began = time.perf_counter()
    multiply(x)
    return time.perf_counter() - began


def _working(kernel: tuple, weight: Tensor, bias: Tensor) -> Multiply | None:
    """备好一个核，试算两行，与 F.linear 比较；用不了就是 None。"""
    make, *prepared = kernel
    rows = torch.linspace(-1, 1, 2 * weight.size(1)).view(2, -1)
    try:
        multiply = make(*prepared, bias)
        found = torch.cat([multiply(row) for row in rows.split(1)])
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
    expected = F.linear(rows, weight, bias)
    return multiply if (found - expected).norm() <= 0.02 * expected.norm() + 1e-6 else None


def _plain(weight: Tensor, bias: Tensor) -> Multiply:
    bias = bias.to(weight.dtype)
    return lambda x: F.linear(x.to(weight.dtype), weight, bias)


def _fp16(weight: Tensor, bias: Tensor) -> Multiply:
    weight, bias = weight.half(), bias.half()
    return lambda x: torch.addmv(bias, weight, x.reshape(-1).half()).view(*x.shape[:-1], -1)


def _blocks(weight: Tensor, bias: Tensor) -> Multiply:
    threads, (outputs, inputs) = torch.get_num_threads(), weight.shape
    blocks = next((n for n in range(threads, 8 * threads) if outputs % n == 0), None)
    if blocks is None or not torch.backends.mkl.is_available():
        raise NotImplementedError
    weight = weight.view(blocks, -1, inputs)

    def multiply(x: Tensor) -> Tensor:  # 写成 baddbmm，或 x 的步长不同，都慢四倍：走的不是 MKL 的同一个核
        products = torch.bmm(weight, x.reshape(1, 1, inputs).expand(blocks, 1, -1).transpose(1, 2))
        return (products.view(outputs) + bias).view(*x.shape[:-1], outputs)

    return multiply


def _onednn_packed(weight: Tensor, bias: Tensor) -> Multiply:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 32)  # 按 32 行排布的核，多几行少几行也快
    bias = bias.to(weight.dtype)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: multiply(x.to(bias.dtype), packed, bias, "none", [], "")


def _fbgemm_packed(quantised: Tensor, scale: Tensor) -> Any:
    """FBGEMM 排布过的 int8 权重；这个 torch 或 CPU 没有时为 None。"""
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 量化张量将移出 torch；没有的那天返回 None
            weight = torch._make_per_channel_quantized_tensor(quantised, scale.double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(weight, None)
    except (AttributeError, NotImplementedError, RuntimeError):
        return None


def _eight_bits() -> bool:
    """激活能不能用满 8 位；没有 VNNI 的 CPU 上两个乘积之和会饱和，只能用 7 位。"""
    return getattr(torch.cpu, "_is_vnni_supported", lambda: False)()


def _int8_one_row(packed: Any, bias: Tensor) -> Multiply:
    multiply, seven_bits = torch.ops.quantized.linear_dynamic.default, not _eight_bits()
    return lambda x: multiply(x, packed, seven_bits).add_(bias)


def _int8_rows(packed: Any, bias: Tensor) -> Multiply:
    levels = 127 if _eight_bits() else 63
    linear = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default

    def multiply(x: Tensor) -> Tensor:  # 每行先缩放到 [-1, 1]，量化的刻度就是定数，一行的结果不随别的行而变
        rows = x.reshape(-1, x.size(-1))
        largest = rows.abs().amax(dim=1, keepdim=True).clamp_min_(1e-12)
        products = linear(rows / largest, 1 / levels, levels + 1, packed)
        return products.mul_(largest).add_(bias).view(*x.shape[:-1], -1)

    return multiply


@torch.no_grad()
def prepare_for_writing(model: GPT, dtype: str, one_row: bool = True) -> GPT:
    """就地把模型改成只用于写歌的；改过的模型不能再训练或保存。先 `.to(device)` 再调用。

    CPU 上只换线性层与输出层（`WritingLinear`），其余保持 float32：一行激活不费内存，半精度的注意力慢三四倍。
    别的设备上整个模型转成那种精度。

    Args:
        dtype: `WRITING_DTYPES` 的一个名称。
        one_row: 见 `WritingLinear`。

    Raises:
        ValueError: 模型不在 CPU 上而 dtype 是 int8。
    """
    on_cpu = model.embedding.weight.device.type == "cpu"
    if dtype == "int8" and not on_cpu:
        raise ValueError("int8 只能在 CPU 上用")
    if not on_cpu:
        return model.to(WRITING_DTYPES[dtype]).eval().requires_grad_(False)
    model.float().eval().requires_grad_(False)
    model.head = WritingLinear(model.embedding.weight, None, dtype, one_row)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            plain = _plain_call(child, dtype, one_row)
            if plain is not None:  # 不是模块：少一层调用，也没有参数。一个词元才几毫秒，层层调用要占一成多
                delattr(module, name)
                setattr(module, name, plain)
    return model


def _plain_call(module: nn.Module, dtype: str, one_row: bool) -> Multiply | None:
    """写歌时代替这个模块的函数；None 表示不换。"""
    if isinstance(module, nn.Linear):
        return WritingLinear(module.weight, module.bias, dtype, one_row)
    if isinstance(module, nn.LayerNorm):
        shape, weight, bias, epsilon = module.normalized_shape, module.weight, module.bias, module.eps
        return lambda x: torch.layer_norm(x, shape, weight, bias, epsilon)
    return (lambda x: x) if isinstance(module, nn.Dropout) else None


def fastest_dtype(device: torch.device, half: torch.dtype | None, fused: bool = False) -> str:
    """写得最快而又可靠的精度。

    CPU 上有编译好的一步，或有原生 bf16 时，int8 最快；样例模型的每字比特数只变差万分之一以内，所以可以选它。

    Args:
        half: 设备有硬件支持的半精度类型；没有是 None。
        fused: 有没有编译好的一步。
    """
    if fused:
        return "int8"
    if half is None:
        return "fp32"
    if device.type == "cpu" and WritingLinear(torch.eye(64), None, "int8").kernels.special:  # 这个 torch 有 int8 算子
        return "int8"
    return "bf16" if half == torch.bfloat16 else "fp16"

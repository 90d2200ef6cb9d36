"""设备、精度、随机种子、内存。"""

import contextlib
import ctypes
import functools
import os
import platform
import re
import sys
from dataclasses import dataclass

import torch

from training.processes import Processes

try:
    import resource  # 仅 Unix
except ImportError:
    resource = None  # type: ignore[assignment]

# 张量核心上 bf16/fp16 稠密矩阵乘的峰值（FLOP/s，累加为 fp32），出自各卡的官方数据表与架构白皮书；
# GeForce 30、40、50 系是 fp32 着色器峰值的两倍。
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L20": 119.5e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 6000 Ada": 364e12,
    "RTX A6000": 154.8e12,
    "RTX A5000": 111.1e12,
    "RTX A4000": 76.7e12,
    "RTX 5090": 209.5e12,
    "RTX 5080": 112.6e12,
    "RTX 5070": 61.7e12,
    "RTX 4090 D": 147.1e12,
    "RTX 4090": 165.2e12,
    "RTX 4080": 97.5e12,
    "RTX 4070 Ti": 80.2e12,
    "RTX 4070": 58.3e12,
    "RTX 4060 Ti": 44.1e12,
    "RTX 4060": 30.2e12,
    "RTX 3090 Ti": 80e12,
    "RTX 3090": 71e12,
    "RTX 3080": 59.5e12,
    "RTX 3070": 40.6e12,
    "RTX 3060 Ti": 32.4e12,
    "RTX 3060": 25.5e12,
}
PRODUCT = 4096  # 不在表里的卡：量一次这么大的矩阵乘


class DeviceError(ValueError):
    """设备名有误，或这台机器没有这个设备。"""


@dataclass(frozen=True)
class Runtime:
    """一次运行的设备、精度与进程。

    Attributes:
        device: 计算设备。
        amp_dtype: 自动混合精度的类型；None 表示全程 fp32。
        processes: 一起训练的进程。
    """

    device: torch.device
    amp_dtype: torch.dtype | None
    processes: Processes

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.amp_dtype)

    @property
    def needs_scaler(self) -> bool:
        """fp16 的指数范围小，梯度要先放大再反传。"""
        return self.amp_dtype is torch.float16

    def describe(self) -> str:
        precision = {None: "fp32", torch.bfloat16: "bf16 混合精度", torch.float16: "fp16 混合精度"}[self.amp_dtype]
        many = f" · {self.processes.count} 个进程" if self.processes.count > 1 else ""
        return f"{device_name(self.device)}{many} · {precision} · torch {torch.__version__}"


def best_preset() -> str:
    """这台机器宜用的预设（config.py 的 PRESETS）。"""
    if torch.cuda.is_available():
        return "gpu"
    return "mac" if torch.backends.mps.is_available() else "cpu"


def pick_device(name: str) -> torch.device:
    """`auto` 或设备名 → torch.device。CUDA 上不用 cuDNN 的注意力：训练时与 Flash 一样快，写歌时每个长度都要另备一份
    计划，H100 上一个词元 66 毫秒（docs/measurements.md）。

    Raises:
        DeviceError: 设备名不认识，或这台机器没有。
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"不认识的设备：{name}（可用 auto、cpu、cuda、cuda:0、mps）")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"这台机器没有 {name}（找到 {torch.cuda.device_count()} 块 CUDA 显卡）；可用 --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("这台机器没有 mps；可用 --device cpu")
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
    return device


def native_half(device: torch.device) -> torch.dtype | None:
    """设备有硬件支持的半精度类型：bf16 优先，其次 fp16，都没有时 None。"""
    if device.type == "cuda":
        # including_emulation=False：老卡的 bf16 是模拟的，比 fp16 慢。
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else None
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # 私有接口，没有时按不支持处理
    return torch.bfloat16 if any(getattr(torch.cpu, name, bool)() for name in checks) else None


def pick_device_for(name: str, processes: Processes) -> torch.device:
    """几个进程一起训练时，各用本机编号的那块显卡。

    Raises:
        DeviceError: 同 `pick_device`；或指定了卡号，或 mps。
    """
    if processes.count == 1:
        return pick_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = pick_device(name)
    if device.type == "mps" or device.index is not None:
        raise DeviceError(f"几个进程一起训练时，--device 只能是 auto、cuda 或 cpu（现在是 {name}）")
    if device.type == "cuda":
        if processes.local_rank >= torch.cuda.device_count():
            raise DeviceError(f"这台机器有 {torch.cuda.device_count()} 块显卡，--nproc_per_node 不能更多")
        device = torch.device("cuda", processes.local_rank)
    return device


def setup(device_name: str, use_amp: bool, seed: int, processes: Processes) -> Runtime:
    """选定设备与精度、设随机种子、连起各进程。"""
    device = pick_device_for(device_name, processes)
    if device.type == "cuda":
        _prepare_cuda(device)
    if device.type == "cpu":  # 编译后的词嵌入梯度默认用原子加法，次序不定，接着训练就不能逐位重现
        torch.use_deterministic_algorithms(True)
        keep_freed_memory()
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(seed)
    processes.start(device)
    return Runtime(device, native_half(device) if use_amp else None, processes)


def _prepare_cuda(device: torch.device) -> None:
    if sys.platform == "linux":  # 微批次换了大小也不留碎片；要在第一次分配之前
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if device.index is not None:
        torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")
    if sys.platform == "win32" or "microsoft" in platform.release().lower():
        free, total = torch.cuda.mem_get_info()  # Windows 的驱动装不下就用内存，慢十倍也不报错：宁可报错
        torch.cuda.set_per_process_memory_fraction(min(1.0, free / total))


def keep_freed_memory() -> None:
    """让 glibc 留着释放的大块内存下次再用：默认每步都还给系统再要回来，清零缺页要占一成时间。"""
    m_trim_threshold, m_mmap_threshold = -1, -3  # <malloc.h>
    with contextlib.suppress(AttributeError, OSError, TypeError):  # 没有 mallopt：macOS、Windows、musl
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """让丢弃等随机性成为 (seed, step, rank) 的函数：接着训练时不必保存随机状态，也能逐位重现。"""
    torch.manual_seed(seed * 1_000_003 + step + rank * 0x9E3779B97F4A7C15 % 2**63)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"{torch.cuda.get_device_name(device)}（{total:.0f} GB）"
    if device.type == "mps":
        return "Apple GPU（MPS）"
    return f"CPU {_cpu_model()}（{torch.get_num_threads()} 线程）"


def _cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_features() -> str:
    """与速度有关的指令集，例如「AVX2 AVX-512 VNNI」：有没有它们，速度差到三倍。"""
    checks = {
        "AVX2": "_is_avx2_supported",
        "AVX-512": "_is_avx512_supported",
        "VNNI": "_is_vnni_supported",
        "AVX-512-BF16": "_is_avx512_bf16_supported",
        "AMX": "_is_amx_tile_supported",
    }
    return " ".join(name for name, check in checks.items() if getattr(torch.cpu, check, bool)()) or platform.machine()


def peak_flops(device: torch.device) -> float | None:
    """混合精度的峰值（FLOP/s），算 MFU 用；不在表里的卡是实测的一次矩阵乘，不是 CUDA 的为 None。"""
    if device.type != "cuda":
        return None
    return known_peak(device) or _measured_peak(device)


def known_peak(device: torch.device) -> float | None:
    """表里的峰值。"""
    return _peak_of(torch.cuda.get_device_name(device))


@functools.cache
def _measured_peak(device: torch.device) -> float:
    a, b = (torch.randn(PRODUCT, PRODUCT, device=device, dtype=native_half(device)) for _ in range(2))
    rates = []
    for _ in range(10):
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        a @ b
        ended.record()
        ended.synchronize()
        rates.append(2 * PRODUCT**3 / began.elapsed_time(ended) * 1e3)
    return max(rates)


def _peak_of(name: str) -> float | None:
    """显卡名 → 峰值；型号要整词相同，后缀不同的（Ti、SUPER、笔记本版 …）是别的卡。"""
    other = r"(?! (?:Ti|SUPER|Laptop|D\b|NVL|Max-Q))"
    return next((peak for key, peak in PEAK_FLOPS.items() if re.search(rf"\b{re.escape(key)}\b{other}", name)), None)


def peak_memory_gb(device: torch.device) -> float | None:
    """到目前为止的内存峰值（GB）：显卡上是张量占用，CPU 上是整个进程。"""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if resource is None or device.type == "mps":
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30

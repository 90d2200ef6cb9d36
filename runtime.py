"""设备、精度、随机种子、信号与显示：每个脚本开头设置一次。"""

import contextlib
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

try:
    import resource  # 仅 Unix
except ImportError:
    resource = None

# 张量核心上 bf16/fp16 稠密矩阵乘的峰值（FLOP/s，累加为 fp32），出自各卡的官方数据表。
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 4080": 97.5e12,
    "RTX 3090": 71e12,
    "RTX 3080": 59.5e12,
}


class DeviceError(ValueError):
    """设备名有误，或这台机器没有这个设备。"""


@dataclass(frozen=True)
class Runtime:
    """一次运行的设备与精度。

    Attributes:
        device: 计算设备。
        amp_dtype: 自动混合精度的类型；None 表示全程 fp32。
    """

    device: torch.device
    amp_dtype: torch.dtype | None

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
        return f"{device_name(self.device)} · {precision} · torch {torch.__version__}"


def has_accelerator() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def pick_device(name: str) -> torch.device:
    """`auto` 或设备名 → torch.device。

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


def setup(device_name: str, use_amp: bool, seed: int) -> Runtime:
    """选定设备与精度、设随机种子。"""
    device = pick_device(device_name)
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if device.type == "cpu":  # 编译后的词嵌入梯度默认用原子加法，次序不定，接着训练就不能逐位重现
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    torch.manual_seed(seed)
    return Runtime(device, native_half(device) if use_amp else None)


def seed_step(seed: int, step: int) -> None:
    """让丢弃等随机性成为 (seed, step) 的函数：接着训练时不必保存随机状态，也能逐位重现。"""
    torch.manual_seed(seed * 1_000_003 + step)


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


def peak_flops(device: torch.device) -> float | None:
    """硬件峰值（FLOP/s）；不在表中的设备为 None，日志里就不写 MFU。"""
    if device.type != "cuda":
        return None
    return _peak_of(torch.cuda.get_device_name(device))


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


class StopSignals:
    """Ctrl-C、SIGTERM、SIGHUP：第一次记下来，由训练循环在步末保存后结束；第二次立即结束。

    `graceful` 为 False 时（训练循环还没开始，没有可保存的东西）立即结束。
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.graceful = False

    @contextlib.contextmanager
    def installed(self) -> Iterator["StopSignals"]:
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        # nohup 让 SIGHUP 不起作用，后台脚本让 SIGINT 不起作用：照旧不理。
        numbers = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        previous = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        if not self.graceful or self.received is not None:
            self.received = number
            raise KeyboardInterrupt
        self.received = number


class Display:
    """终端显示：普通行，加一条随时改写的进度行（输出不是终端时没有进度行）。

    终端没了（tmux kill-session、管道另一头先走）就不再显示，训练不受影响。
    """

    def __init__(self, stream=None) -> None:
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self._progress_shown = False
        self._last_progress = 0.0
        with contextlib.suppress(AttributeError):
            self.stream.reconfigure(errors="replace")  # 终端编码写不出的字不该让训练中断

    def line(self, message: str = "") -> None:
        self._write(f"{self._erased()}{message}\n")

    def progress(self, message: str) -> None:
        """改写进度行，每秒至多五次。"""
        now = time.monotonic()
        if not self.live or now - self._last_progress < 0.2:
            return
        self._write(self._erased() + _cut(message, _terminal_columns() - 1))
        self._progress_shown, self._last_progress = True, now

    def _erased(self) -> str:
        """擦掉进度行的控制序列；没有进度行时为空。"""
        shown, self._progress_shown = self._progress_shown, False
        return "\r\033[K" if shown else ""

    def _write(self, content: str) -> None:
        try:
            print(content, end="", file=self.stream, flush=True)
        except OSError:
            self.live = False
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())  # 退出时的最后一次刷新也不再出错
            os.close(nowhere)


def _terminal_columns() -> int:
    try:
        return os.get_terminal_size().columns
    except OSError:
        return 80


def _cut(message: str, columns: int) -> str:
    """截到指定显示宽度（汉字占两列），防止进度行折行后擦不掉。"""
    width = 0
    for index, character in enumerate(message):
        width += 2 if ord(character) > 0x2E7F else 1
        if width > columns:
            return message[:index]
    return message


def duration(seconds: float) -> str:
    """秒数 → 「3 小时 20 分」「5 分 12 秒」「8 秒」。"""
    seconds = max(0, round(seconds))
    hours, minutes = seconds // 3600, seconds // 60 % 60
    if hours:
        return f"{hours} 小时 {minutes} 分"
    return f"{minutes} 分 {seconds % 60} 秒" if minutes else f"{seconds} 秒"

"""设备、精度、随机种子、进程、信号与显示：每个脚本开头设置一次。"""

import contextlib
import ctypes
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

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


PEER_TIMEOUT = timedelta(hours=2)  # 等别的进程的时限：主进程可能正在清洗很大的语料

T = TypeVar("T")


class DeviceError(ValueError):
    """设备名有误，或这台机器没有这个设备。"""


class PeerError(RuntimeError):
    """同一次训练的另一个进程先结束了。"""


class Processes:
    """`torchrun` 启动的一组进程；只有一个进程时，每个方法都什么也不必等。

    Attributes:
        rank, local_rank, count: 全局编号、本机编号、总数，取自 torchrun 设的环境变量。
    """

    def __init__(self) -> None:
        self.rank, self.local_rank, self.count = (
            int(os.environ.get(name) or default)
            for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
        )

    @property
    def is_main(self) -> bool:
        """写文件、记录、显示都只由主进程（编号 0）做。"""
        return self.rank == 0

    def start(self, device: torch.device) -> None:
        """与别的进程连起来：CPU 张量走 gloo，显卡张量走 NCCL。

        Raises:
            DeviceError: 连不上。
        """
        if self.count == 1:
            return
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=PEER_TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise DeviceError(f"{self.count} 个进程没有连起来：{str(error).splitlines()[0]}") from None

    def finish(self) -> None:
        """正常结束时，等全部进程都到这里再断开。"""
        self.barrier()
        if self.count > 1:
            dist.destroy_process_group()

    def share(self, total: int) -> slice:
        """total 个里归这个进程的一段；各进程的段首尾相接。"""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def barrier(self) -> None:
        self.largest(0)

    def largest(self, value: int) -> int:
        """各进程的 value 中最大的一个：用来一致地决定停下、重来。"""
        if self.count == 1:
            return value
        found = torch.tensor(value)
        with _expecting_peers():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """把每个张量就地换成各进程之和；各张量的类型与设备相同。"""
        if self.count == 1:
            return
        for group in _in_groups(tensors):  # 拼成大块再传：几百个小张量逐个传，时间都花在往返上
            whole = torch.cat([tensor.reshape(-1) for tensor in group])
            with _expecting_peers():
                dist.all_reduce(whole)
            for tensor, part in zip(group, whole.split([tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """把每个张量就地换成主进程的。"""
        if self.count > 1:
            with _expecting_peers():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def from_main(self, call: Callable[[], T]) -> T:
        """主进程执行 call，各进程得到它的结果；它出错时主进程照常抛出，其余进程等到它退出，得到 PeerError。"""
        message = [call() if self.is_main else None]
        if self.count > 1:
            with _expecting_peers():
                dist.broadcast_object_list(message, 0, device=torch.device("cpu"))
        return message[0]


def _in_groups(tensors: Iterable[Tensor], most: int = 2**24) -> Iterator[list[Tensor]]:
    """依次分组，每组加上下一个张量之前不到 most 个数（fp32 时 64 MB）。"""
    group: list[Tensor] = []
    for tensor in tensors:
        group.append(tensor)
        if sum(member.numel() for member in group) >= most:
            yield group
            group = []
    if group:
        yield group


_CONNECTION_LOST = re.compile(
    r"connection|closed by peer|reset|broken pipe|timed? ?out|remote process|socket|peer|unreachable|ncclRemoteError",
    re.I,
)


@contextlib.contextmanager
def _expecting_peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # 连接断开时 gloo 与 NCCL 各有各的英文错误
        first = str(error).strip().partition("\n")[0][:300]
        if _CONNECTION_LOST.search(str(error)):
            raise PeerError(first) from None
        raise DeviceError(f"进程之间的通信出错：{first}") from None


def leave(code: int) -> None:
    """出错退出前最后一步：进程组还连着，就不等它的析构（别的进程已不在，会一直等下去）。"""
    if dist.is_available() and dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


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
        if device.index is not None:
            torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if device.type == "cpu":  # 编译后的词嵌入梯度默认用原子加法，次序不定，接着训练就不能逐位重现
        torch.use_deterministic_algorithms(True)
        keep_freed_memory()
        torch.utils.deterministic.fill_uninitialized_memory = False
    torch.manual_seed(seed)
    processes.start(device)
    return Runtime(device, native_half(device) if use_amp else None, processes)


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

    Args:
        same_seconds: 第一次之后这么多秒内的不算第二次：关掉 tmux 会话时，内核与 shell 各发一次
            SIGHUP；torchrun 与调度器也会各发一次。
        say: 第一次时立刻说一句，收信号编号；在信号处理中执行。
    """

    def __init__(self, same_seconds: float = 1.0, say: Callable[[int], None] = lambda number: None) -> None:
        self.received: int | None = None
        self.graceful = False
        self._same_seconds, self._say, self._first = same_seconds, say, 0.0

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
        if not self.graceful:
            self.received = number
            raise KeyboardInterrupt
        if self.received is None:
            self.received, self._first = number, time.monotonic()
            self._say(number)
        elif time.monotonic() - self._first >= self._same_seconds:
            raise KeyboardInterrupt


def signal_name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


class Display:
    """终端显示：普通行，加一条随时改写的进度行（输出不是终端时没有进度行）。

    终端没了（tmux kill-session、管道另一头先走）就不再显示，训练不受影响。

    Args:
        quiet: 什么也不显示（torchrun 的其余进程）。
    """

    def __init__(self, stream=None, quiet: bool = False) -> None:
        self.stream, self.quiet = stream or sys.stdout, quiet
        self.live = not quiet and self.stream.isatty() and os.environ.get("TERM") != "dumb"
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

    def urgent(self, message: str) -> None:
        """在信号处理里也能用的一行：直接写到终端，不经过可能正写到一半的缓冲。"""
        if self.quiet:
            return
        with contextlib.suppress(OSError, ValueError, AttributeError):
            line = f"{self._erased()}{message}\n"
            os.write(self.stream.fileno(), line.encode(self.stream.encoding or "utf-8", errors="replace"))

    def _erased(self) -> str:
        """擦掉进度行的控制序列；没有进度行时为空。"""
        shown, self._progress_shown = self._progress_shown, False
        return "\r\033[K" if shown else ""

    def _write(self, content: str) -> None:
        if self.quiet:
            return
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

"""一起训练的几个进程，和停下训练的信号。"""

import contextlib
import io
import os
import pickle
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

PEER_TIMEOUT = timedelta(hours=2)  # 等别的进程的时限：主进程可能正在清洗很大的语料
CARD_TIMEOUT = timedelta(minutes=10)  # 显卡之间的：前后都有 gloo 对齐，等这么久就是出了错

T = TypeVar("T")


class CommunicationError(RuntimeError):
    """几个进程没有连起来，或通信出错。"""


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
        self._cards: dist.ProcessGroup | None = None  # 显卡张量走的

    @property
    def is_main(self) -> bool:
        """写文件、记录、显示都只由主进程（编号 0）做。"""
        return self.rank == 0

    def start(self, device: torch.device) -> None:
        """与别的进程连起来：CPU 张量走 gloo，显卡张量走 NCCL。

        Raises:
            CommunicationError: 连不上。
        """
        if self.count == 1:
            return
        try:
            dist.init_process_group("gloo", timeout=PEER_TIMEOUT)
            if device.type == "cuda":
                self._cards = dist.new_group(backend="nccl", timeout=CARD_TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise CommunicationError(f"{self.count} 个进程没有连起来：{str(error).splitlines()[0]}") from None

    def finish(self) -> None:
        """正常结束时，等全部进程都到这里再断开。"""
        self.barrier()
        if self.count > 1:
            dist.destroy_process_group()

    def rank_slice(self, total: int) -> slice:
        """total 个里归这个进程的一段；各进程的段首尾相接。"""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def barrier(self) -> None:
        self.all_reduce_max(0)

    def all_reduce_max(self, value: int) -> int:
        """各进程的 value 中最大的一个：用来一致地决定停下、重来。"""
        if self.count == 1:
            return value
        found = torch.tensor(value)
        with _expecting_peers():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def all_reduce_sum(self, tensors: Iterable[Tensor]) -> None:
        """把每个张量就地换成各进程之和。"""
        for tensor in tensors:
            self.begin_sum(tensor).wait()

    def begin_sum(self, tensor: Tensor) -> "Transfer":
        """开始把 tensor 就地换成各进程之和；`wait` 之后才能用它。"""
        if self.count == 1:
            return Transfer(None)
        with _expecting_peers():
            return Transfer(dist.all_reduce(tensor, group=self._group_of(tensor), async_op=True))

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """把每个张量就地换成主进程的。"""
        if self.count > 1:
            with _expecting_peers():
                for tensor in tensors:
                    dist.broadcast(tensor, 0, group=self._group_of(tensor))

    def broadcast_result(self, call: Callable[[], T]) -> T:
        """主进程执行 call，各进程得到它的结果；它出错时主进程照常抛出，其余进程等到它退出，得到 PeerError。

        结果里的张量（一个检查点有一个多 GB）不打包，在 CPU 上逐个传。
        """
        if self.count == 1:
            return call()
        if self.is_main:
            result, packed = call(), io.BytesIO()
            packer = _Packer(packed)
            packer.dump(result)
            message, tensors = [packed.getvalue()], packer.tensors
        else:
            message, tensors = [b""], []
        with _expecting_peers():
            dist.broadcast_object_list(message, 0, device=torch.device("cpu"))
            if not self.is_main:
                unpacker = _Unpacker(io.BytesIO(message[0]))
                result, tensors = unpacker.load(), unpacker.tensors
            for tensor in tensors:
                if tensor.numel():
                    dist.broadcast(tensor.detach().contiguous().view(-1).view(torch.uint8), 0)
        return result

    def _group_of(self, tensor: Tensor) -> "dist.ProcessGroup | None":
        return self._cards if tensor.is_cuda else None


class Transfer:
    """正在传的一块。"""

    def __init__(self, work: "dist.Work | None") -> None:
        self._work = work

    def wait(self) -> None:
        if self._work is not None:
            with _expecting_peers():
                self._work.wait()


class _Packer(pickle.Pickler):
    """张量只记下形状与类型，留在 `tensors` 里另外传。"""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value)
        return tuple(value.shape), value.dtype


class _Unpacker(pickle.Unpickler):
    """各个张量先是空的，等着收。"""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_load(self, found: Any) -> Tensor:
        shape, dtype = found
        self.tensors.append(torch.empty(shape, dtype=dtype))
        return self.tensors[-1]


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
        raise CommunicationError(f"进程之间的通信出错：{first}") from None


def leave(code: int) -> None:
    """出错退出前最后一步：进程组还连着，就不等它的析构（别的进程已不在，会一直等下去）。"""
    if dist.is_available() and dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


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

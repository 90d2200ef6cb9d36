"""脚本的外壳：标准流、错误怎样说、终端上的显示。"""

import argparse
import contextlib
import errno
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn


class UserError(Exception):
    """用户能自己改正的错误：只显示这一两行中文，退出码 2。"""


_MEMORY_WORDS = (
    "DefaultCPUAllocator",
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """显存或内存不足：CUDA 有自己的类型，CPU、MPS 与新的加速器只在文字里说。"""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        words in text
        for words in (
            "DefaultCPUAllocator",
            "out of memory",
            "can't allocate memory",
            "not enough memory",
            "_ALLOC_FAILED",
        )
    )


BROKEN_TEXT = re.compile("[\ud800-\udfff]")  # 不是 UTF-8 的字节，Python 读成孤立的代理项


def shortened(value: Any, most: int = 60) -> str:
    """放进消息里的值：太长的截断，不成字的换成问号。"""
    text = BROKEN_TEXT.sub("?", str(value))
    return text if len(text) <= most else f"{text[:most]}……（共 {len(text):,} 字）"


def _prepare_streams() -> None:
    """标准流关了的接到空设备（否则打开的文件会占用它的编号，消息写进文件里）；不是终端的一律写 UTF-8。"""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # 占用最小的空编号，正是这一个
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115
        elif number and hasattr(stream, "reconfigure"):  # 笔记本与 IDLE 的没有
            if stream.isatty():
                stream.reconfigure(errors="replace")  # 终端编码写不出的字写成问号，而不是报错
            else:
                stream.reconfigure(encoding="utf-8", errors="replace")


def _discard_output() -> None:
    """标准输出写不了了：退出时不再写一遍。"""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_script(
    main: Callable[[Sequence[str]], int | None],
    *user_errors: type[Exception],
    leave: Callable[[int], None] = lambda code: None,
) -> NoReturn:
    """脚本的外壳：用户能改正的错误变成一两行中文和退出码 2，其余错误保留完整回溯，退出码 1。

    Args:
        leave: 退出前最后做的事，收退出码。
    """
    _prepare_streams()
    try:
        code = main(sys.argv[1:]) or 0
    except user_errors as error:
        print(f"错误：{error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        code = 130
    except BrokenPipeError:  # 读我们输出的程序先走了，例如 head
        _discard_output()
        code = 0
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            _discard_output()
            print(f"错误：写不出去：{error.strerror}", file=sys.stderr)
            code = 2
        elif is_out_of_memory(error):
            print("错误：内存或显存不足：请减小批次、首数或模型", file=sys.stderr)
            code = 2
        else:
            traceback.print_exc()
            code = 1
    leave(code)
    sys.exit(code)


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
        if reconfigure := getattr(self.stream, "reconfigure", None):
            reconfigure(errors="replace")  # 终端编码写不出的字不该让训练中断

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
        if not hasattr(self.stream, "buffer"):  # 笔记本的标准流：没有终端，也没有半满的缓冲
            self._write(f"{self._erased()}{message}\n")
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
            with contextlib.suppress(OSError, ValueError, AttributeError):
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


def line_numbers(text: str, count: int) -> set[int]:
    """`1-4` 或 `1,3` → 行号，从 1 起。

    Raises:
        UserError: 写法有误，或没有那一行。
    """
    numbers: set[int] = set()
    for part in text.replace("，", ",").split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise UserError(f"行号应是 3、1-4 或 1,3 这样：{text}")
        if not 1 <= int(first) <= int(last or first) <= count:
            raise UserError(f"这首有 {count} 行，没有第 {part.strip()} 行")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


class ChineseHelp(argparse.RawDescriptionHelpFormatter):
    """--help 的排法。"""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)

    def _format_args(self, action, default_metavar) -> str:
        return action.metavar or default_metavar  # 缺了值由我们报错，所以不必写成可省略的 [值]

    def add_usage(self, usage, actions, groups, prefix=None) -> None:
        super().add_usage(usage, actions, groups, "用法：")


class ChineseParser(argparse.ArgumentParser):
    """命令行有误时，也只说一两行。"""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"命令行有误：{message}")

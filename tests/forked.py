"""在 fork 出的子进程里执行：省去每次载入 torch 的几秒。"""

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

NAMES = ("stdin", "stdout", "stderr")


def fork(call: Callable[[], int | None], streams: Sequence[int | None]) -> int:
    """在子进程里执行 call，返回进程号；streams 是三个标准流的描述符，None 是关着的。"""
    importlib.import_module("torch._inductor")  # 训练时要用，先载入，免得每个子进程各载两秒
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        for number, (stream, name) in enumerate(zip(streams, NAMES, strict=True)):
            if stream is None:
                os.close(number)
                setattr(sys, name, None)
            else:
                os.dup2(stream, number)
                mode = "w" if number else "r"
                setattr(sys, name, open(number, mode, buffering=1, encoding="utf-8", closefd=False))  # noqa: SIM115
        code = call() or 0
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BaseException:  # Python 退出时也会这样
        code = 120
    finally:
        os._exit(code)


def finish(process: int, seconds: float = 600) -> int:
    """等子进程结束，返回退出码；等不到就结束它，算失败。"""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise AssertionError(f"{seconds} 秒还没有结束")
        time.sleep(0.01)


def run(call: Callable[[], int | None], folder: Path, closed: Sequence[int] = (), seconds: float = 120):
    """在子进程里执行完 call：（退出码，标准输出，标准错误）；closed 是关着的标准流。"""
    outputs = [folder / "stdout", folder / "stderr"]
    files = [
        os.open(os.devnull, os.O_RDONLY),
        *(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in outputs),
    ]
    try:
        process = fork(call, [None if number in closed else file for number, file in enumerate(files)])
    finally:
        for file in files:
            os.close(file)
    code = finish(process, seconds)
    return code, *(path.read_text(encoding="utf-8") for path in outputs)

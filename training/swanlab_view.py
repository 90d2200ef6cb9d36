"""SwanLab 视图：把 metrics.jsonl 的记录转给 SwanLab。由 tracking.SwanLab 作为子进程启动，随时可以杀掉。

标准输入第一行是任务，第二行是训练怎样结束的；没有第二行就到了头，是训练进程没了。标准输出每行是说给用户的一句话。
"""

import contextlib
import functools
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

POLL_SECONDS = 1.0
ORPHAN_SECONDS = 60  # 训练结束、训练进程没了之后，最多还活这么久

Say = Callable[[str], None]


def main() -> None:
    orders, lines = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    for number in (0, 1):  # SwanLab 问不到什么，也显示不了什么
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):  # 训练收到后还要保存，它结束了这里再收尾
        signal.signal(getattr(signal, name), signal.SIG_IGN)

    say = functools.partial(print, file=lines, flush=True)
    job = json.loads(orders.readline())
    ended, how = threading.Event(), {"state": "crashed", "error": "训练进程没了"}
    viewing = threading.Thread(target=view, args=(job, ended, how, say), daemon=True)  # 主线程之外，它不装信号钩子
    viewing.start()
    with contextlib.suppress(ValueError):
        how.update(json.loads(orders.readline()))
    ended.set()
    viewing.join(ORPHAN_SECONDS)
    os._exit(1)


def view(job: dict[str, Any], ended: threading.Event, how: dict[str, Any], say: Say) -> None:
    """从启动到收尾，然后立即结束进程：SwanLab 留下的线程与退出钩子会一直等下去。"""
    with forgiving("SwanLab 启动失败，训练照常进行：{}", say):
        import swanlab

        mode = start(swanlab, job["run"], say)
        with forgiving("SwanLab 记录失败，训练照常进行：{}", say):
            for event in follow(job["metrics"], job["start"], ended):
                log(swanlab, event)
        ended.wait()
        with forgiving(f"SwanLab 收尾失败（{{}}），本地记录不受影响；可在联网后补传：{job['upload']}", say):
            swanlab.finish(**how)
            if mode == "offline":
                say(f"SwanLab 离线记录可在登录后上传：{job['upload']}")
    os._exit(0)


@contextlib.contextmanager
def forgiving(failure: str, say: Say) -> Iterator[None]:
    """SwanLab 的失败可以是任何错误，包括 SystemExit：只说一行。"""
    try:
        yield
    except BaseException as error:
        say(failure.format(" ".join(str(error).split())[:200] or type(error).__name__))


def start(swanlab: ModuleType, run: dict[str, Any], say: Say) -> str:
    """返回模式：没有登录过、连不上的转为离线，不询问；用户停用了它，进程就此结束。"""
    asked = swanlab.Settings()
    mode = "online" if asked.mode == "cloud" else asked.mode
    if mode == "disabled":
        os._exit(0)
    quiet = {"interactive": False, "terminal": {"proxy_type": "none"}, "probe": {"git": False, "requirements": False}}
    run = run | {"settings": swanlab.Settings(**quiet)}
    if mode == "online":
        if asked.api_key:
            with forgiving("SwanLab 联网失败（{}），改为本地离线记录", say):
                swanlab.init(mode=mode, **run)
                return mode
        else:
            say("SwanLab 未登录，记录只存本地 swanlog/（想上传：swanlab login；不用它：--use_swanlab false）")
        mode = "offline"
    swanlab.init(mode=mode, **run)
    return mode


def follow(path: str, position: int, ended: threading.Event) -> Iterator[dict[str, Any]]:
    """position 之后的记录，写一条给一条，到训练结束为止；坏行略过。"""
    last = False
    while not last:
        last = ended.wait(POLL_SECONDS)  # 先看再读：结束之前写的都读得到
        with contextlib.suppress(OSError), open(path, "rb") as file:
            file.seek(position if position <= os.path.getsize(path) else 0)  # 文件夹可能被移走，又重新建
            for line in file:
                if not line.endswith(b"\n"):
                    break
                position = file.tell()
                with contextlib.suppress(ValueError, TypeError):
                    if "iter" in (event := json.loads(line)):
                        yield event


def log(swanlab: ModuleType, event: dict[str, Any]) -> None:
    """event 里的数与试写的歌词；步数取自 event["iter"]。"""
    values: dict[str, Any] = {
        key: float(value)
        for key, value in event.items()
        if isinstance(value, (int, float)) and key not in ("iter", "time") and math.isfinite(value)
    }
    if "sample" in event:
        values["sample"] = swanlab.Text(event["sample"], caption=event["prompt"])
    swanlab.log(values, step=event["iter"])


if __name__ == "__main__":
    sys.path = [folder for folder in sys.path if Path(folder) != Path(__file__).parent]  # data.py 之类不是顶层模块
    main()

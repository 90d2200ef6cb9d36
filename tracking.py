"""训练记录：`metrics.jsonl` 是正本，SwanLab 是它的一个视图。SwanLab 出什么错都不影响训练。"""

import contextlib
import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

Say = Callable[[str], None]

INIT_SECONDS = 60  # 等 SwanLab 启动的时限，含载入与改为离线再试
FINISH_SECONDS = 30  # 等 SwanLab 收尾的时限
NOTICE_SECONDS = 5  # 等了这么久就说一声在等什么
THREAD_NAME = "swanlab-call"  # 替我们调用 SwanLab 的线程

_swanlab_is_loose = False  # SwanLab 启动过而没有好好收尾：它的线程与退出钩子会让进程一直等下去


def leave(code: int) -> None:
    """脚本退出前最后调用：SwanLab 没能好好收尾时立即结束进程，不等它；否则什么也不做。"""
    still_inside = any(thread.name == THREAD_NAME for thread in threading.enumerate())
    if not _swanlab_is_loose and not still_inside:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


class MetricsFile:
    """一行一个 JSON 对象的记录。

    Args:
        resume_iter: 接着训练的步数；这之后的旧记录会重新产生，先截掉。

    截不了时旧文件原样不动，`problem` 是原因；写第一行之前再试。
    """

    def __init__(self, path: Path, resume_iter: int) -> None:
        self.path, self._resume_iter = Path(path), resume_iter
        self.problem: OSError | None = None
        self._end: int | None = None  # 完好的记录到这个字节为止
        try:
            self._end = self._cut()
        except OSError as error:
            self.problem = error

    def _cut(self) -> int:
        """丢掉 resume_iter 之后的和不完整的行，返回剩下的字节数。

        Raises:
            OSError: 读不了，或截不了；文件原样不动。
        """
        end, later, damaged = 0, [], False  # 开头完好的字节数；坏行之后的好行
        try:
            with open(self.path, "rb") as file:
                for line in file:
                    kept = line.endswith(b"\n") and _iteration(line) <= self._resume_iter
                    damaged = damaged or not kept
                    if kept and damaged:
                        later.append(line)
                    elif kept:
                        end += len(line)
        except FileNotFoundError:
            return 0
        if later:
            return self._rewrite(end, later)
        if damaged:
            os.truncate(self.path, end)  # 不另占磁盘
        return end

    def _rewrite(self, end: int, later: list[bytes]) -> int:
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        try:
            with open(self.path, "rb") as old, open(temporary, "wb") as new:
                shutil.copyfileobj(old, new)
                new.seek(end)
                new.truncate()
                new.writelines(later)
                new.flush()
                os.fsync(new.fileno())
            os.replace(temporary, self.path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return end + sum(map(len, later))

    def log(self, event: Mapping[str, Any]) -> None:
        """追加一行；inf 与 nan 记作 null（fp16 的放大倍数试探时，梯度范数偶尔是 inf）。

        Raises:
            OSError: 没能写进去；可能只写了半行，下次写之前先去掉它。
        """
        finite = {key: None if _not_finite(value) else value for key, value in event.items()}
        line = json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"
        if self._end is None:
            self._end = self._cut()
        with open(self.path, "ab") as file:
            if file.tell() > self._end:
                file.truncate(self._end)
            file.write(line.encode("utf-8"))
            file.flush()
            self._end = file.tell()


def _iteration(line: bytes) -> float:
    """记录行的步数；不完整的行算作无穷大，会被截掉。"""
    try:
        found = json.loads(line)["iter"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
    return found if isinstance(found, int) else float("inf")


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


class SwanLab:
    """SwanLab 的一次运行；任何失败都只说一句，然后当作没有。

    没有登录过的机器自动转为离线记录，不询问、不等待。
    """

    def __init__(self, project: str, run_id: str, config: Mapping[str, Any], log_dir: Path, say: Say) -> None:
        self._say = say
        self._swanlab: ModuleType | None = None
        self._run_id = run_id
        self._logging = True  # 记录失败一次就不再记，但仍要在时限内收尾
        self._offline = False
        options = {
            "project": project,
            "name": f"{project}-{run_id[:6]}",
            "id": run_id,
            "resume": "allow",
            "config": dict(config),
            "log_dir": str(log_dir),
        }
        with self._forgiving("启动"):
            self._start(options)

    def _start(self, options: dict[str, Any]) -> None:
        global _swanlab_is_loose
        deadline = time.monotonic() + INIT_SECONDS
        swanlab, asked, settings = self._within(deadline, _load)
        mode = "online" if asked.mode == "cloud" else asked.mode
        if mode == "disabled":
            return
        if mode == "online" and not asked.api_key:
            self._say("SwanLab 未登录，记录只存本地 swanlog/（想上传：swanlab login；不用它：--use_swanlab false）")
            mode = "offline"

        def init() -> None:
            swanlab.init(mode=mode, settings=settings, **options)

        _swanlab_is_loose = True
        try:
            self._within(deadline, init)
        except SwanLabError as error:
            if mode == "offline" or isinstance(error, NoAnswer):  # 卡住的那次还占着它的锁，不能再试
                raise
            self._say(f"SwanLab 联网失败（{error}），改为本地离线记录")
            mode = "offline"
            self._within(deadline, init)
        self._swanlab, self._offline = swanlab, mode == "offline"

    def _within(self, deadline: float, call: Callable[[], Any]) -> Any:
        """在守护线程里执行，等到 deadline 为止，期间主线程照常响应信号；返回 call 的结果。

        Raises:
            SwanLabError: call 出错（任何错误，连同 SystemExit）。
            NoAnswer: 到时还没有结果；线程留在那里。
        """
        results, errors, done = [], [], threading.Event()

        def target() -> None:
            try:
                results.append(call())
            except BaseException as error:
                errors.append(error)
            done.set()

        began = time.monotonic()
        told = False
        with _hooks_kept():
            threading.Thread(target=target, name=THREAD_NAME, daemon=True).start()
            while not done.is_set() and (now := time.monotonic()) < deadline:
                if now - began > NOTICE_SECONDS and not told:
                    self._say(f"正在等 SwanLab，最多再等 {deadline - now:.0f} 秒 …")
                    told = True
                done.wait(min(0.2, deadline - now))  # 分段等：Windows 上长的等待不理 Ctrl-C
        if errors:
            raise SwanLabError(_one_line(errors[0])) from None
        if not results:
            raise NoAnswer("到时限还没有回应")
        return results[0]

    @contextlib.contextmanager
    def _forgiving(self, action: str) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:  # SwanLab 的失败可以是任何错误，包括 SystemExit
            self._logging = False
            self._say(f"SwanLab {action}失败，训练照常进行：{_one_line(error)}")

    def log(self, event: Mapping[str, Any]) -> None:
        """记下 event 里的数；步数取自 event["iter"]。"""
        if self._swanlab is None or not self._logging:
            return
        values = {
            key: float(value)
            for key, value in event.items()
            if isinstance(value, (int, float)) and key not in ("iter", "time") and not _not_finite(value)
        }
        with self._forgiving("记录"):
            self._swanlab.log(values, step=int(event["iter"]))

    def log_sample(self, prompt: str, sample: str, iteration: int) -> None:
        if self._swanlab is None or not self._logging:
            return
        with self._forgiving("记录"):
            self._swanlab.log({"sample": self._swanlab.Text(sample, caption=prompt)}, step=int(iteration))

    def finish(self, state: str = "success", error: str | None = None) -> None:
        """收尾一次；再调用什么也不做。

        Args:
            state: success、crashed 或 aborted（被用户停下）。
            error: 出错或停下的原因。
        """
        global _swanlab_is_loose
        if self._swanlab is None:
            return
        swanlab, self._swanlab = self._swanlab, None
        reason = error or ("unknown" if state == "crashed" else None)  # crashed 必须有原因
        upload = f"swanlab sync --id {self._run_id} swanlog/run-*-{self._run_id}"
        deadline = time.monotonic() + FINISH_SECONDS

        def finish() -> bool:
            try:
                swanlab.finish(state=state, error=reason)
            except BaseException:  # 终端已经没了，它连道别的话都写不出：不让它出声，再来一次
                if time.monotonic() > deadline:  # 已经没人在等
                    raise
                with open(os.devnull, "w", encoding="utf-8") as sys.stdout:
                    swanlab.finish(state=state, error=reason)
                return False
            return True

        try:
            finished_well = self._within(deadline, finish)
        except SwanLabError as problem:
            self._say(f"SwanLab 收尾失败（{problem}），本地记录不受影响；可在联网后补传：{upload}")
            return
        _swanlab_is_loose = not finished_well
        if self._offline:
            self._say(f"SwanLab 离线记录可在登录后上传：{upload}")


class SwanLabError(Exception):
    """SwanLab 出了错；消息是一行。"""


class NoAnswer(SwanLabError):
    """SwanLab 到时还没有回应。"""


def _load() -> tuple[ModuleType, Any, Any]:
    """(swanlab, 用户的设置, 我们的设置)；只在用到时载入。"""
    # 它的进度条会藏起光标、接管 sys.stdout，放弃等它之后还会抹掉别人写的行。
    os.environ.setdefault("TTY_COMPATIBLE", "0")
    import swanlab

    ours = swanlab.Settings(
        interactive=False,  # 从不停下来问是否登录
        terminal={"proxy_type": "none"},
        probe={"git": False, "requirements": False},
    )
    return swanlab, swanlab.Settings(), ours


@contextlib.contextmanager
def _hooks_kept() -> Iterator[None]:
    """SwanLab 换掉的钩子一律换回：断网时，它的 excepthook 会把回溯压住不放。"""
    excepthook, stdout, stderr = sys.excepthook, sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.excepthook, sys.stdout, sys.stderr = excepthook, stdout, stderr


class Tracker:
    """训练循环用的记录器：写 metrics.jsonl，再转给 SwanLab（如果启用）。

    Args:
        metrics: None 表示什么也不写（不是主进程）。
    """

    def __init__(self, metrics: MetricsFile | None, swanlab: SwanLab | None, say: Say = print) -> None:
        self._metrics, self._swanlab, self._say = metrics, swanlab, say
        self._metrics_failed = False
        if metrics is not None and metrics.problem is not None:
            self._announce(metrics.problem)

    def _announce(self, error: OSError) -> None:
        """磁盘满了之类：记录会缺，训练照常；只说一次。"""
        if not self._metrics_failed:
            self._say(f"{self._metrics.path} 写不进去，训练照常进行：{error.strerror or _one_line(error)}")
        self._metrics_failed = True

    def log(self, event: Mapping[str, Any]) -> None:
        if self._metrics is not None:
            try:
                self._metrics.log(event)
            except OSError as error:
                self._announce(error)
        if self._swanlab is not None:
            self._swanlab.log(event)

    def log_sample(self, prompt: str, sample: str, iteration: int) -> None:
        if self._swanlab is not None:
            self._swanlab.log_sample(prompt, sample, iteration)

    def finish(self, state: str = "success", error: str | None = None) -> None:
        """state 为 success、crashed 或 aborted；error 是出错或停下的原因。"""
        if self._swanlab is not None:
            self._swanlab.finish(state, error)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

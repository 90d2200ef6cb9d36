"""训练记录：`metrics.jsonl` 是正本，SwanLab 是它的一个视图。SwanLab 出什么错都不影响训练。"""

import contextlib
import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Say = Callable[[str], None]

INIT_SECONDS = 60  # 等 SwanLab 启动的时限
FINISH_SECONDS = 30  # 等 SwanLab 收尾的时限


class MetricsFile:
    """一行一个 JSON 对象的记录。

    Args:
        resume_iter: 接着训练的步数；这之后的旧记录会重新产生，先截掉。
    """

    def __init__(self, path: Path, resume_iter: int) -> None:
        self.path = Path(path)
        self._cut_after(resume_iter)

    def _cut_after(self, resume_iter: int) -> None:
        try:
            found = self.path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        kept = "".join(f"{line}\n" for line in found.splitlines() if _iteration(line) <= resume_iter)
        if kept != found:
            temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
            temporary.write_text(kept, encoding="utf-8")
            os.replace(temporary, self.path)

    def log(self, event: Mapping[str, Any]) -> None:
        """追加一行；inf 与 nan 记作 null（fp16 的放大倍数试探时，梯度范数偶尔是 inf）。"""
        finite = {key: None if _not_finite(value) else value for key, value in event.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n")


def _iteration(line: str) -> float:
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
        self._swanlab = None
        self._logging = True  # 记录失败一次就不再记，但仍要在时限内收尾
        self._offline = False
        with self._forgiving("启动"):
            self._start(project, run_id, config, log_dir)

    def _start(self, project: str, run_id: str, config: Mapping[str, Any], log_dir: Path) -> None:
        import swanlab  # 只在用到时载入

        asked = swanlab.Settings()
        settings = swanlab.Settings(
            interactive=False,  # 从不停下来问是否登录
            terminal={"proxy_type": "none"},
            probe={"git": False, "requirements": False},
        )
        mode = "online" if asked.mode == "cloud" else asked.mode
        if mode == "disabled":
            return
        if mode == "online" and not asked.api_key:
            self._say("SwanLab 未登录，记录只存本地 swanlog/（想上传：swanlab login；不用它：--use_swanlab false）")
            mode = "offline"
        arguments = {
            "project": project,
            "name": f"{project}-{run_id[:6]}",
            "id": run_id,
            "resume": "allow",
            "config": dict(config),
            "settings": settings,
            "log_dir": str(log_dir),
        }
        outcome = _within(INIT_SECONDS, lambda: swanlab.init(mode=mode, **arguments))
        if isinstance(outcome, BaseException) and mode != "offline" and not isinstance(outcome, TimeoutError):
            self._say(f"SwanLab 联网失败（{_first_line(outcome)}），改为本地离线记录")
            mode = "offline"
            outcome = _within(INIT_SECONDS, lambda: swanlab.init(mode=mode, **arguments))
        if isinstance(outcome, BaseException):
            raise outcome
        self._swanlab, self._offline, self._run_id = swanlab, mode == "offline", run_id

    @contextlib.contextmanager
    def _forgiving(self, action: str):
        try:
            yield
        except (Exception, SystemExit) as error:  # SwanLab 的失败可以是任何错误，包括 SystemExit
            self._logging = False
            self._say(f"SwanLab {action}失败，训练照常进行：{_first_line(error)}")

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

    def finish(self, crashed: bool = False) -> None:
        if self._swanlab is None:
            return
        swanlab, self._swanlab = self._swanlab, None
        state = "crashed" if crashed else "success"
        outcome = _within(FINISH_SECONDS, lambda: swanlab.finish(state=state))
        if isinstance(outcome, BaseException):
            self._say(f"SwanLab 收尾失败（{_first_line(outcome)}），本地记录不受影响")
        elif self._offline:
            self._say(f"SwanLab 离线记录可在登录后上传：swanlab sync --id {self._run_id} swanlog/run-*-{self._run_id}")


class Tracker:
    """训练循环用的记录器：写 metrics.jsonl，再转给 SwanLab（如果启用）。"""

    def __init__(self, metrics: MetricsFile, swanlab: SwanLab | None, say: Say = print) -> None:
        self._metrics, self._swanlab, self._say = metrics, swanlab, say
        self._metrics_failed = False

    def log(self, event: Mapping[str, Any]) -> None:
        try:
            self._metrics.log(event)
        except OSError as error:  # 磁盘满了之类：记录会缺，训练照常
            if not self._metrics_failed:
                self._say(f"{self._metrics.path} 写不进去，训练照常进行：{_first_line(error)}")
            self._metrics_failed = True
        if self._swanlab is not None:
            self._swanlab.log(event)

    def log_sample(self, prompt: str, sample: str, iteration: int) -> None:
        if self._swanlab is not None:
            self._swanlab.log_sample(prompt, sample, iteration)

    def finish(self, crashed: bool = False) -> None:
        if self._swanlab is not None:
            self._swanlab.finish(crashed)


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """在守护线程里执行，最多等这么久；返回结果，或它抛出的错误，或 TimeoutError。"""
    outcome: list[Any] = [TimeoutError(f"{seconds} 秒内没有回应")]

    def target() -> None:
        try:
            outcome[0] = call()
        except BaseException as error:  # 连同 SystemExit 一并交给调用者判断
            outcome[0] = error

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

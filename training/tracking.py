"""训练记录：`metrics.jsonl` 是正本；SwanLab 是它的视图，由另一个进程照着记（swanlab_view.py）。"""

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Say = Callable[[str], None]

FINISH_SECONDS = 30  # 训练结束后等 SwanLab 收尾的时限
NOTICE_SECONDS = 5  # 等了这么久就说一声在等什么


class MetricsFile:
    """一行一个 JSON 对象的记录，按步数先后。写不进去（磁盘满了之类）只说一次，训练照常。

    Args:
        resume_iter: 接着训练的步数；这之后的旧记录会重新产生，先截掉。截不了时旧文件原样不动，写之前再试。

    Attributes:
        end: 完好的记录到这个字节为止。
    """

    def __init__(self, path: Path, resume_iter: int, say: Say = print) -> None:
        self.path, self._resume_iter, self._say = Path(path), resume_iter, say
        self.end, self._is_cut = 0, False
        with self._forgiving():
            self._cut()

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._say(f"{self.path} 写不进去，训练照常进行：{error.strerror or error}")
            self._say = lambda message: None

    def _cut(self) -> None:
        """截到 resume_iter 为止的最后一条记录；夹在前面的坏行留着，读的人略过。"""
        position = kept = 0
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as file:
            for line in file:
                position += len(line)
                with contextlib.suppress(ValueError, KeyError, TypeError):  # 不成记录的行
                    if line.endswith(b"\n") and json.loads(line)["iter"] <= self._resume_iter:
                        kept = position
        if kept < position:
            os.truncate(self.path, kept)
        self.end, self._is_cut = kept, True

    def log(self, event: Mapping[str, Any]) -> None:
        """追加一行；inf 与 nan 记作 null（fp16 的放大倍数试探时，梯度范数偶尔是 inf）。"""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in event.items()}
        line = json.dumps(finite, ensure_ascii=False)
        line = re.sub("[\x85\u2028\u2029]", lambda end: f"\\u{ord(end[0]):04x}", line)  # str.splitlines 当作换行的
        with self._forgiving():
            if not self._is_cut:
                self._cut()
            with open(self.path, "ab") as file:
                if file.tell() > self.end:  # 上次只写进去半行
                    file.truncate(self.end)
                file.write(f"{line}\n".encode())
                file.flush()
                self.end = file.tell()


class SwanLab:
    """SwanLab 视图的进程：从 `metrics` 现在的末尾读起。它出错、卡住、被杀都与训练无关，只说一句。"""

    def __init__(
        self, project: str, run_id: str, config: Mapping[str, Any], log_dir: Path, metrics: MetricsFile, say: Say
    ) -> None:
        self._say, self._abandoned = say, False
        self._process: subprocess.Popen | None = None
        self._upload = f"swanlab sync --id {run_id} swanlog/run-*-{run_id}"
        run: dict[str, Any] = {"project": project, "name": f"{project}-{run_id[:6]}", "id": run_id, "resume": "allow"}
        run |= {"config": dict(config), "log_dir": str(log_dir)}
        job = {"run": run, "metrics": str(metrics.path), "start": metrics.end, "upload": self._upload}
        # SwanLab 把进程的命令行记到网页上，所以带上训练的命令。
        command = [sys.executable, str(Path(__file__).with_name("swanlab_view.py")), *sys.argv]
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        apart: dict[str, Any] = {
            "start_new_session": True,
            "creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        }
        environment = {"TTY_COMPATIBLE": "0", **os.environ, "PYTHONIOENCODING": "utf-8"}
        try:
            self._process = subprocess.Popen(command, env=environment, encoding="utf-8", **streams, **apart)
            print(json.dumps(job), file=self._process.stdin, flush=True)
        except OSError as error:
            self._process = None
            say(f"SwanLab 启动失败，训练照常进行：{error.strerror}")
            return
        self._relay = threading.Thread(target=self._pass_on, args=(self._process,), daemon=True)
        self._relay.start()

    def _pass_on(self, process: subprocess.Popen) -> None:
        """转述它的每一句话；它没说什么就停了，也说一句。"""
        assert process.stdout is not None
        for line in process.stdout:
            self._say(line.rstrip("\n"))
        if process.wait() and not self._abandoned:
            self._say(f"SwanLab 记录失败，训练照常进行：它的进程停了（退出码 {process.returncode}）")

    def finish(self, state: str = "success", error: str | None = None) -> None:
        """告诉它训练怎样结束的（success、crashed、aborted 与原因），等它收尾；再调用什么也不做。"""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        reason = error or ("unknown" if state == "crashed" else None)  # crashed 必须有原因
        began, told = time.monotonic(), False
        try:
            with contextlib.suppress(OSError), process.stdin as orders:  # 它可能早就停了
                print(json.dumps({"state": state, "error": reason and reason[:2000]}), file=orders)
            while process.poll() is None and (waited := time.monotonic() - began) < FINISH_SECONDS:
                if waited > NOTICE_SECONDS and not told:
                    self._say(f"正在等 SwanLab，最多再等 {FINISH_SECONDS - waited:.0f} 秒 …")
                    told = True
                time.sleep(0.02)
            if process.poll() is None:
                self._say(f"SwanLab 收尾失败（没有回应），metrics.jsonl 完好；swanlog/ 里已有的可补传：{self._upload}")
        finally:  # 等的时候又按了 Ctrl-C，也到这里
            self._abandoned = process.poll() is None
            process.kill()
            self._relay.join(1)

"""训练记录：metrics.jsonl 始终完好；SwanLab 出什么错都不影响训练。"""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from training import swanlab_view, tracking
from training.tracking import MetricsFile, SwanLab

REPOSITORY = Path(__file__).resolve().parent.parent


def events(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


NOTE = "一\u2028二\u2029三\x85四\r五\x0b六\x1c七"  # str.splitlines 都当作换行


@pytest.fixture
def path(tmp_path) -> Path:
    """第 10 到 50 步的记录。"""
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    for iteration in range(10, 60, 10):
        metrics.log({"iter": iteration, "train_loss": 1 / 3, "val_loss": None, "grad_norm": math.inf, "note": NOTE})
    return metrics.path


def test_every_line_is_an_object(path):
    """一行一个 JSON 对象，数值不失精度，None 与 inf 写成 null；文字里的任何换行都不拆开它。"""
    found = events(path)
    assert [event["iter"] for event in found] == [10, 20, 30, 40, 50]
    assert found[0] == {"iter": 10, "train_loss": 1 / 3, "val_loss": None, "grad_norm": None, "note": NOTE}


@pytest.mark.parametrize(("resume", "kept"), [(0, []), (25, [10, 20]), (30, [10, 20, 30]), (99, [10, 20, 30, 40, 50])])
def test_resuming_cuts_what_will_be_made_again(path, resume, kept):
    """接着训练时，检查点之后的记录截掉，之前的一字不改。"""
    before = path.read_text(encoding="utf-8").splitlines()
    metrics = MetricsFile(path, resume)
    assert path.read_text(encoding="utf-8").splitlines() == before[: len(kept)]
    metrics.log({"iter": 60})
    assert [event["iter"] for event in events(path)] == [*kept, 60]


def test_a_line_cut_off_anywhere_spoils_nothing(path):
    """最后一行写到任何一个字节时断电，其余记录都在，接着写的也完好。"""
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(last, len(whole) + 1):
        path.write_bytes(whole[:end])
        MetricsFile(path, 50).log({"iter": 60})
        iterations = [event["iter"] for event in events(path)]
        assert iterations in ([10, 20, 30, 40, 60], [10, 20, 30, 40, 50, 60]), end


@pytest.mark.parametrize("bad", [b'{"iter": 2{"iter": 25}\n', b"[]\n", b"7\n", b"\n", b"\0" * 64 + b"\xe4\n"])
def test_damage_takes_only_itself(path, bad):
    """断电可能留下空字节、坏行：夹在中间的留着，读的人（SwanLab 视图）略过；末尾的截掉；好记录都在。"""
    lines = path.read_bytes().splitlines(keepends=True)
    for tail in (bad, bad[:-1]):
        path.write_bytes(b"".join([*lines[:2], bad, *lines[2:], tail]))
        MetricsFile(path, 50).log({"iter": 60})
        assert path.read_bytes() == b"".join([*lines[:2], bad, *lines[2:], b'{"iter": 60}\n'])
        ended = threading.Event()
        ended.set()
        assert [event["iter"] for event in swanlab_view.follow(path, 0, ended)] == [10, 20, 30, 40, 50, 60]


def test_a_line_half_written_is_read_later(path):
    """SwanLab 视图读到半行：下次再读。"""
    whole = path.read_bytes()
    later = [whole, whole[:-9]]
    ended = SimpleNamespace(wait=lambda seconds: path.write_bytes(later.pop()) and not later)
    assert [event["iter"] for event in swanlab_view.follow(path, 0, ended)] == [10, 20, 30, 40, 50]


def test_a_long_file_is_cut_in_little_memory(tmp_path):
    """几万行的旧记录边读边截，不整个读进内存。"""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"iter": {i}, "train_loss": 1.0}}\n' for i in range(30_000)), encoding="utf-8")
    tracemalloc.start()
    MetricsFile(path, 20_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert events(path)[-1]["iter"] == 20_000
    assert peak < path.stat().st_size / 2


def test_a_file_that_cannot_be_cut_is_left_alone(path, monkeypatch):
    """截不了时旧文件原样不动，只说一句，训练照常；能截了就截好再接着写。"""
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    said = []
    with monkeypatch.context() as patched:
        patched.setattr(os, "truncate", full)
        metrics = MetricsFile(path, 20, said.append)
        metrics.log({"iter": 30})
        metrics.log({"iter": 40})
        assert path.read_bytes() == before
    metrics.log({"iter": 50})
    assert [event["iter"] for event in events(path)] == [10, 20, 50]
    assert said == [f"{path} 写不进去，训练照常进行：No space left on device"]


def test_an_unreadable_file_stops_nothing(tmp_path):
    """metrics.jsonl 读不了（这里是个文件夹）：说一句，训练照常。"""
    said = []
    MetricsFile(tmp_path, 0, said.append).log({"iter": 1})
    assert len(said) == 1


def test_a_half_written_line_does_not_stick_to_the_next(path):
    """训练途中磁盘满了，只写进去半行：说一句；有了空间，下一行不会粘在半行后面。"""
    resource = pytest.importorskip("resource")
    said = []
    metrics = MetricsFile(path, 50, said.append)
    size = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        metrics.log({"iter": 60, "train_loss": 2.0})
        half = path.stat().st_size
        metrics.log({"iter": 70, "train_loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (half, len(said)) == (size + 10, 1)
    metrics.log({"iter": 80})
    assert [event["iter"] for event in events(path)] == [10, 20, 30, 40, 50, 80]


# ---- SwanLab ----

PACKAGE = """
import json, os, sys, threading, time
PLAN = json.loads(os.environ["FAKE_SWANLAB"])
def called(name, /, **arguments):
    with open(os.environ["FAKE_SWANLAB_CALLS"], "a", encoding="utf-8") as file:
        file.write(json.dumps([name, arguments]) + "\\n")
    print("🦢" * 99_999)
    print("🦢" * 99_999, file=sys.stderr)
    if PLAN.get(name):
        exec(PLAN[name].pop(0), globals())
class Settings:
    def __init__(self, **options):
        called("Settings", **options)
        self.options, self.mode, self.api_key = options, PLAN.get("mode", "online"), PLAN.get("api_key", "key")
def Text(data, caption=None):
    return [data, caption]
def init(settings, **options):
    in_main = threading.current_thread() is threading.main_thread()
    called("init", **options, settings=settings.options, in_main=in_main, tty=os.environ["TTY_COMPATIBLE"])
def log(values, step):
    called("log", values=values, step=step)
def finish(state, error):
    called("finish", state=state, error=error)
called("import")
"""


class FakeSwanLab:
    """代替 swanlab 的包，子进程从 PYTHONPATH 载入：记下每次调用；按 plan 依次执行几行代码：出错、卡住，或做别的事。"""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self._folder, self._calls, self._setenv = folder / "fake", folder / "calls.jsonl", monkeypatch.setenv
        self._folder.mkdir()
        (self._folder / "swanlab.py").write_text(PACKAGE, encoding="utf-8")
        self._setenv("PYTHONPATH", str(self._folder))
        self._setenv("FAKE_SWANLAB_CALLS", str(self._calls))

    def plan(self, **plan) -> None:
        """各函数依次执行的代码，与 mode、api_key；忘掉以前的调用。"""
        self._setenv("FAKE_SWANLAB", json.dumps(plan))
        self._calls.unlink(missing_ok=True)

    def calls(self, name: str) -> list[dict]:
        found = events(self._calls) if self._calls.exists() else []
        return [arguments for called, arguments in found if called == name]


@pytest.fixture
def fake(tmp_path, monkeypatch) -> FakeSwanLab:
    return FakeSwanLab(tmp_path, monkeypatch)


@pytest.fixture
def start(tmp_path, fake):
    """start(步数, 计划…) → (MetricsFile, SwanLab, 说过的话)；结束时没有留下进程。"""
    started = []

    def call(resume_iter=0, **plan):
        said = []
        fake.plan(**plan)
        metrics = MetricsFile(tmp_path / "metrics.jsonl", resume_iter)
        swanlab = SwanLab("chinese-lyrics", "run12345678", {"seed": 1}, tmp_path / "swanlog", metrics, said.append)
        started.append(swanlab._process)
        return metrics, swanlab, said

    yield call
    for process in started:
        if process is not None:
            process.kill()


def until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(number: int) -> bool:
    """进程不在了，或者结束了而还没有人收它。"""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{number}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z"


FOREVER = "import atexit; atexit.register(time.sleep, 60); threading.Thread(target=time.sleep, args=[60]).start()"


def test_logged_in_runs_online_and_resumes_by_id(start, fake, tmp_path):
    """登录过的：在线，用检查点里的编号与 resume="allow"，配置照传，一句话也不用说。

    它出的声看不见，一直等的线程与退出钩子不碍事；不上传 git 远端与包列表，不装信号钩子。
    """
    _, swanlab, said = start(init=[FOREVER])
    swanlab.finish()
    swanlab.finish()
    (init,) = fake.calls("init")
    assert (init["mode"], init["id"], init["resume"]) == ("online", "run12345678", "allow")
    assert (init["project"], init["name"]) == ("chinese-lyrics", "chinese-lyrics-run123")
    assert (init["config"], init["log_dir"]) == ({"seed": 1}, str(tmp_path / "swanlog"))
    quiet = {"interactive": False, "terminal": {"proxy_type": "none"}, "probe": {"git": False, "requirements": False}}
    assert init["settings"] == quiet
    assert (init["in_main"], init["tty"]) == (False, "0")
    assert fake.calls("finish") == [{"state": "success", "error": None}]
    assert said == []


NO_ROUTE = r"raise RuntimeError('no route\nTraceback')"
TROUBLES = {  # 名字: (计划, 说的话里的字, 启动的模式, 记了几条, 收尾几次)
    "not-logged-in": ({"api_key": None}, "login sync", "offline", 2, 1),
    "empty-key": ({"mode": "cloud", "api_key": ""}, "login sync", "offline", 2, 1),
    "set-offline": ({"mode": "offline"}, "sync", "offline", 2, 1),
    "set-disabled": ({"mode": "disabled"}, "", "", 0, 0),
    "no-route": ({"init": [NO_ROUTE]}, "联网失败 sync", "online offline", 2, 1),
    "exits": ({"init": ["sys.exit(0)"]}, "联网失败 sync", "online offline", 2, 1),
    "asks": ({"init": ["input('1/2/3: ')"]}, "联网失败 sync", "online offline", 2, 1),
    "never-starts": ({"init": [NO_ROUTE, "sys.exit(0)"]}, "联网失败 启动失败", "online offline", 0, 0),
    "bad-settings": ({"Settings": [r"raise ValueError('bad yaml\nline 3')"]}, "启动失败", "", 0, 0),
    "not-installed": ({"import": ["raise ImportError('no swanlab')"]}, "启动失败", "", 0, 0),
    "log-fails": ({"log": [NO_ROUTE]}, "记录失败", "online", 1, 1),
    "finish-fails": ({"finish": [NO_ROUTE]}, "sync", "online", 2, 1),
}


@pytest.mark.parametrize(("plan", "words", "modes", "logged", "finishes"), TROUBLES.values(), ids=TROUBLES)
def test_swanlab_troubles_stop_nothing(start, fake, plan, words, modes, logged, finishes):
    """没登录、连不上的转为离线，编号不变，一条记录也不少；怎样设的就怎样；哪一步出错都只说一行，从不询问。"""
    metrics, swanlab, said = start(**plan)
    for iteration in (1, 2):
        metrics.log({"iter": iteration, "train_loss": 2.0})
    until(lambda: said or words != "记录失败")
    swanlab.finish("aborted")
    assert len(said) == len(words.split())
    assert all(word in line and "\n" not in line for word, line in zip(words.split(), said, strict=True))
    assert [(init["mode"], init["id"]) for init in fake.calls("init")] == [(m, "run12345678") for m in modes.split()]
    assert [log["step"] for log in fake.calls("log")] == [1, 2][:logged]
    assert fake.calls("finish") == [{"state": "aborted", "error": None}] * finishes


def test_a_process_that_cannot_be_started_stops_nothing(start, monkeypatch):
    """连子进程也启动不了：一句话。"""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    _, swanlab, said = start()
    swanlab.finish()
    assert said == ["SwanLab 启动失败，训练照常进行：No such file or directory"]


@pytest.mark.parametrize("where", ["import", "Settings", "init", "log", "finish"])
def test_wherever_it_hangs_training_goes_on(start, monkeypatch, where):
    """断网时它会一直等：训练一刻也不等；结束时到时限就走，说一声在等什么、怎样补传，不留下进程。"""
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.5)
    monkeypatch.setattr(tracking, "NOTICE_SECONDS", 0.2)
    began = time.monotonic()
    metrics, swanlab, said = start(**{where: ["time.sleep(60)"]})
    process = swanlab._process
    for iteration in range(1000):
        metrics.log({"iter": iteration, "train_loss": 2.0})
    swanlab.finish("crashed", "ValueError()")
    assert time.monotonic() - began < 10
    assert process.returncode is not None
    assert ["正在等 SwanLab" in line for line in said] == [True, False]
    assert "swanlab sync --id run12345678 swanlog/run-*-run12345678" in said[1]
    assert len(events(metrics.path)) == 1000


@pytest.mark.parametrize("plan", [{}, {"log": ["os._exit(3)"]}], ids=["killed", "exits"])
def test_its_death_is_one_line(start, fake, plan):
    """训练途中它被 kill -9、自己退出：说一句，记录照写，结束时不等。"""
    metrics, swanlab, said = start(**plan)
    until(lambda: fake.calls("init"))
    if not plan:
        swanlab._process.kill()
    metrics.log({"iter": 1})
    until(lambda: said)
    metrics.log({"iter": 2})
    began = time.monotonic()
    swanlab.finish()
    assert time.monotonic() - began < 5
    assert ["SwanLab 记录失败，训练照常进行：" in line for line in said] == [True]
    assert [event["iter"] for event in events(metrics.path)] == [1, 2]


def test_signals_are_for_training_only(start, fake):
    """Ctrl-C、关掉终端不传给它；调度器发给每个进程的也不理：训练还要保存，之后再收尾。"""
    metrics, swanlab, said = start()
    process = swanlab._process
    until(lambda: fake.calls("init"))
    assert os.getsid(process.pid) == process.pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    metrics.log({"iter": 5, "train_loss": 2.0})
    swanlab.finish("aborted", "SIGTERM")
    assert [log["step"] for log in fake.calls("log")] == [5]
    assert fake.calls("finish") == [{"state": "aborted", "error": "SIGTERM"}]
    assert said == []


def test_ctrl_c_while_it_finishes_passes_at_once(start):
    """等它收尾时按 Ctrl-C：立刻传给训练，它也不留下。"""
    _, swanlab, said = start(finish=["time.sleep(60)"])
    process, began = swanlab._process, time.monotonic()
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        swanlab.finish()
    signal.signal(signal.SIGINT, previous)
    assert time.monotonic() - began < 5
    assert process.returncode is not None


def test_a_crash_has_a_reason(start, fake):
    """出错必有原因，它才不另外警告；再长也不会卡在管道里。"""
    for given, sent in ((None, "unknown"), ("长" * 100_000, "长" * 2000)):
        _, swanlab, _ = start()
        swanlab.finish("crashed", given)
        assert fake.calls("finish") == [{"state": "crashed", "error": sent}]


TRAINER = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from training.tracking import MetricsFile, SwanLab
metrics = MetricsFile("metrics.jsonl", 0)
swanlab = SwanLab("test", "a" * 16, {}, "swanlog", metrics, print)
metrics.log({"iter": 1, "train_loss": 2.0})
print(swanlab._process.pid, flush=True)
while not os.path.exists("calls.jsonl"):
    time.sleep(0.01)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("finish", ["", "time.sleep(60)"], ids=["ends", "hangs"])
def test_when_training_is_killed_it_ends_by_itself(fake, tmp_path, finish):
    """训练进程被 kill -9：它记完已有的，标为 crashed，自己结束；卡住了也有时限。"""
    fake.plan(**{"import": ["sys.modules['__main__'].ORPHAN_SECONDS = 0.5"], "finish": [finish]})
    command = [sys.executable, "-c", TRAINER, str(REPOSITORY)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == -9, done.stderr
    until(lambda: ended(int(done.stdout)))
    assert [log["step"] for log in fake.calls("log")] == [1]
    assert [end["state"] for end in fake.calls("finish")] == ["crashed"]


def test_values_are_plain_floats_and_steps_plain_ints(start, fake):
    """swanlab 只收 Python 的 float 与 int；步数与时间不当作曲线，空值与 inf 不传；试写的歌词是文字，标题是开头。"""
    metrics, swanlab, _ = start()
    metrics.log({"iter": 40, "train_loss": np.float64(2.5), "tokens_per_s": 1200, "mfu": None, "time": 1.7e9})
    event = {"iter": 40, "val_loss": 2.0, "lr": math.inf, "prompt": "今夜我", "sample": "今夜我\n在风里"}
    metrics.log(event)
    swanlab.finish()
    first, second = fake.calls("log")
    assert first == {"values": {"train_loss": 2.5, "tokens_per_s": 1200.0}, "step": 40}
    assert [type(value) for value in (*first["values"].values(), first["step"])] == [float, float, int]
    assert second == {"values": {"val_loss": 2.0, "sample": ["今夜我\n在风里", "今夜我"]}, "step": 40}


def test_resuming_sends_only_what_is_new(start, fake, path):
    """接着训练时只传新的记录，也包括补做的、步数相同的评估；截掉的不传。"""
    metrics, swanlab, _ = start(30)
    metrics.log({"iter": 30, "val_loss": 1.0})
    metrics.log({"iter": 40, "train_loss": 2.0})
    swanlab.finish()
    assert [(log["step"], *log["values"]) for log in fake.calls("log")] == [(30, "val_loss"), (40, "train_loss")]


def test_records_are_sent_while_training(start, fake):
    """不等结束就传、就说，也不等谁回答；文件夹被移走、又重新建了，接着传。"""
    metrics, swanlab, said = start(init=["input('1/2/3: ')"])
    metrics.log({"iter": 1, "train_loss": 2.0, "note": "长" * 99})
    until(lambda: fake.calls("log") and said)
    metrics.path.unlink()
    metrics.log({"iter": 2, "train_loss": 2.0})
    until(lambda: len(fake.calls("log")) == 2)
    swanlab.finish()
    assert [log["step"] for log in fake.calls("log")] == [1, 2]


REAL = """
import json, sys
sys.path.insert(0, sys.argv[1])
from training.tracking import MetricsFile, SwanLab
assert not {"swanlab", "torch"} & set(sys.modules)
said = []
metrics = MetricsFile("metrics.jsonl", 0)
swanlab = SwanLab("test-project", "a" * 16, {"seed": 1}, "swanlog", metrics, said.append)
for step in range(1, 4):
    metrics.log({"iter": step, "train_loss": 2.0 / step, "val_loss": None, "time": 1.0})
metrics.log({"iter": 3, "val_loss": 2.0, "prompt": "今夜我", "sample": "今夜我\\n在风里"})
swanlab.finish("crashed", "ZeroDivisionError()")
print(json.dumps(said))
"""


def test_the_real_package_without_a_login(tmp_path):
    """真正的 swanlab，从未登录的机器：不询问，离线记录写在本地，两句话；训练的进程里没有 swanlab，也不必有 torch。"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SWANLAB")}
    environment |= {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "PYTHONUTF8": "1"}
    command = [sys.executable, "-c", REAL, str(REPOSITORY)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    said = json.loads(done.stdout)
    assert ["swanlab login" in line for line in said] == [True, False]
    assert f"swanlab sync --id {'a' * 16}" in said[1]
    (run,) = (tmp_path / "swanlog").glob(f"run-*-{'a' * 16}")
    assert b"train_loss" in (run / f"run-{'a' * 16}.swanlab").read_bytes()
    assert [text.read_text(encoding="utf-8") for text in run.glob("media/text/*")] == ["今夜我\n在风里"]

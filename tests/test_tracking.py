"""训练记录：metrics.jsonl 始终完好；SwanLab 出什么错都不影响训练。"""

import json
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

import tracking
from tracking import MetricsFile, SwanLab, Tracker

REPOSITORY = Path(__file__).resolve().parent.parent


def events(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def path(tmp_path) -> Path:
    """第 10 到 50 步的记录。"""
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    for iteration in range(10, 60, 10):
        metrics.log({"iter": iteration, "train_loss": 1 / 3, "val_loss": None, "note": "歌"})
    return path


def test_every_line_is_an_object(path):
    """一行一个 JSON 对象，数值不失精度，None 写成 null。"""
    found = events(path)
    assert [event["iter"] for event in found] == [10, 20, 30, 40, 50]
    assert found[0] == {"iter": 10, "train_loss": 1 / 3, "val_loss": None, "note": "歌"}


@pytest.mark.parametrize(("resume", "kept"), [(0, []), (25, [10, 20]), (30, [10, 20, 30]), (99, [10, 20, 30, 40, 50])])
def test_resuming_cuts_what_will_be_made_again(path, resume, kept):
    """接着训练时，检查点之后的记录截掉，之前的一字不改。"""
    before = path.read_text(encoding="utf-8").splitlines()
    metrics = MetricsFile(path, resume)
    assert path.read_text(encoding="utf-8").splitlines() == before[: len(kept)]
    metrics.log({"iter": 60})
    assert [event["iter"] for event in events(path)] == [*kept, 60]
    assert os.listdir(path.parent) == [path.name]


def test_a_line_cut_off_anywhere_spoils_nothing(path):
    """最后一行写到任何一个字节时断电，其余记录都在，接着写的也完好。"""
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(last, len(whole) + 1):
        path.write_bytes(whole[:end])
        MetricsFile(path, 50).log({"iter": 60})
        iterations = [event["iter"] for event in events(path)]
        assert iterations in ([10, 20, 30, 40, 60], [10, 20, 30, 40, 50, 60]), end


@pytest.mark.parametrize("tail", [b"\0" * 64, b"[]\n", b"7\n", b"\n", b"\xe4\xbd"])
def test_other_damage_is_dropped(path, tail):
    """断电可能在末尾留下空字节；不成记录的行丢掉，训练照常开始。"""
    path.write_bytes(path.read_bytes() + tail)
    MetricsFile(path, 50).log({"iter": 60})
    assert [event["iter"] for event in events(path)] == [10, 20, 30, 40, 50, 60]


def test_a_missing_file_is_a_new_one(tmp_path):
    """没有旧记录时从头写。"""
    MetricsFile(tmp_path / "new.jsonl", 5).log({"iter": 1})
    assert events(tmp_path / "new.jsonl") == [{"iter": 1}]


def test_only_line_feeds_end_a_record(tmp_path):
    """U+2028 之类在记录里不算换行：接着训练时不会把那一行当成坏的。"""
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, 0).log({"iter": 1, "note": "一\u2028二\x85三"})
    before = path.read_bytes()
    MetricsFile(path, 1)
    assert path.read_bytes() == before


def test_damage_in_the_middle_takes_only_itself(path):
    """坏行夹在中间时只丢它；上次没来得及改名的临时文件不碍事，也不留下。"""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b'{"iter": 2{"iter": 25}\n', *lines[2:], b"\0"]))
    path.with_name("metrics.jsonl.tmp").write_bytes(b"x" * 9999)
    metrics = MetricsFile(path, 40)
    assert path.read_bytes() == b"".join(lines[:4])
    metrics.log({"iter": 60})
    assert [event["iter"] for event in events(path)] == [10, 20, 30, 40, 60]
    assert os.listdir(path.parent) == [path.name]


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


@pytest.mark.parametrize("damage", [b"", b"bad\n"], ids=["tail", "middle"])
def test_a_file_that_cannot_be_cut_is_left_alone(path, monkeypatch, damage):
    """截不了时旧文件原样不动，只说一句，训练照常；能截了就截好再接着写。"""
    path.write_bytes(damage + path.read_bytes())
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "truncate", full)
        patched.setattr(os, "replace", full)
        said = []
        tracker = Tracker(MetricsFile(path, 20), None, said.append)
        tracker.log({"iter": 30})
        tracker.log({"iter": 40})
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]
        assert len(said) == 1
        assert "No space left on device" in said[0]
        assert str(path) in said[0]
    tracker.log({"iter": 50})
    assert [event["iter"] for event in events(path)] == [10, 20, 50]
    assert len(said) == 1


def test_an_unreadable_file_stops_nothing(tmp_path):
    """metrics.jsonl 读不了（这里是个文件夹）：说一句，训练照常。"""
    said = []
    tracker = Tracker(MetricsFile(tmp_path, 0), None, said.append)
    assert len(said) == 1
    tracker.log({"iter": 1})
    assert len(said) == 1


def test_a_half_written_line_does_not_stick_to_the_next(path):
    """训练途中磁盘满了，只写进去半行：说一句；有了空间，下一行不会粘在半行后面。"""
    resource = pytest.importorskip("resource")
    said = []
    tracker = Tracker(MetricsFile(path, 50), None, said.append)
    size = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        tracker.log({"iter": 60, "train_loss": 2.0})
        half = path.stat().st_size
        tracker.log({"iter": 70, "train_loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert half == size + 10
    assert len(said) == 1
    tracker.log({"iter": 80})
    assert [event["iter"] for event in events(path)] == [10, 20, 30, 40, 50, 80]


def test_a_process_without_records_writes_nothing(tmp_path, monkeypatch):
    """不是主进程的记录器：什么也不写，什么也不出错。"""
    monkeypatch.chdir(tmp_path)
    tracker = Tracker(None, None)
    tracker.log({"iter": 1})
    tracker.log_sample("今夜", "我", 1)
    tracker.finish("crashed", "x")
    assert os.listdir(tmp_path) == []


# ---- SwanLab ----


class FakeSwanLab:
    """代替 swanlab 模块：记下每次调用，按需要出错、卡住，或做别的事。"""

    def __init__(self, mode="online", api_key="key", init=(), log=None, finish=None) -> None:
        self.asked = SimpleNamespace(mode=mode, api_key=api_key)
        self.init_outcomes, self.log_outcome, self.finish_outcome = list(init), log, finish
        self.settings, self.inits, self.logs, self.finishes = [], [], [], []
        self.threads = []

    def Settings(self, **options):
        self.settings.append(options)
        return SimpleNamespace(**options, **{k: v for k, v in vars(self.asked).items() if k not in options})

    def Text(self, data, caption=None):
        return ("text", data, caption)

    def init(self, **options):
        self.inits.append(options)
        self.threads.append(threading.current_thread())
        self._act(self.init_outcomes.pop(0) if self.init_outcomes else None)

    def log(self, values, step=None):
        self.logs.append((values, step))
        self._act(self.log_outcome)

    def finish(self, **options):
        self.finishes.append(options)
        self._act(self.finish_outcome)

    @staticmethod
    def _act(outcome) -> None:
        if isinstance(outcome, BaseException):
            raise outcome
        if callable(outcome):
            outcome()
        elif outcome is not None:
            time.sleep(outcome)


@pytest.fixture
def start(monkeypatch, tmp_path):
    """start(fake) → (SwanLab, 说过的话)。"""

    monkeypatch.setattr(tracking, "_swanlab_is_loose", False)

    def call(fake, run_id="run12345678"):
        said = []
        monkeypatch.setitem(sys.modules, "swanlab", fake)
        return SwanLab("chinese-lyrics", run_id, {"seed": 1}, tmp_path / "swanlog", said.append), said

    yield call
    while any(thread.name == tracking.THREAD_NAME for thread in threading.enumerate()):
        time.sleep(0.05)


def forbid_input(monkeypatch) -> None:
    def asked(*_):
        raise AssertionError("不该询问")

    monkeypatch.setattr("builtins.input", asked)


def test_logged_in_runs_online_and_resumes_by_id(start, tmp_path):
    """登录过的：在线，用检查点里的编号与 resume="allow"，配置照传，一句话也不用说。"""
    fake = FakeSwanLab()
    swanlab, said = start(fake)
    (init,) = fake.inits
    assert (init["mode"], init["id"], init["resume"]) == ("online", "run12345678", "allow")
    assert (init["project"], init["config"]) == ("chinese-lyrics", {"seed": 1})
    assert init["log_dir"] == str(tmp_path / "swanlog")
    swanlab.finish()
    assert fake.finishes == [{"state": "success", "error": None}]
    assert said == []


def test_what_is_sent_is_limited(start, monkeypatch):
    """不询问，不接管终端，没有进度条，不上传 git 远端与包列表；在主线程之外启动，不装它的信号钩子。"""
    monkeypatch.setattr(os, "environ", {})
    fake = FakeSwanLab()
    start(fake)
    assert os.environ == {"TTY_COMPATIBLE": "0"}
    used = vars(fake.inits[0]["settings"])
    assert used["interactive"] is False
    assert used["terminal"] == {"proxy_type": "none"}
    assert used["probe"] == {"git": False, "requirements": False}
    assert fake.threads[0] is not threading.main_thread()


@pytest.mark.parametrize("mode", ["online", "cloud"])
@pytest.mark.parametrize("key", [None, ""])
def test_not_logged_in_records_offline_without_asking(start, monkeypatch, mode, key):
    """没登录：不询问，转为离线，说一句怎样登录；结束时说怎样上传。"""
    forbid_input(monkeypatch)
    fake = FakeSwanLab(mode=mode, api_key=key)
    swanlab, said = start(fake)
    assert [init["mode"] for init in fake.inits] == ["offline"]
    assert len(said) == 1
    assert "swanlab login" in said[0]
    swanlab.finish()
    assert len(said) == 2
    assert "swanlab sync --id run12345678" in said[1]


def test_the_users_mode_is_respected(start):
    """用户自己设了 offline 就是 offline，不再提示登录；设了 disabled 就什么也不做。"""
    fake = FakeSwanLab(mode="offline", api_key=None)
    _, said = start(fake)
    assert [init["mode"] for init in fake.inits] == ["offline"]
    assert said == []
    fake = FakeSwanLab(mode="disabled")
    swanlab, said = start(fake)
    swanlab.log({"iter": 1, "train_loss": 2.0})
    swanlab.log_sample("今夜", "我", 1)
    swanlab.finish()
    assert (fake.inits, fake.logs, fake.finishes, said) == ([], [], [], [])


@pytest.mark.parametrize("error", [RuntimeError("no route\nTraceback …"), SystemExit(0), EOFError()])
def test_a_failed_online_start_is_tried_again_offline(start, error):
    """连不上：说一句，改为离线，编号不变，训练照常。"""
    fake = FakeSwanLab(init=[error])
    swanlab, said = start(fake)
    assert [(init["mode"], init["id"]) for init in fake.inits] == [
        ("online", "run12345678"),
        ("offline", "run12345678"),
    ]
    assert len(said) == 1
    assert "离线" in said[0]
    assert "\n" not in said[0]
    swanlab.log({"iter": 3, "train_loss": 1.5})
    assert fake.logs == [({"train_loss": 1.5}, 3)]


@pytest.mark.parametrize(
    "error", [SystemExit(0), EOFError(), RuntimeError(), OSError("disk\nfull"), UnicodeEncodeError]
)
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_start_that_always_fails_stops_nothing(start, error, mode):
    """怎么都启动不了：只说话，训练照常；之后一声不响。"""
    if error is UnicodeEncodeError:
        error = UnicodeEncodeError("gbk", "🎵", 0, 1, "cannot encode")
    fake = FakeSwanLab(mode=mode, init=[error, error])
    swanlab, said = start(fake)
    assert "训练照常进行" in said[-1]
    assert len(said) == (1 if mode == "offline" else 2)  # 在线的先说改为离线
    assert all(line and "\n" not in line for line in said)
    before = list(said)
    swanlab.log({"iter": 1, "train_loss": 2.0})
    swanlab.log_sample("今夜", "我", 1)
    swanlab.finish()
    assert said == before
    assert (fake.logs, fake.finishes) == ([], [])


def test_a_missing_package_stops_nothing(start):
    """没装 swanlab：一句话。"""
    swanlab, said = start(None)  # sys.modules 里的 None 使 import 失败
    assert len(said) == 1
    swanlab.log({"iter": 1})
    swanlab.finish()
    assert len(said) == 1


def test_broken_settings_stop_nothing(start):
    """用户的 swanlab 配置文件有误：一句话。"""
    fake = FakeSwanLab()
    fake.Settings = lambda **_: (_ for _ in ()).throw(ValueError("bad yaml\n第 3 行"))
    _, said = start(fake)
    assert len(said) == 1
    assert "bad yaml 第 3 行" in said[0]
    assert fake.inits == []


def test_a_start_that_hangs_is_given_up(start, monkeypatch):
    """启动卡住：到时限就走，不再试第二次。"""
    monkeypatch.setattr(tracking, "INIT_SECONDS", 0.2)
    fake = FakeSwanLab(init=[1.5])
    began = time.monotonic()
    swanlab, said = start(fake)
    assert time.monotonic() - began < 1
    assert len(fake.inits) == 1
    assert len(said) == 1
    swanlab.log({"iter": 1, "train_loss": 2.0})
    assert fake.logs == []


def test_loading_that_hangs_is_given_up(start, monkeypatch, left):
    """载入它、读它的配置（家目录在网络盘上）也算在启动的时限里。"""
    monkeypatch.setattr(tracking, "INIT_SECONDS", 0.2)
    fake = FakeSwanLab()
    fake.Settings = lambda **_: time.sleep(1)
    began = time.monotonic()
    _, said = start(fake)
    assert time.monotonic() - began < 0.8
    assert len(said) == 1
    assert fake.inits == []
    assert left(5) == 5


def test_a_failing_log_is_mentioned_once(start):
    """记录出错只说一次，之后安静。"""
    fake = FakeSwanLab(log=RuntimeError("network\ndetails"))
    swanlab, said = start(fake)
    for iteration in range(3):
        swanlab.log({"iter": iteration, "train_loss": 2.0})
        swanlab.log_sample("今夜", "我", iteration)
    assert len(said) == 1
    assert "\n" not in said[0]
    assert len(fake.logs) == 1


def test_a_failing_finish_is_one_line(start):
    """收尾出错：一句话，不抛出；再收一次什么也不做。"""
    for error in (RuntimeError("x\ny"), SystemExit(1), EOFError()):
        fake = FakeSwanLab(finish=error)
        swanlab, said = start(fake)
        swanlab.finish()
        swanlab.finish()
        assert len(said) == 1
        assert "\n" not in said[0]
        assert len(fake.finishes) == 2  # 不让它出声，又试了一次


@pytest.mark.parametrize("gone", [OSError(5, "Input/output error"), SystemExit(1)], ids=["terminal", "pipe"])
def test_a_terminal_that_is_gone_does_not_spoil_the_end(start, left, gone):
    """tmux kill-session 之后，SwanLab 道别的话写不出去：照样收尾，状态不变，什么也不用说。"""
    stdout, used = sys.stdout, []

    def goodbye():
        used.append(sys.stdout)
        if sys.stdout is stdout:
            raise gone
        print("再见")

    fake = FakeSwanLab(finish=goodbye)
    swanlab, said = start(fake)
    swanlab.finish("aborted", "SIGHUP")
    assert fake.finishes == [{"state": "aborted", "error": "SIGHUP"}] * 2
    assert sys.stdout is stdout
    assert used[1] is not stdout
    assert said == []
    assert left(129) == 129  # 第一次可能停在半路，留下什么说不准


def test_a_hanging_finish_is_given_up(start, monkeypatch):
    """断网时 finish 会一直等：到时限就走，说一句。"""
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.2)
    fake = FakeSwanLab(finish=1.5)
    swanlab, said = start(fake)
    began = time.monotonic()
    swanlab.finish("crashed", "ValueError()")
    assert time.monotonic() - began < 1
    assert len(said) == 1
    assert "swanlab sync --id run12345678" in said[0]
    assert fake.finishes == [{"state": "crashed", "error": "ValueError()"}]


def test_both_starts_share_one_limit(start, monkeypatch):
    """在线的启动失败得慢，离线的又卡住：合起来也不超过时限。"""
    monkeypatch.setattr(tracking, "INIT_SECONDS", 0.6)

    def fail_slowly():
        time.sleep(0.4)
        raise RuntimeError("no route")

    fake = FakeSwanLab(init=[fail_slowly, 1.5])
    began = time.monotonic()
    _, said = start(fake)
    assert time.monotonic() - began < 0.9
    assert [init["mode"] for init in fake.inits] == ["online", "offline"]
    assert "训练照常进行" in said[-1]


def test_a_long_wait_is_explained(start, monkeypatch):
    """等得久了说一声在等什么，只说一次。"""
    monkeypatch.setattr(tracking, "NOTICE_SECONDS", 0.1)
    _, said = start(FakeSwanLab(init=[0.8]))
    assert len(said) == 1
    assert "正在等 SwanLab" in said[0]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (("success",), ("success", None)),
        (("crashed", "ZeroDivisionError()"), ("crashed", "ZeroDivisionError()")),
        (("crashed",), ("crashed", "unknown")),
        (("aborted", "SIGTERM"), ("aborted", "SIGTERM")),
        (("aborted",), ("aborted", None)),
    ],
)
def test_the_end_is_told_as_it_was(start, given, sent):
    """完成、出错、被停下，SwanLab 上各是各的状态；出错必有原因，它才不另外警告。"""
    fake = FakeSwanLab()
    swanlab, _ = start(fake)
    Tracker(None, swanlab).finish(*given)
    assert fake.finishes == [{"state": sent[0], "error": sent[1]}]


@pytest.mark.parametrize("then", [None, RuntimeError("x"), 1.5], ids=["ok", "error", "hang"])
def test_its_hooks_never_stay(start, monkeypatch, then):
    """它装的 excepthook、换掉的 sys.stdout 一律换回：回溯不会被它压住，不论它成功、出错还是卡住。"""
    monkeypatch.setattr(tracking, "INIT_SECONDS", 0.3)
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.3)
    before = sys.excepthook, sys.stdout, sys.stderr

    def take_over():
        sys.excepthook = lambda *_: time.sleep(999)
        sys.stdout = sys.stderr = SimpleNamespace(write=len, flush=int)
        FakeSwanLab._act(then)

    swanlab, _ = start(FakeSwanLab(mode="offline", init=[take_over]))
    assert (sys.excepthook, sys.stdout, sys.stderr) == before
    swanlab, _ = start(FakeSwanLab(finish=take_over))
    swanlab.finish()
    assert (sys.excepthook, sys.stdout, sys.stderr) == before


@pytest.fixture
def interrupt_soon():
    """稍后从别的线程发 SIGINT，主线程由 Python 自己的处理变成 KeyboardInterrupt。"""
    timers = []

    def call():
        timers.append(threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]))
        timers[-1].start()

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield call
    for timer in timers:
        timer.join()
    signal.signal(signal.SIGINT, previous)


@pytest.fixture
def left(monkeypatch):
    """left(code)：leave 立即结束进程时的退出码；正常返回则为 None。"""

    def call(code):
        codes = []
        with monkeypatch.context() as patched:
            patched.setattr(os, "_exit", codes.append)
            tracking.leave(code)
        return codes[0] if codes else None

    return call


def test_ctrl_c_while_it_starts_passes_at_once(start, interrupt_soon, left):
    """等它启动时按 Ctrl-C：立刻传给训练，退出时也不等它。"""
    fake = FakeSwanLab(init=[2.0])
    began = time.monotonic()
    interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        start(fake)
    assert time.monotonic() - began < 1
    assert left(130) == 130


def test_ctrl_c_while_it_finishes_passes_at_once(start, interrupt_soon, left):
    """等它收尾时按 Ctrl-C：立刻传给训练，退出时也不等它。"""
    swanlab, _ = start(FakeSwanLab(finish=2.0))
    began = time.monotonic()
    interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        swanlab.finish()
    assert time.monotonic() - began < 1
    assert left(130) == 130


def test_leaving_waits_for_a_swanlab_that_ended_well(start, left):
    """好好收尾的、没启动过的、没装的：照常退出，别的退出钩子都会执行。"""
    assert left(3) is None
    for fake in (FakeSwanLab(), FakeSwanLab(mode="disabled"), FakeSwanLab(api_key=None), None):
        swanlab, _ = start(fake)
        swanlab.finish()
        assert left(3) is None
    swanlab, _ = start(FakeSwanLab(init=[RuntimeError()]))  # 改为离线后好好收尾
    swanlab.finish()
    assert left(3) is None


@pytest.mark.parametrize(
    ("outcomes", "finishes"),
    [
        ({"init": [0.5]}, True),
        ({"init": [RuntimeError(), SystemExit()]}, True),
        ({"finish": 0.5}, True),
        ({"finish": RuntimeError()}, True),
        ({}, False),
    ],
    ids=["init-hangs", "init-fails", "finish-hangs", "finish-fails", "never-finished"],
)
def test_leaving_does_not_wait_for_any_other(start, left, monkeypatch, outcomes, finishes):
    """卡住的、出错的、没收过尾的都可能留下一直等的线程或退出钩子：退出时立即结束，退出码不变。"""
    monkeypatch.setattr(tracking, "INIT_SECONDS", 0.2)
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.2)
    swanlab, _ = start(FakeSwanLab(**outcomes))
    if finishes:
        swanlab.finish()
    assert left(5) == 5
    time.sleep(0.5)  # 迟到的启动、收尾也不算数
    assert left(5) == 5


STUCK = """
import atexit, sys, threading, time

class Settings:
    mode, api_key = "online", "key"
    def __init__(self, **options): pass

def forever(*_):
    while True:
        time.sleep(60)

def init(**_):
    atexit.register(forever)
    sys.excepthook = forever
    threading.Thread(target=forever).start()
    if sys.argv[2] == "init":
        forever()

def log(*_, **__): pass

def finish(**_):
    forever()
"""

SCRIPT = """
import signal, sys, threading, traceback
from pathlib import Path
sys.path[:0] = [sys.argv[1], "."]
import tracking

tracking.INIT_SECONDS, tracking.FINISH_SECONDS = 1, 1
signal.signal(signal.SIGINT, signal.default_int_handler)  # 在后台跑测试时，它生来是被忽略的
case, code = sys.argv[2], 0
try:
    swanlab = tracking.SwanLab("test", "a" * 16, {}, Path("swanlog"), print)
    tracker = tracking.Tracker(tracking.MetricsFile(Path("metrics.jsonl"), 0), swanlab)
    try:
        tracker.log({"iter": 1})
        if case in ("init", "crash"):
            1 / 0
    except ZeroDivisionError as error:
        tracker.finish("crashed", repr(error))
        raise
    if case == "ctrl-c":
        tracking.FINISH_SECONDS = 30
        threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
    tracker.finish()
    print("THE END", end="")
except KeyboardInterrupt:
    code = 130
except Exception:
    traceback.print_exc()
    code = 1
tracking.leave(code)
sys.exit(code)
"""


@pytest.mark.parametrize(("case", "code"), [("init", 1), ("crash", 1), ("ctrl-c", 130), ("done", 0)])
def test_no_end_hangs(tmp_path, case, code):
    """SwanLab 卡死，还留下卡死的退出钩子、excepthook 和普通线程：照样很快结束，回溯、退出码、输出都在。"""
    (tmp_path / "swanlab.py").write_text(STUCK, encoding="utf-8")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(REPOSITORY), case],
        cwd=tmp_path,
        env=os.environ | {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=30,
        check=False,
    )
    assert time.monotonic() - began < 10
    assert done.returncode == code, done.stderr
    assert ("ZeroDivisionError" in done.stderr) == (code == 1)
    assert done.stdout.endswith("THE END") == (code == 0)
    assert events(tmp_path / "metrics.jsonl") == [{"iter": 1}]


def test_a_finish_that_fails_too_late_changes_nothing(start, monkeypatch):
    """放弃等它之后它才出错：不再试，也不动 sys.stdout。"""
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.2)
    stdout = sys.stdout

    def fail_late():
        time.sleep(0.5)
        raise OSError(5, "Input/output error")

    fake = FakeSwanLab(finish=fail_late)
    swanlab, _ = start(fake)
    swanlab.finish()
    time.sleep(0.6)
    assert len(fake.finishes) == 1
    assert sys.stdout is stdout


def test_values_are_plain_floats_and_steps_plain_ints(start):
    """swanlab 只收 Python 的 float 与 int；步数与时间不当作曲线，空值不传。"""
    fake = FakeSwanLab()
    swanlab, _ = start(fake)
    event = {"iter": np.int64(40), "train_loss": np.float64(2.5), "tokens_per_s": 1200, "lr": 1e-3}
    swanlab.log({**event, "val_loss": None, "mfu": None, "time": 1.7e9})
    ((values, step),) = fake.logs
    assert values == {"train_loss": 2.5, "tokens_per_s": 1200.0, "lr": 1e-3}
    assert {type(value) for value in values.values()} == {float}
    assert (step, type(step)) == (40, int)


def test_samples_are_texts_with_the_prompt(start):
    """试写的歌词作为文字记录，标题是开头。"""
    fake = FakeSwanLab()
    swanlab, _ = start(fake)
    swanlab.log_sample("今夜我", "今夜我\n在风里", np.int64(40))
    assert fake.logs == [({"sample": ("text", "今夜我\n在风里", "今夜我")}, 40)]
    assert type(fake.logs[0][1]) is int


def test_the_tracker_writes_the_file_whatever_swanlab_does(start, tmp_path):
    """metrics.jsonl 是正本：SwanLab 出错或没有时照样完整。"""
    swanlab, _ = start(FakeSwanLab(log=RuntimeError("x")))
    for number, view in enumerate((swanlab, None)):
        path = tmp_path / f"{number}.jsonl"
        tracker = Tracker(MetricsFile(path, 0), view)
        for iteration in range(1, 4):
            tracker.log({"iter": iteration, "train_loss": 2.0})
            tracker.log_sample("今夜", "我", iteration)
        tracker.finish()
        assert [event["iter"] for event in events(path)] == [1, 2, 3]


REAL = """
import json, sys
sys.path.insert(0, sys.argv[1])
import tracking
assert "swanlab" not in sys.modules
from pathlib import Path
said = []
hook = sys.excepthook
swanlab = tracking.SwanLab("test-project", "a" * 16, {"seed": 1}, Path.cwd() / "swanlog", said.append)
assert sys.excepthook is hook
for step in range(1, 4):
    swanlab.log({"iter": step, "train_loss": 2.0 / step, "val_loss": None, "time": 1.0})
swanlab.log_sample("今夜我", "今夜我\\n在风里", 3)
swanlab.finish("crashed", "ZeroDivisionError()")
Path("said.json").write_text(json.dumps(said), encoding="utf-8")
tracking.leave(7)
"""


def test_the_real_package_without_a_login(tmp_path):
    """真正的 swanlab，从未登录的机器，标准输入开着也不询问：离线记录写在本地，两句话。

    同时核对：载入 tracking 并不载入 swanlab；它的 excepthook 不留下；好好收尾后照常退出。
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SWANLAB")}
    environment |= {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(REPOSITORY)],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    said = json.loads((tmp_path / "said.json").read_text(encoding="utf-8"))
    assert len(said) == 2
    assert "swanlab login" in said[0]
    assert f"swanlab sync --id {'a' * 16}" in said[1]
    assert [name for name in os.listdir(tmp_path / "swanlog") if name.endswith("a" * 16)]

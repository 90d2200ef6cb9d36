"""训练记录：metrics.jsonl 始终完好；SwanLab 出什么错都不影响训练。"""

import json
import os
import subprocess
import sys
import threading
import time
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


# ---- SwanLab ----


class FakeSwanLab:
    """代替 swanlab 模块：记下每次调用，按需要出错或卡住。"""

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
        if outcome is not None:
            time.sleep(outcome)


@pytest.fixture
def start(monkeypatch, tmp_path):
    """start(fake) → (SwanLab, 说过的话)。"""

    def call(fake, run_id="run12345678"):
        said = []
        monkeypatch.setitem(sys.modules, "swanlab", fake)
        return SwanLab("chinese-lyrics", run_id, {"seed": 1}, tmp_path / "swanlog", said.append), said

    return call


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
    assert fake.finishes == [{"state": "success"}]
    assert said == []


def test_what_is_sent_is_limited(start):
    """不询问，不接管终端，不上传 git 远端与包列表；在主线程之外启动，不装它的信号钩子。"""
    fake = FakeSwanLab()
    start(fake)
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
    fake.Settings = lambda **_: (_ for _ in ()).throw(ValueError("bad yaml"))
    _, said = start(fake)
    assert len(said) == 1
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
        assert len(fake.finishes) == 1


def test_a_hanging_finish_is_given_up(start, monkeypatch):
    """断网时 finish 会一直等：到时限就走，说一句。"""
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.2)
    fake = FakeSwanLab(finish=1.5)
    swanlab, said = start(fake)
    began = time.monotonic()
    swanlab.finish(crashed=True)
    assert time.monotonic() - began < 1
    assert len(said) == 1
    assert fake.finishes == [{"state": "crashed"}]


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
swanlab = tracking.SwanLab("test-project", "a" * 16, {"seed": 1}, Path.cwd() / "swanlog", said.append)
for step in range(1, 4):
    swanlab.log({"iter": step, "train_loss": 2.0 / step, "val_loss": None, "time": 1.0})
swanlab.log_sample("今夜我", "今夜我\\n在风里", 3)
swanlab.finish()
Path("said.json").write_text(json.dumps(said), encoding="utf-8")
"""


def test_the_real_package_without_a_login(tmp_path):
    """真正的 swanlab，从未登录的机器，标准输入开着也不询问：离线记录写在本地，两句话。

    同时核对：载入 tracking 并不载入 swanlab。
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

"""设备、时间的说法、进度行、信号。"""

import os
import re
import signal
import unicodedata
from types import SimpleNamespace

import pytest
import torch

import terminal
from terminal import Display, duration
from training import processes
from training.device import DeviceError, Runtime, _peak_of, best_preset, pick_device, seed_step
from training.processes import CommunicationError, PeerError, Processes, StopSignals, _expecting_peers

NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def without_accelerator(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_takes_the_best_there_is(monkeypatch):
    """auto：有 CUDA 用 CUDA，否则 mps，否则 CPU。"""
    without_accelerator(monkeypatch)
    assert pick_device("auto") == torch.device("cpu")
    assert best_preset() == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == "mps"
    assert best_preset() == "mac"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto").type == "cuda"
    assert best_preset() == "gpu"
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match=r"cuda:2.*2 块"):
        pick_device("cuda:2")


@pytest.mark.parametrize(
    "name", ["tpu", "meta", "xpu", "cuda:x", "cuda:-1", "gpu", "", " ", "今夜", "cuda", "cuda:99", "mps"]
)
def test_unknown_and_absent_devices_are_named(monkeypatch, name):
    """不认识的、这台机器没有的设备：一行中文，写出设备名。"""
    without_accelerator(monkeypatch)
    with pytest.raises(DeviceError) as caught:
        pick_device(name)
    message = str(caught.value)
    assert name in message
    assert "\n" not in message
    assert "设备" in message or "没有" in message


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 秒"),
        (-3, "0 秒"),
        (8.4, "8 秒"),
        (59.6, "1 分 0 秒"),
        (312, "5 分 12 秒"),
        (3599.7, "1 小时 0 分"),
        (12000, "3 小时 20 分"),
        (90000, "25 小时 0 分"),
    ],
)
def test_durations_are_said_in_words(seconds, said):
    """四舍五入后再拆成时、分、秒，不出现「60 秒」「60 分」。"""
    assert duration(seconds) == said


def test_precision_is_described_and_only_fp16_needs_a_scaler():
    """fp16 才需要放大梯度；全程 fp32 时 autocast 什么也不改。"""
    cpu = torch.device("cpu")
    assert [Runtime(cpu, dtype, Processes()).needs_scaler for dtype in (None, torch.bfloat16, torch.float16)] == [
        False,
        False,
        True,
    ]
    x = torch.ones(2, 2)
    with Runtime(cpu, None, Processes()).autocast():
        assert (x @ x).dtype == torch.float32
    with Runtime(cpu, torch.bfloat16, Processes()).autocast():
        assert (x @ x).dtype == torch.bfloat16
    assert "fp32" in Runtime(cpu, None, Processes()).describe()
    assert "CPU" in Runtime(cpu, None, Processes()).describe()


def test_each_step_has_its_own_random_numbers():
    """随机性是 (seed, step) 的函数：同一步相同，换一步或换种子不同。"""
    drawn = []
    for seed, step in ((1, 5), (1, 5), (1, 6), (2, 5)):
        seed_step(seed, step)
        drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[1]
    assert len({tuple(numbers) for numbers in drawn}) == 3


# ---- 显示 ----


class Terminal:
    """记下写入的一切；screen() 照终端的规矩解释回车与擦除。"""

    def __init__(self, tty: bool = True) -> None:
        self.tty, self.written = tty, ""

    def isatty(self) -> bool:
        return self.tty

    def write(self, text: str) -> int:
        self.written += text
        return len(text)

    def flush(self) -> None:
        pass

    def screen(self) -> list[str]:
        lines = []
        for line in self.written.split("\n"):
            shown = ""
            for part in re.split(r"(\r|\033\[K)", line):
                if part == "\r":
                    column = 0
                elif part == "\033[K":
                    shown = shown[:column]
                elif part:
                    shown, column = shown + part, len(shown) + len(part)
            lines.append(shown)
        return lines


@pytest.fixture
def clock(monkeypatch):
    """手拨的钟，和 20 列宽的终端。"""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((20, 5)))
    return clock


def width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


@pytest.mark.parametrize(
    "message",
    ["训练 12/600 步，损失 3.21，剩余 5 分", "一" * 30, "a" * 50, "a" + "，" * 30, "短", "进度：♪" + "歌" * 30],
)
def test_progress_never_wraps(clock, message):
    """进度行截到终端宽度以内（汉字与全角标点占两列），否则折行后擦不掉；没有多截。"""
    terminal = Terminal()
    Display(terminal).progress(message)
    assert message.startswith(terminal.written)
    assert width(terminal.written) <= 19
    if terminal.written != message:
        assert width(terminal.written) >= 18


def test_progress_is_erased_before_a_line(clock):
    """普通行出现之前进度行擦净；新的进度行盖住旧的，不留尾巴。"""
    terminal = Terminal()
    display = Display(terminal)
    display.progress("进度一二三四五")
    clock.now += 1
    display.progress("短")
    assert terminal.screen() == ["短"]
    display.line("第 10 步")
    assert terminal.screen() == ["第 10 步", ""]
    display.line("第 20 步")
    clock.now += 1
    display.progress("进度")
    assert terminal.screen() == ["第 10 步", "第 20 步", "进度"]
    assert terminal.written.count("\033[K") == 2  # 没有进度行时不擦


def test_progress_is_limited_to_five_a_second(clock):
    """每秒至多五次，不拖慢训练。"""
    terminal = Terminal()
    display = Display(terminal)
    for step in range(100):
        display.progress(f"<{step}>")
        clock.now += 0.01
    assert terminal.written.count("<") <= 6


def test_no_progress_where_output_is_not_a_terminal(clock):
    """输出到文件或管道时只有普通行，没有控制字符。"""
    terminal = Terminal(tty=False)
    display = Display(terminal)
    display.progress("进度")
    display.line("第 10 步")
    assert terminal.written == "第 10 步\n"


def test_characters_the_terminal_cannot_write_do_not_stop_a_run(tmp_path):
    """GBK 或 ASCII 的终端上，写不出的字变成问号。"""
    with open(tmp_path / "out", "w", encoding="ascii") as file:
        Display(file).line("iter 10 损失")
    assert (tmp_path / "out").read_text() == "iter 10 ??\n"


# ---- 信号 ----


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_is_remembered_the_second_stops(number):
    """训练中第一次只记下来（步末保存），第二次立即结束。"""
    with StopSignals(same_seconds=0).installed() as stop:
        stop.graceful = True
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", NUMBERS)
def test_signals_that_come_together_are_one(monkeypatch, number):
    """内核、shell、torchrun 几乎同时各发一次的，算一次：不能因此不保存就退出；过了这一刻才算第二次。"""
    clock = SimpleNamespace(now=50.0)
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: clock.now))
    said = []
    with StopSignals(same_seconds=1.0, say=said.append).installed() as stop:
        stop.graceful = True
        os.kill(os.getpid(), number)
        for other in NUMBERS:
            os.kill(os.getpid(), other)
        assert (stop.received, said) == (number, [number])
        clock.now += 1.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", NUMBERS)
def test_before_training_a_signal_stops_at_once(number):
    """还没有可保存的东西时，第一次就结束，并记得是哪个信号。"""
    with StopSignals().installed() as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert stop.received == number


def fail_inside() -> None:
    with StopSignals().installed():
        raise RuntimeError("bug")


def test_handlers_are_restored():
    """用完恢复原来的处理，出错也恢复。"""
    before = [signal.getsignal(number) for number in NUMBERS]
    with StopSignals().installed():
        assert [signal.getsignal(number) for number in NUMBERS] != before
    assert [signal.getsignal(number) for number in NUMBERS] == before
    with pytest.raises(RuntimeError, match="bug"):
        fail_inside()
    assert [signal.getsignal(number) for number in NUMBERS] == before


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("Tesla T4", 65e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA RTX A1000 Laptop GPU", None),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090 D", 147.1e12),
        ("NVIDIA GeForce RTX 4060 Ti", 44.1e12),
        ("NVIDIA GeForce RTX 4060", 30.2e12),
        ("NVIDIA GeForce RTX 3060", 25.5e12),
        ("NVIDIA RTX A6000", 154.8e12),
        ("NVIDIA RTX 6000 Ada Generation", 364e12),
        ("NVIDIA A800-SXM4-80GB", 312e12),
        ("NVIDIA H800", 989e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", None),
        ("NVIDIA A10G", None),
        ("NVIDIA T400", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4080 SUPER", None),
        ("NVIDIA H100 NVL", None),
    ],
)
def test_peak_needs_the_exact_model(name, peak):
    """峰值只给表里那一款：名字相近的别的卡不报 MFU。"""
    assert _peak_of(name) == peak


def test_ignored_signals_stay_ignored():
    """nohup 启动时 SIGHUP 不起作用，训练不该改掉它。"""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals().installed() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234\nmore", PeerError),
        ("Broken pipe", PeerError),
        ("NCCL error: unhandled cuda error, NCCL version 2.21\nncclUnhandledCudaError: ...", CommunicationError),
        ("Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 4000", CommunicationError),
    ],
)
def test_only_a_lost_connection_is_another_process(message, error):
    """连接断了才是「另一个进程先结束了」；别的通信错误说出它的第一行。"""
    with pytest.raises(error) as caught, _expecting_peers():
        raise RuntimeError(message)
    assert message.partition("\n")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_urgent_without_a_terminal(monkeypatch):
    """笔记本的标准流没有底下的缓冲：急话也显示在笔记本里，而不是内核的终端上。"""
    shown = []
    stream = SimpleNamespace(write=lambda text: shown.append(text), flush=lambda: None, isatty=lambda: False)
    Display(stream).urgent("收到 Ctrl-C")
    assert "".join(shown) == "收到 Ctrl-C\n"

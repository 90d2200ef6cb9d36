"""docs/cloud.ipynb：在 Colab、Kaggle、AutoDL 上训练的笔记本；另有 `%run`。"""

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import nbformat
import psutil
import pytest
import torch
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from tiny import REPOSITORY, TINY, write_corpus

import flags
import inference

NOTEBOOK = REPOSITORY / "docs" / "cloud.ipynb"
PLATFORM_MARKS = ("google.colab", "git clone", "pip", "FileLink")  # 只在平台上才能做的
TARGET = 400  # 慢测试训练的步数


def read_notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells() -> list[nbformat.NotebookNode]:
    return [cell for cell in read_notebook().cells if cell.cell_type == "code"]


def is_platform(cell: nbformat.NotebookNode) -> bool:
    return "platform" in cell.metadata.get("tags", [])


def source_of(name: str) -> str:
    (cell,) = [cell for cell in code_cells() if cell.id == name]
    return cell.source


def with_values(source: str, **values: str | int | float) -> str:
    """把第一格里的 `名字 = 值  # 说明` 换成别的值。"""
    for name, value in values.items():
        source, count = re.subn(rf"(?m)^{name} = .*  # .*$", lambda _, line=f"{name} = {value!r}": line, source)
        assert count == 1, name
    return source


def play(*names: str, **values: str | int | float) -> dict:
    """不用内核，在一个命名空间里依次执行第一格与所列的格。"""
    space = {"__name__": "notebook"}
    exec(with_values(code_cells()[0].source, **values), space)
    for name in names:
        exec(source_of(name), space)
    return space


# ---------------------------------------------------------------------------
# 笔记本本身
# ---------------------------------------------------------------------------


def test_notebook_is_valid_and_clean():
    notebook = read_notebook()
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells())
    assert all(ast.parse(cell.source).body for cell in code_cells())  # 没有 ! 与 %
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), ensure_ascii=False, indent=1) + "\n"


def test_platform_cells_are_tagged():
    for cell in code_cells():
        assert is_platform(cell) == any(mark in cell.source for mark in PLATFORM_MARKS), cell.id
    assert not is_platform(code_cells()[0])


def test_first_cell_holds_every_place_and_option():
    first, *rest = code_cells()
    options = set(re.findall(r"(?m)^([A-Z_]+) = ", first.source))
    assert {"REPOSITORY_URL", "PLATFORM", "LYRICS", "KEEP", "TRAIN_FLAGS", "WRITE_FLAGS", "PLACES"} <= options
    assert 'REPOSITORY_URL = ""' in first.source
    for cell in rest:
        assert not re.search(r"/content|/kaggle|/root|/tmp|~/", cell.source), cell.id
        assert not options & set(re.findall(r"(?m)^\s*([A-Z_]+) = ", cell.source)), cell.id


def test_flags_exist():
    """笔记本里的每个 --参数 都是 train.py 或 inference.py 的。"""
    training = {f"--{flag.name}" for flag in flags.training_flags()}
    writing = {f"--{flag.name}" for flag in inference.FLAGS}
    first = code_cells()[0].source
    train_line, write_line = (re.search(rf"(?m)^{name} = .*$", first)[0] for name in ("TRAIN_FLAGS", "WRITE_FLAGS"))
    of_torchrun = {"--standalone", "--nproc_per_node"}
    found = {
        "train": set(re.findall(r"--[a-z_]+", train_line + source_of("train"))) - of_torchrun,
        "write": set(re.findall(r"--[a-z_]+", write_line + source_of("write"))),
    }
    assert {"--lyrics_dir", "--checkpoint_dir", "--cache_dir", "--bpe_model_prefix"} <= found["train"] <= training
    assert {"--checkpoint", "--prompt"} <= found["write"] <= writing
    for cell in read_notebook().cells:
        if cell.cell_type == "markdown":
            assert set(re.findall(r"--[a-z_]+", cell.source)) <= training | writing, cell.id


# ---------------------------------------------------------------------------
# 一格一格地
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "platform", "keep"),
    [
        ({"COLAB_RELEASE_TAG": "1"}, "colab", "/content/drive/MyDrive/lyrics-model"),
        (
            {"COLAB_RELEASE_TAG": "1", "KAGGLE_KERNEL_RUN_TYPE": "Batch"},
            "kaggle",
            "/kaggle/working/lyrics-model",
        ),
    ],
)
def test_platform_is_recognized(monkeypatch, tmp_path, variables, platform, keep):
    for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    space = play()
    assert (space["PLATFORM"], str(space["KEEP"])) == (platform, keep)
    assert space["CHECKPOINTS"].is_relative_to(keep)
    assert space["CACHE"].is_relative_to(keep)
    assert space["BPE_MODEL_PREFIX"].is_relative_to(keep)
    assert str(space["CODE"]) == space["PLACES"][platform][0]


def test_options_override_the_platform(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert str(play(PLATFORM="autodl")["LYRICS"]) == "/root/autodl-tmp/lyrics"
    space = play(PLATFORM="autodl", LYRICS="歌", KEEP=str(tmp_path / "留"))
    assert (space["LYRICS"], space["KEEP"]) == (tmp_path / "歌", tmp_path / "留")


def test_inside_the_repository_nothing_is_cloned(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY / "docs")
    space = play("run", "clone", PLATFORM="colab")
    assert space["CODE"] == REPOSITORY
    assert "仓库已在" in capsys.readouterr().out


def test_cloning_needs_an_address(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="REPOSITORY_URL"):
        play("run", "clone", PLATFORM="local", CODE=str(tmp_path / "code"))


@pytest.mark.skipif(shutil.which("git") is None, reason="没有 git")
def test_clone_once(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "源 头"
    source.mkdir()
    (source / "train.py").write_text("")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "一"]):
        subprocess.run(["git", *command], cwd=source, check=True)
    for expected in ("git clone", "仓库已在"):
        play("run", "clone", PLATFORM="local", REPOSITORY_URL=str(source), CODE=str(tmp_path / "代 码"))
        assert expected in capsys.readouterr().out
    assert (tmp_path / "代 码" / "train.py").exists()


def write_zip(path: Path, names: dict[str, bytes]) -> None:
    """names：{占位的名字: 同样长的真名的字节}；不注明 UTF-8，与 Windows、旧 macOS 打的一样。"""
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, "歌词")
    content = path.read_bytes()
    for name, real in names.items():
        assert len(name) == len(real)
        content = content.replace(name.encode(), real)
    path.write_bytes(content)


def test_lyrics_from_zips_files_and_folders(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    write_zip(tmp_path / "songs.zip", {"aaaa.txt": "月光.txt".encode("gbk"), "bbbbbb.txt": "春天.txt".encode()})
    (tmp_path / "一首.lrc").write_text("歌词", encoding="utf-8")
    (tmp_path / "许多[2024]").mkdir()
    options = {"PLATFORM": "local", "UNPACKED": str(tmp_path / "unpacked"), "CODE": str(REPOSITORY)}

    def names(lyrics: str) -> set[str]:
        return {path.name for path in play("run", "lyrics", LYRICS=lyrics, **options)["LYRICS_DIR"].iterdir()}

    for lyrics in ("songs", "songs.zip", "songs.zip"):
        assert names(lyrics) == {"月光.txt", "春天.txt"}
    assert len(list((tmp_path / "unpacked").iterdir())) == 1  # 只解一次
    assert names("一首.lrc") == {"一首.lrc"}
    assert names("许多[2024]") == set()
    write_zip(tmp_path / "songs.zip", {"cccccc.txt": "秋天.txt".encode()})
    assert names("songs") == {"秋天.txt"}
    with pytest.raises(FileNotFoundError, match="没有的"):
        names("没有的")
    named = play("run", "lyrics", LYRICS="songs", **options)["real_name"](zipfile.ZipInfo("月光.txt"))
    assert named == "月光.txt"  # 新的 Python 已从 zip 附加的字段里读出
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert play("run", "lyrics", **options)["LYRICS_DIR"] == REPOSITORY / "ChineseLyrics"
    assert "用自带的样例" in capsys.readouterr().out


def test_kaggle_lyrics_are_found_wherever_they_are_mounted(monkeypatch, tmp_path):
    """数据集挂在 /kaggle/input/名字，新的挂在 /kaggle/input/datasets/用户/名字。"""
    monkeypatch.chdir(tmp_path)
    source = code_cells()[0].source
    assert '"/kaggle/input/**/lyrics"' in source
    for place in ("lyrics", "datasets/someone/lyrics"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        space = {"__name__": "notebook"}
        exec(with_values(source.replace("/kaggle/input", str(tmp_path)), PLATFORM="kaggle"), space)
        exec(source_of("run"), space)
        exec(source_of("lyrics"), space)
        assert space["LYRICS_DIR"] == folder
        shutil.rmtree(tmp_path / place.split("/")[0])


def test_earlier_checkpoints_are_taken_over_once(tmp_path, capsys):
    earlier, keep = tmp_path / "input" / "notebooks" / "someone" / "checkpoints", tmp_path / "keep"
    earlier.mkdir(parents=True)
    (earlier / "latest.pt").write_text("旧")
    (earlier / "metrics.jsonl").write_text("记录")
    options = {"PLATFORM": "kaggle", "EARLIER": str(tmp_path / "input"), "KEEP": str(keep)}
    play("run", "earlier", **options)
    checkpoints = keep / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"latest.pt", "metrics.jsonl"}
    assert "接过" in capsys.readouterr().out
    (checkpoints / "latest.pt").write_text("新")
    play("run", "earlier", **options)
    assert (checkpoints / "latest.pt").read_text() == "新"


CHILD = """
import signal, sys, time
def stop(number, frame):
    time.sleep(0.5)
    open("saved", "w").close()
    print("存好", signal.Signals(number).name, flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
print("开始", flush=True)
time.sleep(60)
"""


def start_run(folder: Path, hours: float = 0) -> subprocess.Popen:
    """在另一个进程里执行笔记本的 run(CHILD)，等 CHILD 开始。"""
    call = f"run(sys.executable, '-c', {CHILD!r}, folder={str(folder)!r}, hours={hours})"
    as_in_a_kernel = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # 后台跑的测试里它可能是忽略的
    script = "\n".join([source_of("run"), as_in_a_kernel, call, "print('下一格', flush=True)"])
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, encoding="utf-8")
    for line in process.stdout:
        if line == "开始\n":
            break
    return process


def test_the_stop_button_stops_only_the_command(tmp_path):
    process = start_run(tmp_path)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert output == "存好 SIGINT\n下一格\n"


def test_hours_are_limited(tmp_path):
    output, _ = start_run(tmp_path, hours=2 / 3600).communicate(timeout=30)
    assert output == "存好 SIGINT\n下一格\n"


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="没有 setpriv")
def test_a_dead_kernel_lets_the_command_save(tmp_path):
    process = start_run(tmp_path)
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 30
    while not (tmp_path / "saved").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_failed_command_stops_the_notebook(tmp_path):
    space = play("run", CODE=str(tmp_path))
    with pytest.raises(RuntimeError, match="退出码 3"):
        space["run"](sys.executable, "-c", "raise SystemExit(3)")


# ---------------------------------------------------------------------------
# 在真的内核里
# ---------------------------------------------------------------------------


@pytest.fixture
def kernel_environment(monkeypatch, tmp_path):
    """内核与它的子进程不往主目录、仓库里写，也不争处理器。"""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def files_in_repository() -> set[Path]:
    found = set(REPOSITORY.rglob("*"))
    return {
        path
        for path in found
        if not any(p.startswith((".", "__pycache__")) for p in path.relative_to(REPOSITORY).parts)
    }


def small_notebook(folder: Path) -> nbformat.NotebookNode:
    """去掉平台的格，第一格换成小的设置。"""
    notebook = read_notebook()
    notebook.cells = [cell for cell in notebook.cells if not is_platform(cell)]
    intervals = f"--train_iters {TARGET} --eval_interval 100 --save_interval 20 --log_interval 5".split()
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source = with_values(
        first.source,
        PLATFORM="local",
        CODE=str(REPOSITORY),
        LYRICS=str(folder / "songs.zip"),
        KEEP=str(folder / "留 着"),
        UNPACKED=str(folder / "unpacked"),
        TRAIN_FLAGS=" ".join([*TINY, *intervals]),
        WRITE_FLAGS="--prompt 今夜我 --max_tokens 20 --seed 1 --device cpu",
    )
    return notebook


def execute(notebook: nbformat.NotebookNode, folder: Path, at: int = 0, act=None, **options) -> dict[str, str]:
    """全部运行；训练记到第 at 步时做 act(内核进程)。返回 {格: 显示的文字}。"""
    options |= {"timeout": 120, "kernel_name": "python3", "resources": {"metadata": {"path": str(folder)}}}
    client = NotebookClient(notebook, **options)
    metrics, done = folder / "留 着" / "checkpoints" / "metrics.jsonl", threading.Event()

    def watch():
        while not done.wait(0.02):
            lines = metrics.read_text(encoding="utf-8").split("\n")[:-1] if metrics.exists() else []
            if lines and json.loads(lines[-1])["iter"] >= at:
                return act(psutil.Process(client.km.provisioner.pid))
        return None

    watcher = threading.Thread(target=watch)
    if act is not None:
        watcher.start()
    try:
        client.execute()
    finally:
        done.set()
        if act is not None:
            watcher.join()
    return {
        cell.id: "".join(output.get("text", "") for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


def cut(kernel: psutil.Process) -> None:
    """会话断了：整台机器没了，谁也来不及存。"""
    (child,) = kernel.children()
    kernel.kill()
    child.kill()
    psutil.wait_procs([child], timeout=10)


def press_stop(kernel: psutil.Process) -> None:
    """停止键：Jupyter 给内核的进程组发 SIGINT。"""
    os.killpg(os.getpgid(kernel.pid), signal.SIGINT)


@pytest.mark.slow
def test_notebook_survives_a_cut_and_the_stop_button(tmp_path, kernel_environment):
    """训练中会话断了；再全部运行，接着训练，按停止键；再全部运行，训练完，写出歌词。仓库里什么也没有写。"""
    before = files_in_repository()
    shutil.make_archive(str(tmp_path / "songs"), "zip", write_corpus(tmp_path / "songs", 40))
    latest = tmp_path / "留 着" / "checkpoints" / "latest.pt"

    def saved_iteration() -> int:
        return torch.load(latest, weights_only=True)["iter"]

    with pytest.raises(DeadKernelError):
        execute(small_notebook(tmp_path), tmp_path, at=60, act=cut)
    cut_at = saved_iteration()
    assert 0 < cut_at < TARGET

    stopped = execute(small_notebook(tmp_path), tmp_path, at=160, act=press_stop)
    assert f"接着训练：从 {latest} 的第 {cut_at} 步继续" in stopped["train"]
    assert f"已保存 {latest}" in stopped["train"]
    assert any(line.startswith("今夜我") for line in stopped["write"].splitlines())
    stopped_at = saved_iteration()
    assert cut_at < stopped_at < TARGET

    finished = execute(small_notebook(tmp_path), tmp_path)
    assert f"接着训练：从 {latest} 的第 {stopped_at} 步继续" in finished["train"]
    assert f"训练完成：{TARGET} 步" in finished["train"]
    assert saved_iteration() == TARGET
    assert any(line.startswith("今夜我") for line in finished["write"].splitlines())
    assert files_in_repository() == before


@pytest.mark.slow
def test_run_magic(tmp_path, kernel_environment):
    """`%run` 在内核自己的进程里执行：没有回溯；停止键先存好；用户的错误是一句中文；之后的格照常。"""
    places = {"--checkpoint_dir": "留 着/checkpoints", "--cache_dir": "cache", "--bpe_model_prefix": "bpe"}
    words = [*TINY, "--lyrics_dir", str(write_corpus(tmp_path / "songs", 40)), "--log_interval", "5"]
    words += ["--eval_interval", "100", "--save_interval", "100", *(word for pair in places.items() for word in pair)]
    train = f"%run {shlex.quote(str(REPOSITORY / 'train.py'))} {shlex.join(words)} --train_iters"
    write = f"%run {shlex.quote(str(REPOSITORY / 'inference.py'))} --device cpu --prompt 今夜我 --max_tokens 20"
    sources = {
        "stopped": f"{train} 1000000",
        "finished": f"{train} {TARGET}",
        "mistaken": f"{train} 0",
        "write": f"{write} --checkpoint {shlex.quote('留 着/checkpoints/best.pt')}",
        "after": "print('照常')",
    }
    cells = [nbformat.v4.new_code_cell(source, id=name) for name, source in sources.items()]
    shown = execute(nbformat.v4.new_notebook(cells=cells), tmp_path, at=60, act=press_stop, allow_errors=True)
    errors = {cell.id: [output for output in cell.outputs if output.output_type == "error"] for cell in cells}
    assert "已保存" in shown["stopped"]
    assert "接着训练" in shown["finished"]
    assert f"训练完成：{TARGET} 步" in shown["finished"]
    assert shown["mistaken"].startswith("错误：--train_iters 0")
    assert any(line.startswith("今夜我") for line in shown["write"].splitlines())
    assert shown["after"] == "照常\n"
    assert {name: [(error.ename, error.evalue) for error in found] for name, found in errors.items() if found} == {
        "stopped": [("SystemExit", "130")],
        "mistaken": [("SystemExit", "2")],
    }
    assert "Traceback" not in "".join(shown.values())
    assert all("Traceback" not in "".join(error.traceback) for found in errors.values() for error in found)

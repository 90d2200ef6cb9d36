"""编译好的一步：与 torch 的一步相同；编译、核对、缓存出了什么事都只是不用它。"""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import REPOSITORY

from generation import Sampling, TorchStep, generate
from model import GPT, ModelConfig
from training.device import DeviceError
from writing import decode, loading
from writing.decode import CannotFuse, Decoder, FusedStep, fused_steps
from writing.drafts import Composer

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="没有 g++")
SHAPES = [
    ModelConfig(vocab_size=37, max_seq_len=24, n_layers=2, n_heads=1, n_embed=6),
    ModelConfig(vocab_size=61, max_seq_len=24, n_layers=1, n_heads=3, n_embed=42),
    ModelConfig(vocab_size=128, max_seq_len=24, n_layers=3, n_heads=4, n_embed=256),
]
HOWS = ("auto", "fused", "torch")
BOUNDS = {"fp32": 1e-5, "bf16": 0.02, "fp16": 0.01, "int8": 0.06}  # logits 的相对误差


def quiet(message: str) -> None:
    pass


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    """在空的缓存文件夹里编译、核对的库。"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return decode.load_library(quiet)


def lively(config: ModelConfig) -> GPT:
    """前文对下一个词元影响明显的随机模型。"""
    torch.manual_seed(1)
    model = GPT(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    return model


def greedy(model: GPT, prompt: list[int], count: int, **options) -> list[int]:
    steps = generate(model, prompt, Sampling(max_tokens=count, temperature=0), stop_id=-1, **options)
    return [token for step in steps for _, token in step]


# ---- 与 torch 的相同 ----


@needs_compiler
@pytest.mark.parametrize("config", SHAPES, ids=lambda config: f"{config.n_heads}x{config.n_embed}")
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("threads", "rows"), [(1, 1), (2, 3), (7, 8)])
def test_logits_equal_those_of_torch(library, config, dtype, threads, rows):
    """不整齐的形状、各种精度、线程比头多：几首一起、一次一个或几个词元，走到缓存写满，与 torch 的相同，缓存也是。"""
    if dtype == "fp16" and not library.decoder_has_fp16():
        pytest.skip("这个 CPU 没有 fp16 的指令")
    model = lively(config)
    decoder = Decoder(library, model, dtype, threads)
    tokens = torch.randint(config.vocab_size, (rows, config.max_seq_len))
    ours, theirs = (model.new_cache(rows, config.max_seq_len) for _ in range(2))
    plain = TorchStep(model, theirs)
    lengths = {1: [8, 1, 1, 5, 3, 1, 2, 3], 3: [2, 1, 1] * 6, 8: [1] * 24}[rows]
    for some in tokens.split(lengths, dim=1):
        expected, found = plain(some), decoder.step(ours, some)[:, -1]
        assert (found - expected).norm() <= BOUNDS[dtype] * expected.norm()
        assert torch.isfinite(found).all()
    assert ours.length == theirs.length == config.max_seq_len
    if dtype == "fp32":
        torch.testing.assert_close(ours.entries, theirs.entries, atol=1e-4, rtol=1e-4)


@needs_compiler
def test_greedy_songs_are_the_same(library):
    """fp32：十个开头，各贪心写两百个词元，越过几次缓存写满，一个不差。"""
    model = lively(SHAPES[2])
    make_step = fused_steps(Decoder(library, model, "fp32", 2))
    for first in range(10):
        prompt = [first, first + 20]
        assert greedy(model, prompt, 200, make_step=make_step) == greedy(model, prompt, 200)


@needs_compiler
@pytest.mark.parametrize("songs", [2, 5, 20])
def test_songs_leaving_a_batch_go_on(library, songs):
    """几首一起写，先写完的离开；行数从多到少，从 torch 的一步换到编译好的，歌都一样。"""
    model = lively(SHAPES[1])
    make_step = fused_steps(Decoder(library, model, "fp32", 2))
    sampling = Sampling(max_tokens=60, seed=3, temperature=1.2, repetition_penalty=1.1)
    options = {"stop_id": 5, "num_samples": songs}
    ours, theirs = (
        list(generate(model, [1, 2], sampling, make_step=make, **options)) for make in (make_step, TorchStep)
    )
    assert ours == theirs
    assert len({len(step) for step in ours}) >= min(3, songs - 1)


class AnyLine:
    """什么都许的一行，写十个词元。"""

    text = ""

    def __init__(self) -> None:
        self.written = 0

    def forbidden(self):
        import numpy as np

        return np.zeros(SHAPES[1].vocab_size, dtype=bool)

    def refuses(self, token: int) -> bool:
        return False

    def push(self, token: int) -> None:
        self.written += 1


@needs_compiler
def test_drafts_of_a_line_are_the_same(library):
    """一行几稿：从同一段前文分出去，各自写完，取的是同一稿。"""
    model = lively(SHAPES[1])
    make_step = fused_steps(Decoder(library, model, "fp32", 2))
    lines = []
    for make in (make_step, TorchStep):
        composer = Composer(model, [1, 2], Sampling(seed=4), ends=[7, 8, 9], candidates=4, make_step=make)
        lines.append([composer.line(AnyLine, 12).tokens for _ in range(4)])
    assert lines[0] == lines[1]


@needs_compiler
@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_nan_stays_nan(library, dtype):
    """权重里有 nan：结果也是 nan，不会变成一首看似正常的歌。"""
    model = lively(SHAPES[1])
    model.blocks[0].norm_1.weight[3] = torch.nan
    step = FusedStep(Decoder(library, model, dtype, 2), model, model.new_cache(1, 4))
    assert step(torch.tensor([[1]])).isnan().all()


@needs_compiler
def test_full_cache_is_refused(library):
    """缓存装不下：报错，不会写到外面去。"""
    model = lively(SHAPES[1])
    cache = model.new_cache(1, 4)
    decoder = Decoder(library, model, "fp32", 2)
    decoder.step(cache, torch.tensor([[1, 2, 3]]))
    with pytest.raises(ValueError, match="装不下 5 个"):
        decoder.step(cache, torch.tensor([[1, 2]]))


@needs_compiler
def test_many_steps_under_load(library):
    """线程之间没有丢失的唤醒：许多步、许多线程，都走得完，结果相同。"""
    model = lively(SHAPES[0])
    decoders = [Decoder(library, model, "fp32", threads) for threads in (1, 5)]
    found = [greedy(model, [1], 600, make_step=fused_steps(decoder)) for decoder in decoders]
    assert found[0] == found[1]


@needs_compiler
def test_songs_of_the_command_line_are_the_same(trained, write):
    """--decode fused 与 torch：fp32 写出同样的歌，一首、几首、守句式的都是；auto 就是 fused。"""
    for options in (
        ["--prompt", "我"],
        ["--prompt", "我", "--num_samples", "3"],
        ["--lines", "3", "--candidates", "4"],
    ):
        songs = {how: write(*options, "--seed", "5", "--dtype", "fp32", "--decode", how)[0] for how in HOWS}
        assert len(set(songs.values())) == 1


def test_without_a_compiler_torch_goes_on(trained, write, monkeypatch):
    """用不了：auto 说一句为什么，照写；fused 不行；torch 不说。"""

    def cannot(say):
        raise CannotFuse("没有 C++ 编译器，可 pip install ziglang 或装 g++")

    monkeypatch.setattr(loading, "load_library", cannot)
    options = ("--prompt", "我", "--seed", "5", "--dtype", "fp32")
    song, told = write(*options)
    assert "pip install ziglang" in told
    assert "ziglang" not in write(*options, "--decode", "torch")[1]
    assert write(*options, "--decode", "torch")[0] == song
    with pytest.raises(DeviceError, match="ziglang"):
        write(*options, "--decode", "fused")


# ---- 编译、核对、缓存 ----


def only(monkeypatch, *command: str) -> None:
    monkeypatch.setattr(decode, "compilers", lambda: [list(command)])


def fake_compiler(folder: Path, body: str) -> str:
    """一个假的编译器：--version 照答，编译时执行 body（$out 是要写的文件）。"""
    path = folder / "fake-g++"
    path.write_text(
        '#!/bin/bash\nif [ "$1" = --version ]; then echo fake 1; exit; fi\n'
        'while [ "$1" != -o ]; do shift; done; out="$2"\n' + body + "\n"
    )
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "nanogpt-lyrics"


def test_without_a_compiler(monkeypatch, cache, tmp_path):
    """没有编译器：说装什么。"""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))  # 这里也许装了 ziglang
    with pytest.raises(CannotFuse, match="ziglang"):
        decode.load_library(quiet)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("echo 'decode.cpp:1: error: no concepts' >&2; exit 1", "no concepts"),
        ("exit 0", "写不了"),  # 说编译好了，却没有文件
        ("echo nonsense > $out", "核对没有通过"),
    ],
    ids=["error", "nothing", "nonsense"],
)
def test_a_compiler_that_fails(monkeypatch, cache, tmp_path, body, told):
    """编译不成，或编出来的不是库：一句原因；不留下半个库。"""
    only(monkeypatch, fake_compiler(tmp_path, body))
    with pytest.raises(CannotFuse, match=told):
        decode.load_library(quiet)
    assert not list(cache.glob("*.tmp")) if cache.exists() else True


@needs_compiler
def test_a_library_that_dies_of_an_illegal_instruction(monkeypatch, cache, tmp_path):
    """载入就死于非法指令的库：死的是核对的子进程；判断记下来，下次不再试。"""
    bad = tmp_path / "bad.cpp"
    bad.write_text("#include <csignal>\n__attribute__((constructor)) static void die() { std::raise(SIGILL); }\n")
    only(monkeypatch, fake_compiler(tmp_path, f"g++ -shared -fPIC -o $out {bad}"))
    said = []
    for _ in range(2):
        with pytest.raises(CannotFuse, match="核对没有通过"):
            decode.load_library(said.append)
    assert len(said) == 1


@needs_compiler
def test_a_library_that_computes_something_else(monkeypatch, cache, tmp_path):
    """算错的库：核对看得出来。"""
    wrong = tmp_path / "wrong.cpp"
    source = decode.SOURCE.read_text(encoding="utf-8")
    wrong.write_text(source.replace("* cache.cos[at + i] +", "* cache.cos[at + i] -", 1), encoding="utf-8")
    flags = " ".join(decode.flags())
    only(monkeypatch, fake_compiler(tmp_path, f"g++ {flags} -o $out {wrong}"))
    with pytest.raises(CannotFuse, match="与 torch 的不同"):
        decode.load_library(quiet)


@needs_compiler
@pytest.mark.slow
def test_a_damaged_library_is_made_again(cache):
    """缓存里的库断了半截、判断被改坏：重新编译；完好的不再编译。"""
    said = []
    decode.load_library(said.append)
    decode.load_library(said.append)
    assert len(said) == 1
    (library,), (noted,) = cache.glob("*.so"), cache.glob("*.json")
    whole = library.read_bytes()
    library.unlink()  # 换掉，而不是改写载入着的
    library.write_bytes(whole[: len(whole) // 2])
    decode.load_library(said.append)
    noted.write_text("[]", encoding="utf-8")
    decode.load_library(said.append)
    assert len(said) == 3


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    """缓存文件夹写不了：一句话。"""
    (tmp_path / "file").write_text("占着位置")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said = []
    monkeypatch.setattr(decode, "compilers", lambda: [[fake_compiler(tmp_path, "exit 0")]] * 2)
    with pytest.raises(CannotFuse, match="写不了") as caught:
        decode.load_library(said.append)
    assert str(caught.value).count("写不了") == 1
    assert said == []


def test_another_cpu_gets_its_own(monkeypatch, cache, tmp_path):
    """另一颗 CPU、另一个编译器不会拿错库。"""
    names = set()
    for identity in ("一颗", "另一颗"):
        monkeypatch.setattr(decode, "cpu_identity", lambda identity=identity: identity)
        only(monkeypatch, fake_compiler(tmp_path, "echo nonsense > $out"))
        with pytest.raises(CannotFuse):
            decode.load_library(quiet)
        names |= {path.name for path in cache.glob("*.json")}
    assert len(names) == 2


@needs_compiler
@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    """两个进程同时第一次编译：都用得上，都没有坏。"""
    code = "from writing import decode; decode.load_library(print)"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    both = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address", "undefined"])
def test_sanitizers_find_nothing(tmp_path, sanitizer):
    """AddressSanitizer 与 UndefinedBehaviorSanitizer：核对的那些步里没有越界、溢出。"""
    made = tmp_path / "checked.so"
    options = ["-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    subprocess.run(["g++", *decode.flags(), *options, "-o", str(made), str(decode.SOURCE)], check=True, timeout=120)
    name = {"address": "libasan.so", "undefined": "libubsan.so"}[sanitizer]
    preload = subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, str(REPOSITORY / "writing" / "decode.py"), str(made)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

"""解码的一步，编译成一次调用（decode.cpp）：CPU 上写一首歌，时间只剩下把权重从内存读一遍。

第一次用到时编译，放进用户的缓存文件夹；先在子进程里走一步、与 torch 比过才用。
"""

import contextlib
import ctypes
import errno
import hashlib
import itertools
import json
import mmap
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from generation import MakeStep, Step, TorchStep
from model import GPT, KVCache, ModelConfig

SOURCE = Path(__file__).with_name("decode.cpp")
COMPILE_SECONDS = TEST_SECONDS = 60
ZIG_SECONDS = 300  # ziglang 头一次要编译自己的标准库，约一分钟

KINDS = {"fp32": 0, "bf16": 1, "fp16": 2, "int8": 3}
STORED = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
# 至多几首一起走；再多的，torch 的矩阵乘更快（量于两核的 AMD EPYC）
MOST_SONGS = {"fp32": 2, "bf16": 3, "fp16": 4, "int8": 4}
# 前文不长时也由它读，一次几个词元：不必等 torch 那边排好权重，第一个字早半秒
MOST_TOKENS, AT_ONCE = 24, 4  # C++ 那边一次容得下 8 行

_pointer = ctypes.c_void_p


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("weight", "scale", "totals", "bias")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs")),
    ]


class _Norm(ctypes.Structure):
    _fields_ = [("weight", _pointer), ("bias", _pointer)]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("norm_1", _Norm),
        ("qkv", _Matrix),
        ("proj", _Matrix),
        ("norm_2", _Norm),
        ("fc", _Matrix),
        ("out", _Matrix),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("kind", "layers", "heads", "width", "vocabulary")),
        ("epsilon", ctypes.c_float),
        ("embedding", _pointer),
        ("layer", ctypes.POINTER(_Layer)),
        ("norm", _Norm),
        ("head", _Matrix),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("entries", "cos", "sin")),
        *((name, ctypes.c_int64) for name in ("songs", "capacity", "length", "count")),
    ]


class Decoder:
    """排好的权重与线程。

    Args:
        model: 在 CPU 上的 fp32 模型；不改动它。
        dtype: 权重存成 fp32、bf16、fp16 或 int8。
    """

    def __init__(self, library: ctypes.CDLL, model: GPT, dtype: str, threads: int) -> None:
        self.library, self.dtype = library, dtype
        self._held: list[Any] = []  # C++ 那边只有指针
        self._room = self._memory(model)
        c = model.config
        blocks = [
            _Layer(
                self._norm(block.norm_1),
                self._matrix(block.attention.qkv),
                self._matrix(block.attention.proj),
                self._norm(block.norm_2),
                self._matrix(block.feed_forward.fc),
                self._matrix(block.feed_forward.proj),
            )
            for block in model.blocks
        ]
        embedding = model.embedding.weight
        self._layers = (_Layer * len(blocks))(*blocks)
        self._model = _Model(
            KINDS[dtype],
            c.n_layers,
            c.n_heads,
            c.n_embed,
            c.vocab_size,
            c.layer_norm_eps,
            self._hold(embedding),
            self._layers,
            self._norm(model.norm),
            self._packed(embedding, None),
        )
        self._decoder = library.decoder_new(ctypes.byref(self._model), threads)

    def _memory(self, model: GPT) -> Iterator[memoryview]:
        """一次要来放得下全部矩阵的内存，用大页：顺着读几百兆时，少查许多次页表。逐个给出，各对齐到缓存行。"""
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        sizes = [linear.weight.numel() for linear in linears] + [model.embedding.weight.numel()]
        rooms = [-(-size * STORED[self.dtype].itemsize // 64) * 64 for size in sizes]
        whole = mmap.mmap(-1, sum(rooms))
        with contextlib.suppress(AttributeError, OSError):  # 不是 Linux，或内核没有大页
            whole.madvise(mmap.MADV_HUGEPAGE)
        self._held.append(whole)
        ends = list(itertools.accumulate(rooms))
        return (memoryview(whole)[end - room : end] for room, end in zip(rooms, ends, strict=True))

    def _hold(self, tensor: Tensor) -> int:
        tensor = tensor.detach().contiguous()
        self._held.append(tensor)
        return tensor.data_ptr()

    def _norm(self, norm: nn.LayerNorm) -> _Norm:
        return _Norm(self._hold(norm.weight), self._hold(norm.bias))

    def _matrix(self, linear: nn.Linear) -> _Matrix:
        return self._packed(linear.weight, linear.bias)

    def _packed(self, weight: Tensor, bias: Tensor | None) -> _Matrix:
        weight, scale, totals = weight.detach(), None, None
        stored = torch.frombuffer(next(self._room), dtype=STORED[self.dtype], count=weight.numel()).view(weight.shape)
        if self.dtype == "int8":
            scales = (weight.abs().amax(dim=1) / 127).clamp_min(1e-12)
            stored.copy_((weight / scales[:, None]).round_())
            scale, totals = self._hold(scales), self._hold(stored.sum(dim=1, dtype=torch.int32))
        else:
            stored.copy_(weight)
        outputs, inputs = weight.shape
        return _Matrix(self._hold(stored), scale, totals, None if bias is None else self._hold(bias), outputs, inputs)

    def step(self, cache: KVCache, tokens: Tensor) -> Tensor:
        """接在 cache 之后，写进它。tokens: (B, T) int64，B·T 不过 8 → logits (B, T, V)。

        Raises:
            ValueError: cache 装不下。
        """
        (songs, count), (cos, sin) = tokens.shape, cache.rope
        if cache.length + count > cache.capacity:
            raise ValueError(f"KV 缓存容量 {cache.capacity}，装不下 {cache.length + count} 个词元")
        pointers = cache.entries.data_ptr(), cos.data_ptr(), sin.data_ptr()
        given = _Cache(*pointers, songs, cache.capacity, cache.length, count)
        tokens, logits = tokens.contiguous(), torch.empty(songs, count, self._model.vocabulary)
        self.library.decoder_step(self._decoder, ctypes.byref(given), tokens.data_ptr(), logits.data_ptr())
        cache.length += count
        return logits

    def __del__(self) -> None:
        self.library.decoder_free(self._decoder)


class FusedStep:
    """走一步（`generation.Step`）；一次的行数多时矩阵乘更快，走 torch 的。"""

    def __init__(self, decoder: Decoder, model: GPT, cache: KVCache) -> None:
        self.decoder, self.cache = decoder, cache
        self.torch_step = TorchStep(model, cache)

    def __call__(self, tokens: Tensor) -> Tensor:
        songs, count = tokens.shape
        if count == 1 and songs <= MOST_SONGS[self.decoder.dtype]:
            return self.decoder.step(self.cache, tokens)[:, 0]
        if songs == 1 and count <= MOST_TOKENS:
            return [self.decoder.step(self.cache, some) for some in tokens.split(AT_ONCE, dim=1)][-1][:, -1]
        return self.torch_step(tokens)

    def keep_rows(self, rows: Tensor) -> None:
        self.cache.keep_rows(rows)


def fused_steps(decoder: Decoder) -> MakeStep:
    """交给 `generation` 的：缓存换了就再备一次。"""

    def make(model: GPT, cache: KVCache) -> Step:
        return FusedStep(decoder, model, cache)

    return make


# ---------------------------------------------------------------------------
# 编译、核对、载入
# ---------------------------------------------------------------------------


class CannotFuse(Exception):
    """这里用不了；消息说为什么、装什么。"""


class CannotWrite(CannotFuse):
    """缓存文件夹写不了。"""


def cache_folder() -> Path:
    windows = os.environ.get("LOCALAPPDATA")
    base = os.environ.get("XDG_CACHE_HOME") or (windows if os.name == "nt" else None) or Path.home() / ".cache"
    return Path(base) / "nanogpt-lyrics"


def compilers() -> list[list[str]]:
    """可以一试的 C++ 编译器，先试用户指明的。"""
    named = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    found = [[path] for path in map(shutil.which, filter(None, named)) if path]
    return [*found, [sys.executable, "-m", "ziglang", "c++"]]


def flags() -> list[str]:
    native = "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"
    return ["-std=c++20", "-O3", native, "-fopenmp-simd", "-shared", "-fPIC", "-pthread"]


def cpu_identity() -> str:
    """这颗 CPU 的型号与指令集：编译出来的只给它用，几台机器共用一个家目录也不会拿错。"""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return "\n".join(
            sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU "))})
        )
    except OSError:
        return f"{platform.processor()} {platform.machine()} {platform.version()}"


def load_library(say: Callable[[str], None]) -> ctypes.CDLL:
    """编译过、核对过的库；第一次要编译几秒，说一句。

    Raises:
        CannotFuse: 没有编译器、编译不成、缓存文件夹写不了，或结果与 torch 的不同。
    """
    problems = []
    for compiler in compilers():
        try:
            version = _run([*compiler, "--version"], COMPILE_SECONDS)
        except CannotFuse:
            continue
        try:
            return _bind(_checked(compiler, version, say))
        except CannotWrite:  # 换一个编译器也一样
            raise
        except CannotFuse as error:
            problems.append(f"{Path(compiler[-1]).name}：{error}")
    raise CannotFuse("；".join(problems) or "没有 C++ 编译器，可 pip install ziglang 或装 g++")


def _checked(compiler: list[str], version: str, say: Callable[[str], None]) -> Path:
    """编译好、核对过的库；判断记在旁边，下次不必再做。"""
    identity = "\0".join(
        [SOURCE.read_text(encoding="utf-8"), *compiler, version, *flags(), cpu_identity(), sys.platform]
    )
    name = f"decode-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
    folder = cache_folder()
    library, noted = folder / f"{name}{'.dll' if os.name == 'nt' else '.so'}", folder / f"{name}.json"
    try:
        verdict = json.loads(noted.read_text(encoding="utf-8"))
        if verdict["problem"]:
            raise CannotFuse(verdict["problem"])
        if hashlib.sha256(library.read_bytes()).hexdigest() == verdict["sha256"]:
            return library
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise CannotWrite(f"{folder} 写不了：{error.strerror or error}") from None
    zig = "ziglang" in compiler
    say(f"第一次在这台机器上写歌：编译解码的一步，{'ziglang 头一次约一分钟' if zig else '几秒'} …")
    problem = ""
    try:
        made = folder / f"{name}.{os.getpid()}.tmp"
        try:
            _run([*compiler, *flags(), "-o", str(made), str(SOURCE)], ZIG_SECONDS if zig else COMPILE_SECONDS)
            content = made.read_bytes()
            os.replace(made, library)
        finally:
            made.unlink(missing_ok=True)
        try:
            _run([sys.executable, str(Path(__file__)), str(library)], TEST_SECONDS)
        except CannotFuse as error:
            problem = f"核对没有通过（{error}）"
        note = json.dumps({"problem": problem, "sha256": hashlib.sha256(content).hexdigest()})
        temporary = folder / f"{name}.{os.getpid()}.json.tmp"
        temporary.write_text(note, encoding="utf-8")
        os.replace(temporary, noted)
    except OSError as error:
        raise CannotFuse(f"{folder} 写不了：{error.strerror or error}") from None
    if problem:
        raise CannotFuse(problem)
    return library


def _run(command: list[str], seconds: float) -> str:
    """
    Raises:
        CannotFuse: 启动不了、超时或退出码不是 0。
    """
    environment = {**os.environ, "LC_ALL": "C", "PYTHONPATH": str(SOURCE.parent.parent)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotFuse(type(error).__name__) from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise CannotFuse((lines[-1] if lines else f"退出码 {done.returncode}")[:200])
    return done.stdout


def _bind(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.decoder_new.restype = _pointer
    library.decoder_new.argtypes = [ctypes.POINTER(_Model), ctypes.c_int]
    library.decoder_free.argtypes = [_pointer]
    library.decoder_step.argtypes = [_pointer, ctypes.POINTER(_Cache), _pointer, _pointer]
    return library


def self_test(library: ctypes.CDLL) -> None:
    """各种精度、不整齐的形状，与 torch 的一步相比。

    Raises:
        CannotFuse: 不同。
    """
    torch.manual_seed(0)
    model = (
        GPT(ModelConfig(vocab_size=37, max_seq_len=16, n_layers=2, n_heads=3, n_embed=42)).eval().requires_grad_(False)
    )
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    tokens = torch.randint(37, (2, 12))
    for dtype, bound in (("fp32", 1e-4), ("bf16", 0.02), ("fp16", 0.01), ("int8", 0.1)):
        if dtype == "fp16" and not library.decoder_has_fp16():
            continue
        decoder = Decoder(library, model, dtype, threads=2)
        ours, theirs = model.new_cache(2, 16), model.new_cache(2, 16)
        plain = TorchStep(model, theirs)
        for some in tokens.split([1, 1, 3, 1, 4, 1, 1], dim=1):
            expected, found = plain(some), decoder.step(ours, some)[:, -1]
            if not (found - expected).norm() <= bound * expected.norm():
                raise CannotFuse(f"{dtype} 的结果与 torch 的不同")


if __name__ == "__main__":
    try:
        self_test(_bind(Path(sys.argv[1])))
    except CannotFuse as error:
        sys.exit(str(error))

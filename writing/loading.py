"""从检查点到可以写歌的模型。"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lyrics.copies import CopyIndex
from lyrics.form import LyricsError
from tokenizer import Tokenizer
from training import checkpoint
from training.checkpoint import CheckpointError
from training.device import DeviceError, device_name, native_half, pick_device
from writing.decode import CannotFuse, Decoder, load_library
from writing.kernels import fastest_dtype, prepare_for_writing
from writing.writer import Writer

READY = "models/lyrics-small.pt"  # 随仓库来的；从不自己用它


class Loaded(NamedTuple):
    """备好的模型。

    Attributes:
        dtype: 所用的精度。
        about: 载入了什么的一句话。
    """

    writer: Writer
    device: torch.device
    dtype: str
    about: str


_WAYS_ON = f"用现成的小模型写：--checkpoint {READY}；或先训练一个：python train.py --preset cpu（两个 CPU 核约三分钟）"


def load_writer(
    path: Path, device_flag: str, dtype: str, decode: str = "torch", say: Callable[[str], None] = lambda message: None
) -> Loaded:
    """读检查点，备好模型。

    Args:
        decode: auto：CPU 上用编译好的一步，用不了就走 torch 的；fused：必须用；torch：不用。
        say: 收一行消息：第一次要编译。

    Raises:
        CheckpointError, DeviceError: 见各自的说明；不在 CPU 上而要 int8，或用不了而要 fused，也是 DeviceError。
    """
    device = pick_device(device_flag)
    if not path.is_file():
        raise CheckpointError(f"找不到检查点：{path}\n{_WAYS_ON}")
    contents = checkpoint.load(path, mmap=os.name != "nt")  # Windows 上映射着的文件，训练就换不掉
    model, tokenizer = checkpoint.restore(contents, path)
    chosen = "（auto 选定）" if dtype == "auto" else ""
    library, how = None, ""
    if decode == "fused" or (decode == "auto" and device.type == "cpu"):
        library, how = find_library(device, decode, say)
    dtype = fastest_dtype(device, native_half(device), library is not None) if dtype == "auto" else dtype
    if dtype == "int8" and device.type != "cpu":
        raise DeviceError(f"--dtype int8 只用于 CPU：{device_name(device)} 请用 bf16 或 fp16")
    decoder = None
    if library is not None and (dtype != "fp16" or library.decoder_has_fp16()):
        decoder = Decoder(library, model, dtype, torch.get_num_threads())
    model = prepare_for_writing(model.to(device), dtype, one_row=decoder is None)
    bpc = f"，验证 {contents['val_bpc']:.3f} 比特/字" if contents["val_bpc"] is not None else ""
    about = f"已载入 {path}（第 {contents['iter']} 步{bpc}）· {device_name(device)} · {dtype}{chosen}{how}"
    return Loaded(Writer(model, tokenizer, decoder=decoder), device, dtype, about)


def find_library(device: torch.device, decode: str, say: Callable[[str], None]) -> tuple[Any, str]:
    """（编译好的库，一句话：用不了时为什么）。"""
    try:
        if device.type != "cpu":
            raise CannotFuse("只用于 CPU")
        return load_library(say), ""
    except CannotFuse as error:
        if decode == "fused":
            raise DeviceError(f"--decode fused 用不了：{error}") from None
        return None, f" · 一步一步走 torch，会慢一半（{error}）"


def open_copies(folder: Path, tokenizer: Tokenizer, required: bool) -> CopyIndex | None:
    """读语料的索引。

    Raises:
        LyricsError: 需要而没有，或是别的语料的。
    """
    found = CopyIndex.load(folder, tokenizer.fingerprint)
    if required and found is None:
        raise LyricsError(
            f"没有这个模型的语料索引：{folder}\n请先运行 python evaluate.py --only index --checkpoint 检查点"
        )
    return found

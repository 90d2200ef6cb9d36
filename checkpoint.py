"""检查点：原子地保存，安全地读出，归档旧的一次训练。

`best.pt` 自成一体：权重、模型配置、分词器、训练配置；`latest.pt` 另有接着训练所需的一切。
"""

import contextlib
import os
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import GPT, ModelConfig
from tokenizer import Tokenizer, TokenizerError

try:
    import fcntl  # 仅 Unix
except ImportError:
    fcntl = None

FORMAT = 1
BEST, LATEST, METRICS = "best.pt", "latest.pt", "metrics.jsonl"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_loss(value: Any) -> bool:
    return value is None or type(value) is float


def _is_name(value: Any) -> bool:
    return type(value) is str and len(value) <= 64 and value.isascii() and value.isalnum()


def _is_numbers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(type(entry) in (int, float) for entry in value.values())


def _is_config(value: Any) -> bool:
    plain = (bool, int, float, str, type(None))
    return isinstance(value, Mapping) and all(type(part) in plain for entry in value.items() for part in entry)


def _is_corpus(value: Any) -> bool:
    """{"files": 指纹, "cleaning": 清洗的版本}；清洗版本 1 的检查点里是一个合起来的指纹。"""
    return _is_name(value) or (
        isinstance(value, Mapping)
        and set(value) == {"files", "cleaning"}
        and _is_name(value["files"])
        and _is_count(value["cleaning"])
    )


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


MODEL_KEYS: dict[str, Callable[[Any], bool]] = {
    "format": _is_count,
    "model": _is_mapping,
    "model_config": _is_numbers,
    "config": _is_config,
    "tokenizer": lambda value: type(value) is bytes,
    "iter": _is_count,
    "val_loss": _is_loss,
    "val_bpc": _is_loss,
    "data": _is_numbers,
    "corpus": lambda value: value is None or _is_corpus(value),
}
SCALER_KEYS = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
RESUME_KEYS: dict[str, Callable[[Any], bool]] = {
    "optimizer": _is_mapping,
    "scaler": lambda value: _is_numbers(value) and set(value) in (set(), SCALER_KEYS),
    "rng": lambda value: _is_numbers(value) and _is_count(value.get("seed")),
    "best_val_loss": _is_loss,
    "best_val_bpc": _is_loss,
    "evaluation_due": lambda value: type(value) is bool,
    "skipped_steps": _is_count,
    "corpus": _is_corpus,
    "run_id": _is_name,
}
# 优化器为每个参数存的东西；还没走过一步时一项也没有。
STATE_KEYS = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Muon": {"momentum_buffer"}}


class CheckpointError(ValueError):
    """检查点不存在、损坏、不是本仓库的检查点，或正被另一个训练使用。"""


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """独占一个检查点文件夹；进程无论怎样结束（包括 kill -9），锁都随之放开。

    Raises:
        CheckpointError: 另一个训练正在用它。
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"另一个训练正在使用 {directory}：先停下它，或用 --checkpoint_dir 换一个文件夹"
            ) from None
        except OSError:  # 有的网络文件系统不支持锁
            pass
        yield
    finally:
        os.close(descriptor)


def save(path: Path, contents: Mapping[str, Any]) -> None:
    """写到旁边的临时文件，落盘后改名；中途断电也不会损坏原来的文件。

    Raises:
        OSError: 磁盘写不进去；原文件不变。
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)  # 训练中文件夹被移走、删掉的，重新建一个
    temporary = path.with_name(f"{path.name}.tmp")  # 名字固定：被 kill -9 多少次，也只剩下一个
    try:
        with open(temporary, "wb") as file:
            torch.save(dict(contents), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except RuntimeError as error:  # torch 把写文件时的 OSError 包成了 RuntimeError
        cause = error.__cause__ or error.__context__
        raise (cause if isinstance(cause, OSError) else OSError("磁盘满了？")) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def load(path: Path, for_resume: bool = False) -> dict[str, Any]:
    """读检查点到内存（CPU）；只接受数据，不执行文件里的任何代码。

    Args:
        for_resume: 是否还要求接着训练所需的内容。

    Raises:
        CheckpointError: 文件不存在、损坏，或缺少应有的内容。
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"找不到检查点：{path}")
    try:
        _verify_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 外来的 pickle 会引出与用户无关的英文警告
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # 损坏的文件会在 zip、pickle、张量各层抛出各种错误
        raise CheckpointError(f"检查点损坏，或不是检查点文件：{path}") from None
    keys = MODEL_KEYS | (RESUME_KEYS if for_resume else {})
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise CheckpointError(f"不是本仓库的检查点（或版本不同）：{path}")
    contents.setdefault("data", {})  # 早先的检查点没有
    contents.setdefault("corpus", None)  # 早先的 best.pt 没有
    wrong = [key for key, accepts in keys.items() if key not in contents or not accepts(contents[key])]
    if wrong:
        raise CheckpointError(f"检查点 {path} 缺少 {'、'.join(wrong)}，或其内容不对")
    contents["config"] = {_printable(key): _printable(value) for key, value in contents["config"].items()}
    return contents


def _printable(value: Any) -> Any:
    """别人的检查点里的文字会显示在终端上：去掉能清屏、改标题的控制码。"""
    if not isinstance(value, str):
        return value
    return "".join(character if character.isprintable() else "?" for character in value)


def _verify_archive(path: Path) -> None:
    """逐条核对 zip 自带的 CRC-32：torch.load 不查它，权重里翻转一位也照样读入。

    torch.save 从不压缩；压缩过的或相互重叠的记录能让一个小文件撑满内存，一律不收。
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        # external_attr：torch.save 总是写 0；翻转其中一位，torch 就把记录当作文件夹，读出未初始化的内存
        odd = any(record.compress_type != zipfile.ZIP_STORED or record.external_attr for record in records)
        if odd or sum(record.file_size for record in records) > path.stat().st_size:
            raise zipfile.BadZipFile("压缩或重叠的记录")
        if archive.testzip() is not None:
            raise zipfile.BadZipFile("CRC-32 不符")


def model_contents(
    model: GPT,
    tokenizer: Tokenizer,
    config: Mapping[str, Any],
    iteration: int,
    val_loss: float | None,
    val_bpc: float | None,
    data: Mapping[str, float] | None = None,
    corpus: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """推理所需的全部内容。

    Args:
        iteration: 已完成的优化步数。
        data: 语料的统计：歌数、字数、词元数……
        corpus: {"files": 歌词文件的指纹, "cleaning": 清洗的版本}。
    """
    return {
        "format": FORMAT,
        "model": model.state_dict(),
        "model_config": model.config.as_dict(),
        "config": dict(config),
        "tokenizer": tokenizer.model_bytes,
        "iter": iteration,
        "val_loss": val_loss,
        "val_bpc": val_bpc,
        "data": dict(data or {}),
        "corpus": dict(corpus) if corpus else None,
    }


def restore(contents: Mapping[str, Any], path: Path, dropout: float = 0.0) -> tuple[GPT, Tokenizer]:
    """检查点内容 → 模型（fp32，CPU）与分词器。

    Raises:
        CheckpointError: 权重与模型配置对不上，或分词器损坏。
    """
    weights = contents["model"]
    try:
        model_config = ModelConfig(**{**contents["model_config"], "dropout": dropout})
        tokenizer = Tokenizer(contents["tokenizer"])
        if tokenizer.vocab_size != model_config.vocab_size:
            raise ValueError("词表与模型大小不符")
        if not all(_is_sound(tensor) for tensor in weights.values()):
            raise ValueError("权重不是普通的、有限的浮点张量")
        if model_config.n_layers != len({name.split(".")[1] for name in weights if name.startswith("blocks.")}):
            raise ValueError("层数与权重不符")
        with torch.device("meta"):
            model = GPT(model_config)
        model.load_state_dict(weights, assign=True)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, TokenizerError) as error:
        raise CheckpointError(f"检查点 {path} 的内容前后不符：{str(error).splitlines()[0]}") from None
    return model.float().requires_grad_(True), tokenizer


def _is_sound(value: Any) -> bool:
    """有限的、占着自己那份内存的普通浮点张量（不是用步长 0 把一个数铺成一大片的那种）。"""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and value.is_floating_point()
        and value.is_contiguous()
        and bool(value.isfinite().all())
    )


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Any, path: Path) -> None:
    """载入优化器的状态（动量等）；学习率、衰减这些超参数以现在的为准。

    Raises:
        CheckpointError: 状态与模型的参数对不上。
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    groups = optimizer.state_dict()["param_groups"]
    try:
        if [group["params"] for group in saved["param_groups"]] != [group["params"] for group in groups]:
            raise ValueError("参数的个数不同")
        for index, state in saved["state"].items():
            if set(state) != STATE_KEYS[type(optimizer).__name__] or not all(map(_is_sound, state.values())):
                raise ValueError("状态缺项，或不是有限的浮点张量")
            if any(value.dim() and value.shape != parameters[index].shape for value in state.values()):
                raise ValueError("状态与参数的形状不同")
        if len(saved["state"]) not in (0, len(parameters)):
            raise ValueError("有的参数没有状态")
        optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"检查点 {path} 的优化器状态与模型不符：{reason}") from None


def archive(directory: Path, names: Sequence[str] = (LATEST, BEST, METRICS)) -> Path | None:
    """把一次训练留下的文件移入 `archive-年月日-时分秒/`；没有可移的返回 None。

    先移 latest.pt：移到一半断电，剩下的也不会被当作可以接着训练的一套。

    Raises:
        OSError: 移不动。
    """
    found = [directory / name for name in names if (directory / name).exists()]
    if not found:
        return None
    first = target = directory / time.strftime("archive-%Y%m%d-%H%M%S")
    number = 1
    while target.exists():
        number += 1
        target = first.with_name(f"{first.name}-{number}")
    target.mkdir(parents=True)
    for path in found:
        os.replace(path, target / path.name)
    return target

"""全部超参数：改这里的常量，或在命令行用同名小写参数覆盖，例如 `python train.py --batch_size 16`。

次序：常量 < 预设（PRESET）< 命令行。每个常量右侧的一行说明就是 `--help` 的内容。
这里的相对路径从本仓库所在文件夹算起，命令行里的相对路径从当前文件夹算起。
"""

import argparse
import ast
import dataclasses
import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

# ---- 预设 ----
PRESET = "auto"  # auto：有加速卡用 gpu，没有用 cpu；gpu：下面的常量；cpu：笔记本几分钟训完样例的小模型

# ---- 数据与分词 ----
LYRICS_DIR = "ChineseLyrics"  # 歌词文件夹（*.json、*.csv、*.txt、*.lrc 等，见 ChineseLyrics/README.md）
CACHE_DIR = "cache"  # 词元缓存文件夹
BPE_VOCAB_SIZE = 10000  # 词表大小（个）；语料太小时自动减小
BPE_MODEL_PREFIX = "chinese_lyrics_bpe"  # 分词模型文件名（不含 .model）
INSPECT = None  # 把每首歌照训练时的样子写进这个文件夹，旁边是去掉的行与略过的文件，然后结束，不训练
VAL_FRACTION = 0.05  # 留作验证的歌曲比例（按歌曲哈希划分）

# ---- 模型 ----
N_LAYERS = 12  # 层数
N_HEADS = 12  # 注意力头数
N_EMBED = 768  # 隐藏维度
MAX_SEQ_LEN = 1024  # 上下文长度（词元）
DROPOUT = 0.1  # 训练时的丢弃率

# ---- 训练 ----
TRAIN_ITERS = 2000  # 优化步数
BATCH_SIZE = 64  # 每个优化步的序列数
MICRO_BATCH_SIZE = None  # 一次前向的序列数；none 表示整批一次，显存不够就调小，数学不变
ACTIVATION_CHECKPOINTING = False  # 反传时重算各层，省下大半显存，约慢三成，数学不变
OPTIMIZER = "muon"  # muon：线性层的权重矩阵用 Muon，其余用 AdamW；adamw：全部用 AdamW
LEARNING_RATE = 3e-4  # AdamW 的最高学习率
MUON_LEARNING_RATE = 2e-3  # Muon 的最高学习率
MIN_LR = 3e-5  # 余弦退火的最低学习率；Muon 的按同样的倍数退火
WARMUP_ITERS = 200  # 线性预热步数
WEIGHT_DECAY = 0.1  # 权重衰减（只作用于线性层的权重矩阵）
GRAD_CLIP = 1.0  # 梯度范数上限；0 表示不裁剪
USE_AMP = True  # 混合精度：bf16，硬件不支持时用 fp16 或 fp32
USE_COMPILE = True  # torch.compile 加速；不可用时自动退回
SEED = 1337  # 随机种子：初始化、数据次序、丢弃

# ---- 评估、日志与检查点 ----
EVAL_INTERVAL = 200  # 每多少步评估一次
EVAL_ITERS = 50  # 每次评估最多多少批验证数据
LOG_INTERVAL = 10  # 每多少步记一行日志
SAVE_INTERVAL = 200  # 每多少步保存 latest.pt
CHECKPOINT_DIR = "checkpoints"  # 检查点文件夹
RESUME = True  # 有 latest.pt 就接着训练；false：旧结果移入 archive-…/，从头开始
INIT_FROM = None  # 从这个检查点的权重与分词器开始微调（架构随它）；none 表示从头训练
ALLOW_NEW_CORPUS = False  # 接着训练时允许语料与检查点不同（沿用检查点的分词器）
GENERATE_PROMPT = "今夜我"  # 评估时试写歌词的开头
GENERATE_TOKENS = 120  # 评估时试写的最多词元数
DEVICE = "auto"  # auto、cpu、cuda、cuda:1、mps
USE_SWANLAB = True  # 用 SwanLab 记录；未登录时自动转为本地离线记录
SWANLAB_PROJECT = "chinese-lyrics"  # SwanLab 项目名

PRESETS: dict[str, dict[str, Any]] = {
    "gpu": {},
    "cpu": {
        "N_LAYERS": 4,
        "N_HEADS": 4,
        "N_EMBED": 256,
        "MAX_SEQ_LEN": 256,
        "DROPOUT": 0.0,
        "TRAIN_ITERS": 200,
        "BATCH_SIZE": 8,
        "LEARNING_RATE": 3e-3,
        "MIN_LR": 3e-4,
        "WARMUP_ITERS": 50,
        "EVAL_INTERVAL": 50,
        "EVAL_ITERS": 20,
        "SAVE_INTERVAL": 50,
        "USE_COMPILE": False,
    },
}

# ---------------------------------------------------------------------------
# 以下是机制：类型、范围、命令行。平时不用改。
# ---------------------------------------------------------------------------

REPOSITORY = Path(__file__).resolve().parent


class UserError(Exception):
    """用户能自己改正的错误：只显示这一两行中文，退出码 2。"""


class Rule(NamedTuple):
    """一个值的类型、范围和范围的中文说法。"""

    kind: type
    accepts: Callable[[Any], bool]
    range_text: str
    optional: bool = False


class Flag(NamedTuple):
    """一个命令行参数。"""

    name: str
    default: Any
    rule: Rule
    help: str


def whole(minimum: int, maximum: int | None = None, optional: bool = False) -> Rule:
    if maximum is None:  # 再大的没有意义，检查点里也存不下
        return Rule(int, lambda v: minimum <= v <= 10**9, f"不小于 {minimum}、不超过十亿的整数", optional)
    return Rule(int, lambda v: minimum <= v <= maximum, f"{minimum} 到 {maximum} 的整数", optional)


def number(accepts: Callable[[float], bool], range_text: str) -> Rule:
    return Rule(float, accepts, range_text)


def between(least: float, most: float) -> Rule:
    return number(lambda v: least <= v <= most, f"{least:g} 到 {most:g} 的数")


def one_of(*choices: str) -> Rule:
    return Rule(str, lambda v: v in choices, " / ".join(choices))


def text(optional: bool = False) -> Rule:
    return Rule(str, lambda v: True, "不能为空", optional)


def path(optional: bool = False) -> Rule:
    return Rule(Path, lambda v: True, "不能为空", optional)


BOOLEAN = Rule(bool, lambda v: True, "true 或 false")
RATE = number(lambda v: 0 < v <= 100, "大于 0、不超过 100 的数")

RULES = {
    "PRESET": one_of("auto", *PRESETS),
    "LYRICS_DIR": path(),
    "CACHE_DIR": path(),
    "BPE_VOCAB_SIZE": whole(300, 65536),
    "BPE_MODEL_PREFIX": path(),
    "INSPECT": path(optional=True),
    "VAL_FRACTION": number(lambda v: 0 < v <= 0.5, "大于 0、不超过 0.5 的数"),
    "N_LAYERS": whole(1, 1000),
    "N_HEADS": whole(1, 1000),
    "N_EMBED": whole(2, 100_000),
    "MAX_SEQ_LEN": whole(8, 2**20),
    "DROPOUT": number(lambda v: 0 <= v < 1, "0 到 1（不含 1）的数"),
    "TRAIN_ITERS": whole(1),
    "BATCH_SIZE": whole(1),
    "MICRO_BATCH_SIZE": whole(1, optional=True),
    "ACTIVATION_CHECKPOINTING": BOOLEAN,
    "OPTIMIZER": one_of("muon", "adamw"),
    "LEARNING_RATE": RATE,
    "MUON_LEARNING_RATE": RATE,
    "MIN_LR": between(0, 100),
    "WARMUP_ITERS": whole(0),
    "WEIGHT_DECAY": between(0, 100),
    "GRAD_CLIP": number(lambda v: 0 <= v <= 1e9, "不小于 0、不超过十亿的数"),
    "USE_AMP": BOOLEAN,
    "USE_COMPILE": BOOLEAN,
    "SEED": whole(0, 2**31 - 1),
    "EVAL_INTERVAL": whole(1),
    "EVAL_ITERS": whole(1),
    "LOG_INTERVAL": whole(1),
    "SAVE_INTERVAL": whole(1),
    "CHECKPOINT_DIR": path(),
    "RESUME": BOOLEAN,
    "INIT_FROM": path(optional=True),
    "ALLOW_NEW_CORPUS": BOOLEAN,
    "GENERATE_PROMPT": text(),
    "GENERATE_TOKENS": whole(1),
    "DEVICE": text(),
    "USE_SWANLAB": BOOLEAN,
    "SWANLAB_PROJECT": text(),
}


def is_out_of_memory(error: BaseException) -> bool:
    """显存或内存不足：CUDA 有自己的类型，CPU、MPS 与新的加速器只在文字里说。"""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        words in text
        for words in ("DefaultCPUAllocator", "out of memory", "can't allocate memory", "not enough memory")
    )


_BROKEN_TEXT = re.compile("[\ud800-\udfff]")  # 不是 UTF-8 的字节，Python 读成孤立的代理项


class BrokenText(ValueError):
    """文字的编码有误。"""


def shortened(value: Any, most: int = 60) -> str:
    """放进消息里的值：太长的截断，不成字的换成问号。"""
    text = _BROKEN_TEXT.sub("?", str(value))
    return text if len(text) <= most else f"{text[:most]}……（共 {len(text):,} 字）"


def convert(value: Any, rule: Rule) -> Any:
    """命令行文字或 config.py 里的值 → 规则要求的类型；不合规则时抛出 ValueError。"""
    if isinstance(value, str) and rule.optional and value.lower() == "none":
        value = None
    if value is None:
        if rule.optional:
            return None
        raise ValueError
    if rule.kind is bool:
        if isinstance(value, str):
            value = {"true": True, "false": False}[value.lower()]
        if not isinstance(value, bool):
            raise ValueError
    elif rule.kind in (int, float):
        if isinstance(value, bool):
            raise ValueError
        value = float(value) if rule.kind is float else _whole_number(value)
    elif isinstance(value, str) and not value.strip():
        raise ValueError
    elif rule.kind is Path:
        value = Path(os.path.expanduser(value))
    else:
        value = rule.kind(value)
        if _BROKEN_TEXT.search(value):
            raise BrokenText
    if not rule.accepts(value):
        raise ValueError
    return value


def _whole_number(value: Any) -> int:
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = float(value)  # 1e4
    if value != int(value):
        raise ValueError
    return int(value)


class _ChineseHelp(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)

    def _format_args(self, action, default_metavar) -> str:
        return action.metavar or default_metavar  # 缺了值由我们报错，所以不必写成可省略的 [值]

    def add_usage(self, usage, actions, groups, prefix=None) -> None:
        super().add_usage(usage, actions, groups, "用法：")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"命令行有误：{message}")


def parse_flags(flags: Sequence[Flag], argv: Sequence[str], program: str, description: str) -> dict[str, Any]:
    """读命令行，返回其中写明的参数（未写明的不在结果里）。

    参数名不接受缩写。所有问题一次列出，抛出一个 UserError；`--help` 显示后退出。
    """
    parser = _Parser(
        usage=f"python {program} [--参数 值] …",
        description=description,
        formatter_class=_ChineseHelp,
        add_help=False,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("参数")
    group.add_argument("-h", "--help", action="store_true", help="显示本说明")
    missing = object()
    for flag in flags:
        default = "" if flag.default is None else f"（默认 {_spelled(flag.default)}）"
        group.add_argument(
            f"--{flag.name}",
            nargs="?",
            const="true" if flag.default is False else missing,  # 单写 --stats 就是 --stats true
            default=argparse.SUPPRESS,
            metavar=_metavar(flag.rule),
            help=f"{flag.help}{default}".replace("%", "%%"),
        )
    found, unknown = parser.parse_known_args(list(argv))
    given = vars(found)
    if given.pop("help"):
        parser.print_help()
        sys.exit(0)

    problems = _unknown_words(unknown, [flag.name for flag in flags])
    values = {}
    for flag in flags:
        if flag.name not in given:
            continue
        if given[flag.name] is missing:
            problems.append(f"--{flag.name} 后面缺少值（{flag.rule.range_text}）")
            continue
        try:
            values[flag.name] = convert(given[flag.name], flag.rule)
        except BrokenText:
            problems.append(f"--{flag.name} 的文字编码有误：请用 UTF-8 的终端输入")
        except (ValueError, KeyError, OverflowError):
            problems.append(f"--{flag.name} {shortened(given[flag.name])}：应为{_range(flag.rule)}")
    if problems:
        raise UserError("\n".join(problems))
    return values


def _metavar(rule: Rule) -> str:
    return {bool: "true|false", int: "整数", float: "数", Path: "路径", str: "文字"}[rule.kind]


def _range(rule: Rule) -> str:
    if rule.range_text == "不能为空":
        return "非空的文字"
    space = " " if rule.range_text[0].isascii() else ""
    return f"{space}{rule.range_text}" + ("，或 none" if rule.optional else "")


def _spelled(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unknown_words(words: Sequence[str], names: Sequence[str]) -> list[str]:
    problems = []
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("-"):
            name = word.split("=")[0]
            near = difflib.get_close_matches(name.lstrip("-").replace("-", "_").lower(), names, n=1)
            advice = f"，是否指 --{near[0]}？" if near else "（用 --help 查看全部参数）"
            problems.append(f"没有参数 {shortened(name)}{advice}")
        elif not before.startswith("-"):  # 认不出的参数后面跟的是它的值
            problems.append(f"多余的文字：{shortened(word)}（参数写作 --名称 值；含空格的值请加引号）")
    return problems


def _descriptions() -> dict[str, str]:
    """每个常量右侧的说明，从本文件源代码读出，所以 --help 不会与它不一致。"""
    source = Path(__file__).read_text(encoding="utf-8-sig")  # 记事本存的带 BOM
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id in RULES:
            after_value = lines[node.end_lineno - 1].encode("utf-8")[node.end_col_offset :].decode("utf-8")
            found[target.id] = after_value.partition("#")[2].strip()
    return found


def flags() -> list[Flag]:
    """train.py 的全部参数，由常量而来。"""
    described = _descriptions()
    return [Flag(name.lower(), globals()[name], rule, described.get(name, "")) for name, rule in RULES.items()]


Config = dataclasses.make_dataclass(
    "Config",
    [(name.lower(), rule.kind) for name, rule in RULES.items()],
    namespace={"__doc__": "决定好的配置（不可变）：每个常量一个小写字段。"},
    frozen=True,
)


def resolve(argv: Sequence[str], has_accelerator: bool, program: str = "train.py", description: str = "") -> Any:
    """常量 < 预设 < 命令行，得到冻结的 Config。

    Args:
        argv: 命令行参数（不含程序名）。
        has_accelerator: 是否有 GPU；只用来决定 PRESET="auto"。

    Raises:
        UserError: 列出全部不合法的值。
    """
    given = parse_flags(flags(), argv, program, description)
    values, problems = {}, []
    for name, rule in RULES.items():
        try:
            values[name] = convert(globals()[name], rule)
        except (ValueError, KeyError, TypeError, OverflowError):
            problems.append(f"config.py 的 {name} = {globals()[name]!r}：应为{_range(rule)}")
    if problems:
        raise UserError("\n".join(problems))

    for name, value in values.items():
        if isinstance(value, Path):
            values[name] = REPOSITORY / value  # 绝对路径不受影响
    preset = given.get("preset", values["PRESET"])
    if preset == "auto":
        on_cpu = given.get("device", values["DEVICE"]).startswith("cpu")
        preset = "gpu" if has_accelerator and not on_cpu else "cpu"
    values |= _preset_values(preset)
    for name, value in given.items():
        values[name.upper()] = Path.cwd() / value if isinstance(value, Path) else value
    values["PRESET"] = preset
    _check_together(values)
    return Config(**{name.lower(): value for name, value in values.items()})


def _preset_values(preset: str) -> dict[str, Any]:
    """预设里的值，与常量一样检查。"""
    values, problems = {}, []
    for name, value in PRESETS[preset].items():
        try:
            values[name] = convert(value, RULES[name])
        except KeyError:
            problems.append(f"config.py 的 PRESETS[{preset!r}] 里有不认识的 {name}")
        except (ValueError, TypeError, OverflowError):
            problems.append(f"config.py 的 PRESETS[{preset!r}] 里 {name} = {value!r}：应为{_range(RULES[name])}")
        else:
            if isinstance(values[name], Path):
                values[name] = REPOSITORY / values[name]
    if problems:
        raise UserError("\n".join(problems))
    return values


def _check_together(values: dict[str, Any]) -> None:
    problems = []
    if values["N_EMBED"] % values["N_HEADS"]:
        problems.append(f"N_EMBED={values['N_EMBED']} 必须能被 N_HEADS={values['N_HEADS']} 整除")
    elif values["N_EMBED"] // values["N_HEADS"] % 2:
        problems.append(f"每个头的维度 N_EMBED/N_HEADS={values['N_EMBED'] // values['N_HEADS']} 必须是偶数（RoPE）")
    if values["MIN_LR"] > values["LEARNING_RATE"]:
        problems.append(f"MIN_LR={values['MIN_LR']} 不能大于 LEARNING_RATE={values['LEARNING_RATE']}")
    if problems:
        raise UserError("\n".join(problems))


def replaced_by_preset(config: Any) -> dict[str, Any]:
    """预设换掉、命令行又没有另定的常量：{常量名: 预设的值}。"""
    return {
        name: value
        for name, value in PRESETS[config.preset].items()
        if value != globals()[name] and value == getattr(config, name.lower())
    }


def changed_from_constants(config: Any) -> dict[str, Any]:
    """命令行改动的值：与「常量加预设」不同的那些，{小写名: 值}。"""
    base = {**{name: globals()[name] for name in RULES}, **PRESETS[config.preset]}
    changed = {}
    for name, rule in RULES.items():
        value, constant = getattr(config, name.lower()), base[name]
        if rule.kind is Path and constant is not None:
            constant = REPOSITORY / constant
        if name != "PRESET" and value != constant:
            changed[name.lower()] = value
    return changed


def as_plain_dict(config: Any) -> dict[str, Any]:
    """可存入检查点的普通字典（路径变成文字）。"""
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(config).items()
    }


def _prepare_streams() -> None:
    """标准流关了的接到空设备（否则打开的文件会占用它的编号，消息写进文件里）；不是终端的一律写 UTF-8。"""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # 占用最小的空编号，正是这一个
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115
        elif number and hasattr(stream, "reconfigure"):  # 笔记本与 IDLE 的没有
            if stream.isatty():
                stream.reconfigure(errors="replace")  # 终端编码写不出的字写成问号，而不是报错
            else:
                stream.reconfigure(encoding="utf-8", errors="replace")


def run_script(
    main: Callable[[Sequence[str]], int | None],
    *user_errors: type[Exception],
    leave: Callable[[int], None] = lambda code: None,
) -> NoReturn:
    """脚本的外壳：用户能改正的错误变成一两行中文和退出码 2，其余错误保留完整回溯，退出码 1。

    Args:
        leave: 退出前最后做的事，收退出码。
    """
    _prepare_streams()
    try:
        code = main(sys.argv[1:]) or 0
    except user_errors as error:
        print(f"错误：{error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        code = 130
    except Exception as error:
        if is_out_of_memory(error):
            print("错误：内存或显存不足：请减小批次、首数或模型", file=sys.stderr)
            code = 2
        else:
            traceback.print_exc()
            code = 1
    leave(code)
    sys.exit(code)

"""config.py 的常量与命令行参数 → 类型、范围都对的配置。"""

import argparse
import ast
import difflib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from terminal import BROKEN_TEXT, ChineseHelp, ChineseParser, UserError, shortened

REPOSITORY = Path(__file__).resolve().parent


def _leave(problem: str) -> NoReturn:
    print(f"错误：{REPOSITORY / 'config.py'} {problem}", file=sys.stderr)
    raise SystemExit(2)


def _read_constants() -> Any:
    """config.py 的常量；写错、存错编码的，说一句在哪一行，退出码 2。"""
    try:
        return importlib.import_module("config")
    except Exception as error:
        line = getattr(error, "lineno", None) or traceback.extract_tb(error.__traceback__)[-1].lineno
        message = str(getattr(error, "msg", error))
        if isinstance(error, SyntaxError) and re.search("utf-8|null bytes", message, re.I):
            _leave("的编码有误，请另存为 UTF-8")
        _leave(f"第 {line} 行有误：{message}")


constants = _read_constants()


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
    group: str = "参数"  # --help 里在哪一组


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

_WEIGHTS = re.compile(r"(?:[^=,，]+=\s*\d{1,3}(?:\.\d+)?\s*(?:[,，](?=.)|$))+")
WEIGHTS = Rule(str, lambda v: bool(_WEIGHTS.fullmatch(v)), "「子文件夹=遍数」，几个用逗号隔开", True)
SHARE = number(lambda v: 0 < v <= 1, "大于 0、不超过 1 的数")
RATE = number(lambda v: 0 < v <= 100, "大于 0、不超过 100 的数")

RULES = {
    "PRESET": one_of("auto", *getattr(constants, "PRESETS", ())),
    "LYRICS_DIR": path(),
    "LYRICS_WEIGHTS": WEIGHTS,
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
    "SEPARATE_SONGS": BOOLEAN,
    "TRAIN_ITERS": whole(1),
    "FIT_TO_CORPUS": BOOLEAN,
    "PATIENCE": whole(1, optional=True),
    "BATCH_SIZE": whole(1),
    "MICRO_BATCH_SIZE": whole(1, optional=True),
    "ACTIVATION_CHECKPOINTING": BOOLEAN,
    "OPTIMIZER": one_of("muon", "adamw"),
    "LEARNING_RATE": RATE,
    "MUON_LEARNING_RATE": RATE,
    "MIN_LR": between(0, 100),
    "WARMUP_ITERS": whole(0),
    "WEIGHT_DECAY": between(0, 100),
    "AVERAGE": between(0, 1),
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
    "TEACHER": text(optional=True),
    "ALLOW_NEW_CORPUS": BOOLEAN,
    "GENERATE_PROMPT": text(),
    "GENERATE_TOKENS": whole(1),
    "DEVICE": text(),
    "USE_SWANLAB": BOOLEAN,
    "SWANLAB_PROJECT": text(),
}

_missing = [name for name in (*RULES, "PRESETS") if not hasattr(constants, name)]
if _missing:
    _leave(f"里缺少 {'、'.join(_missing)}")


class BrokenText(ValueError):
    """文字的编码有误。"""


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
        if BROKEN_TEXT.search(value):
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


def parse_flags(flags: Sequence[Flag], argv: Sequence[str], program: str, description: str) -> dict[str, Any]:
    """读命令行，返回其中写明的参数（未写明的不在结果里）。

    参数名不接受缩写。所有问题一次列出，抛出一个 UserError；`--help` 显示后退出。
    """
    parser = ChineseParser(
        usage=f"python {program} [--参数 值] …",
        description=description,
        formatter_class=ChineseHelp,
        add_help=False,
        allow_abbrev=False,
    )
    groups = {name: parser.add_argument_group(name) for name in dict.fromkeys(flag.group for flag in flags)}
    next(iter(groups.values())).add_argument("-h", "--help", action="store_true", help="显示本说明")
    missing = object()
    for flag in flags:
        default = "" if flag.default is None else f"（默认 {_spelled(flag.default)}）"
        groups[flag.group].add_argument(
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


def rooted(path: Path, typed: bool) -> Path:
    """命令行上的相对路径从当前文件夹算起，默认的从仓库算起。"""
    return (Path.cwd() if typed else REPOSITORY) / path


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
    """每个常量右侧的说明，从 config.py 的源代码读出，所以 --help 不会与它不一致。"""
    source = Path(constants.__file__).read_text(encoding="utf-8-sig")  # 记事本存的带 BOM
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id in RULES and node.end_lineno:
            after_value = lines[node.end_lineno - 1].encode("utf-8")[node.end_col_offset :].decode("utf-8")
            found[target.id] = after_value.partition("#")[2].strip()
    return found


def training_flags() -> list[Flag]:
    """train.py 的全部参数，由常量而来。"""
    described = _descriptions()
    return [Flag(name.lower(), getattr(constants, name), rule, described.get(name, "")) for name, rule in RULES.items()]


@dataclass(frozen=True)
class RunConfig:
    """决定好的配置：每个常量一个小写字段，次序与 config.py 相同。"""

    preset: str
    lyrics_dir: Path
    lyrics_weights: str | None
    cache_dir: Path
    bpe_vocab_size: int
    bpe_model_prefix: Path
    inspect: Path | None
    val_fraction: float
    n_layers: int
    n_heads: int
    n_embed: int
    max_seq_len: int
    dropout: float
    separate_songs: bool
    train_iters: int
    fit_to_corpus: bool
    patience: int | None
    batch_size: int
    micro_batch_size: int | None
    activation_checkpointing: bool
    optimizer: str
    learning_rate: float
    muon_learning_rate: float
    min_lr: float
    warmup_iters: int
    weight_decay: float
    average: float
    grad_clip: float
    use_amp: bool
    use_compile: bool
    seed: int
    eval_interval: int
    eval_iters: int
    log_interval: int
    save_interval: int
    checkpoint_dir: Path
    resume: bool
    init_from: Path | None
    teacher: str | None
    allow_new_corpus: bool
    generate_prompt: str
    generate_tokens: int
    device: str
    use_swanlab: bool
    swanlab_project: str
    typed: frozenset[str] = frozenset()  # 命令行上写明的，小写


def resolve(argv: Sequence[str], best_preset: str, program: str = "train.py", description: str = "") -> RunConfig:
    """常量 < 预设 < 命令行，得到冻结的 `RunConfig`。

    Args:
        argv: 命令行参数（不含程序名）。
        best_preset: 这台机器宜用的预设；PRESET="auto" 就是它，指明 --device cpu 时是 cpu。

    Raises:
        UserError: 列出全部不合法的值。
    """
    given = parse_flags(training_flags(), argv, program, description)
    values, problems = {}, []
    for name, rule in RULES.items():
        try:
            values[name] = convert(getattr(constants, name), rule)
        except (ValueError, KeyError, TypeError, OverflowError):
            problems.append(f"config.py 的 {name} = {getattr(constants, name)!r}：应为{_range(rule)}")
    if problems:
        raise UserError("\n".join(problems))

    for name, value in values.items():
        if isinstance(value, Path):
            values[name] = REPOSITORY / value  # 绝对路径不受影响
    preset = given.get("preset", values["PRESET"])
    if preset == "auto":
        on_cpu = given.get("device", values["DEVICE"]).startswith("cpu")
        preset = "cpu" if on_cpu else best_preset
    values |= _preset_values(preset)
    for name, value in given.items():
        values[name.upper()] = Path.cwd() / value if isinstance(value, Path) else value
    values["PRESET"] = preset
    _check_together(values)
    return RunConfig(**{name.lower(): value for name, value in values.items()}, typed=frozenset(given))


def _preset_values(preset: str) -> dict[str, Any]:
    """预设里的值，与常量一样检查。"""
    values, problems = {}, []
    for name, value in constants.PRESETS[preset].items():
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


def replaced_by_preset(config: RunConfig) -> dict[str, Any]:
    """预设换掉、命令行又没有另定的常量：{常量名: 预设的值}。"""
    return {
        name: value
        for name, value in constants.PRESETS[config.preset].items()
        if value != getattr(constants, name) and value == getattr(config, name.lower())
    }


def changed_from_constants(config: RunConfig) -> dict[str, Any]:
    """命令行改动的值：与「常量加预设」不同的那些，{小写名: 值}。"""
    base = {**{name: getattr(constants, name) for name in RULES}, **constants.PRESETS[config.preset]}
    changed = {}
    for name, rule in RULES.items():
        value, constant = getattr(config, name.lower()), base[name]
        if rule.kind is Path and constant is not None:
            constant = REPOSITORY / constant
        if name != "PRESET" and value != constant:
            changed[name.lower()] = value
    return changed


def as_plain_dict(config: RunConfig) -> dict[str, Any]:
    """可存入检查点的普通字典（路径变成文字）。"""
    values = {name.lower(): getattr(config, name.lower()) for name in RULES}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

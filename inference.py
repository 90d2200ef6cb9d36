"""写歌词：`python inference.py --prompt 今夜我`，或不带 --prompt 进入对话。

歌词写到标准输出，其余一切写到标准错误；标准输入不是终端时，每行一个开头，各写一首。
"""

import contextlib
import dataclasses
import difflib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import checkpoint
import config as configuration
import generation
import runtime
from checkpoint import BEST, CheckpointError
from config import Flag, UserError
from model import WRITING_DTYPES, WritingLinear, prepare_for_writing
from tokenizer import StreamingDecoder

DESCRIPTION = "用训练好的检查点写歌词。不带 --prompt 时进入对话；/help 查看对话里的命令。"
DEFAULTS = generation.Sampling()

SONG_FLAGS = [
    Flag("max_tokens", DEFAULTS.max_tokens, configuration.whole(1), "最多写多少个词元（约等于字数）"),
    Flag("min_tokens", DEFAULTS.min_tokens, configuration.whole(0), "写满这么多个词元之前不收尾"),
    Flag("temperature", DEFAULTS.temperature, configuration.NOT_NEGATIVE, "温度：越高越出奇，0 为每步取最可能的"),
    Flag(
        "top_p",
        DEFAULTS.top_p,
        configuration.number(lambda v: 0 < v <= 1, "大于 0、不超过 1 的数"),
        "只在概率合计达到它的词元里抽",
    ),
    Flag("top_k", DEFAULTS.top_k, configuration.whole(0), "只在最可能的这么多个词元里抽；0 为不限"),
    Flag(
        "repetition_penalty",
        DEFAULTS.repetition_penalty,
        configuration.POSITIVE,
        "大于 1 时少重复已写过的词元（换行除外）",
    ),
    Flag("num_samples", 1, configuration.whole(1, 4096), "同时写几首"),
    Flag(
        "seed", None, configuration.whole(0, 2**31 - 1, optional=True), "随机种子；同样的种子写出同样的歌词，不给则随机"
    ),
    Flag("title", None, configuration.text(optional=True), "歌名（模型训练时见过「歌名 → 歌词」）"),
    Flag("singer", None, configuration.text(optional=True), "歌手风格"),
]
FLAGS = [
    Flag(
        "checkpoint", Path(configuration.CHECKPOINT_DIR) / BEST, configuration.path(), "检查点；架构与分词器都从它读出"
    ),
    Flag("prompt", None, configuration.text(), "歌词的开头"),
    *SONG_FLAGS,
    Flag("device", "auto", configuration.text(), "auto、cpu、cuda、cuda:1、mps"),
    Flag("dtype", "auto", configuration.one_of("auto", *WRITING_DTYPES), "auto 取这台机器上最快的；int8 只用于 CPU"),
    Flag("stats", False, configuration.BOOLEAN, "每写一次，向标准错误写一行 JSON：词元数、用时、速度、内存"),
]


@dataclass
class Settings:
    """写一首歌的设置；名称与命令行参数相同。"""

    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    num_samples: int
    seed: int | None
    title: str | None
    singer: str | None


@dataclass
class Song:
    """写出的一首。

    Attributes:
        tokens: 从 `<s>` 起的全部词元。
        text: 歌词正文，含开头。
        decoder: 这首歌的流式解码；停在半个字上时留着没到齐的字节，接着写时补全。
        ended: 是否由模型自己收尾（写出 `</s>`）。
    """

    tokens: list[int]
    text: str
    decoder: StreamingDecoder
    ended: bool = False


def main(argv: Sequence[str]) -> int:
    given = configuration.parse_flags(FLAGS, argv, "inference.py", DESCRIPTION)
    options = {flag.name: given.get(flag.name, flag.default) for flag in FLAGS}
    settings = Settings(**{flag.name: options[flag.name] for flag in SONG_FLAGS})
    _check_text(settings.title, settings.singer, options["prompt"])
    root = Path.cwd() if "checkpoint" in given else configuration.REPOSITORY
    writer = load_writer(root / options["checkpoint"], options["device"], options["dtype"], options["stats"])
    try:
        terminal = sys.stdin is not None and sys.stdin.isatty()
        if options["prompt"] or settings.title or settings.singer:
            print_songs(writer, options["prompt"] or "", settings)
        elif terminal:
            Conversation(writer, settings).run()
        elif sys.stdin is not None:
            for line in _prompts_from_pipe():
                print_songs(writer, line, settings)
                print(flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        return 130
    except torch.OutOfMemoryError:
        raise UserError("显存不足：请减小 --num_samples，或用 --device cpu") from None
    except BrokenPipeError:  # 读我们输出的程序先走了，例如 head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def fastest_dtype(device: torch.device) -> str:
    """这台机器上写得最快而又可靠的精度。

    有原生 bf16 的 CPU 上 int8 比 bf16 更快；样例模型的每字比特数只变差万分之一以内，所以 auto 可以选它。
    """
    half = runtime.native_half(device)
    if half is None:
        return "fp32"
    if device.type == "cpu" and WritingLinear(torch.eye(64), None, "int8").special:  # 这个 torch 有 int8 算子
        return "int8"
    return "bf16" if half == torch.bfloat16 else "fp16"


def load_writer(path: Path, device_name: str, dtype: str, stats: bool = False) -> "Writer":
    """读检查点，备好模型。

    Raises:
        CheckpointError, DeviceError: 见各自的说明；不在 CPU 上而要 int8 也是 DeviceError。
    """
    began = time.perf_counter()
    device = runtime.pick_device(device_name)
    if not path.is_file():
        raise CheckpointError(f"找不到检查点：{path}\n请先训练（python train.py），或用 --checkpoint 指明文件")
    contents = checkpoint.load(path)
    model, tokenizer = checkpoint.restore(contents, path)
    dtype, chosen = (fastest_dtype(device), "（auto 选定）") if dtype == "auto" else (dtype, "")
    if dtype == "int8" and device.type != "cpu":
        raise runtime.DeviceError(f"--dtype int8 只用于 CPU：{runtime.device_name(device)} 请用 bf16 或 fp16")
    model = prepare_for_writing(model.to(device), dtype)
    bpc = f"，验证 {contents['val_bpc']:.3f} 比特/字" if contents["val_bpc"] is not None else ""
    _tell(f"已载入 {path}（第 {contents['iter']} 步{bpc}）· {runtime.device_name(device)} · {dtype}{chosen}")
    return Writer(model, tokenizer, Stats(device, dtype, time.perf_counter() - began) if stats else None)


class Stats:
    """写一次的用时；`line` 给出一行 JSON。

    Args:
        load_s: 载入检查点、备好模型的秒数。
    """

    def __init__(self, device: torch.device, dtype: str, load_s: float) -> None:
        self.device, self.dtype, self.load_s = device, dtype, load_s

    def start(self) -> None:
        self.began, self.first, self.tokens, self.first_tokens = time.perf_counter(), None, 0, 0

    def count(self, tokens: int) -> None:
        """一步写出了 tokens 个词元。"""
        self.last = time.perf_counter()
        if self.first is None:
            self.first, self.first_tokens = self.last, tokens
        self.tokens += tokens

    def line(self) -> str:
        """tokens_per_s 只算第一步之后的解码；一步也没写成时，没有的项是 null。"""
        decoding = self.last - self.first if self.tokens > self.first_tokens else None
        memory = runtime.peak_memory_gb(self.device)
        values = {
            "tokens": self.tokens,
            "seconds": time.perf_counter() - self.began,
            "tokens_per_s": (self.tokens - self.first_tokens) / decoding if decoding else None,
            "first_token_s": self.first - self.began if self.first is not None else None,
            "load_s": self.load_s,
            "peak_memory_mb": memory * 1024 if memory is not None else None,
            "dtype": self.dtype,
        }
        return json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()})


class Writer:
    """模型与分词器：从开头写出歌词。"""

    def __init__(self, model, tokenizer, stats: Stats | None = None) -> None:
        self.model, self.tokenizer, self.stats = model, tokenizer, stats
        self.songs: list[Song] = []  # 最近写的；中途停下时是已写的部分

    def write(self, prompt: str, settings: Settings, seed: int, show: Callable[[str], None]) -> list[Song]:
        """从 prompt 写 num_samples 首；只写一首时，show 随写随收文字（不含 prompt）。"""
        tokens = self.tokenizer.song(prompt, settings.title or "", settings.singer or "")
        self.songs = [Song(list(tokens), prompt, StreamingDecoder(self.tokenizer)) for _ in range(settings.num_samples)]
        self._continue(self.songs, settings, seed, show)
        return self.songs

    def extend(self, song: Song, settings: Settings, seed: int, show: Callable[[str], None]) -> None:
        """接着写一首；已收尾的另起一行。"""
        self.songs = [song]
        if song.ended:
            song.tokens.append(self.tokenizer.newline_id)
            newline = song.decoder.push(self.tokenizer.newline_id)
            song.text += newline
            song.ended = False
            show(newline)
        self._continue(self.songs, settings, seed, show)

    def _continue(self, songs: list[Song], settings: Settings, seed: int, show: Callable[[str], None]) -> None:
        sampling = generation.Sampling(
            max_tokens=settings.max_tokens,
            min_tokens=settings.min_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            repetition_penalty=settings.repetition_penalty,
            seed=seed,
        )
        before = [len(song.tokens) for song in songs]
        if self.stats is not None:
            self.stats.start()
        for step in generation.generate(
            self.model,
            list(songs[0].tokens),
            sampling,
            stop_id=self.tokenizer.eos_id,
            banned_ids=self.tokenizer.never_written,
            unpunished_ids=[self.tokenizer.newline_id],
            num_samples=len(songs),
        ):
            if self.stats is not None:
                self.stats.count(len(step))
            for row, token in step:
                songs[row].tokens.append(token)
                text = songs[row].decoder.push(token)
                songs[row].text += text
                if len(songs) == 1 and text:
                    show(text)
        for song, length in zip(songs, before, strict=True):
            song.ended = len(song.tokens) - length < settings.max_tokens

    def tell_stats(self) -> None:
        if self.stats is not None:
            _tell(self.stats.line())


def print_songs(writer: Writer, prompt: str, settings: Settings) -> None:
    """写好的歌送到标准输出：一首时边写边送，几首时写完再依次送。"""
    seed = settings.seed if settings.seed is not None else secrets.randbelow(2**31 - 1)
    _tell(f"种子 {seed}")
    if settings.num_samples == 1:
        _show(prompt)
        writer.write(prompt, settings, seed, _show)
        print(flush=True)
        writer.tell_stats()
        return
    writer.write(prompt, settings, seed, _show)
    for number, song in enumerate(writer.songs, 1):
        if number > 1:
            print()
        sys.stdout.flush()
        _tell(f"── 第 {number} 首 ──")
        print(song.text, flush=True)
    writer.tell_stats()


# ---------------------------------------------------------------------------
# 对话
# ---------------------------------------------------------------------------

HELP = """输入歌词的开头，回车开始写；Ctrl-C 停下这一首，Ctrl-D 离开。
  /again            用同样的开头另写一首
  /more             接着往下写
  /set              查看设置；/set temperature 0.8 改一项（none 表示不用）
  /save 文件        把刚写的歌词添到文件末尾
  /help             本说明
  /quit             离开"""


class Conversation:
    """对话：一次载入，反复写。"""

    def __init__(self, writer: Writer, settings: Settings) -> None:
        self.writer, self.settings = writer, settings
        self.prompt: str | None = None
        self.commands = {
            "/again": self.again,
            "/more": self.more,
            "/set": self.set,
            "/save": self.save,
            "/help": lambda _: _tell(HELP),
        }

    def run(self) -> None:
        with contextlib.suppress(ImportError):  # 行编辑与历史；Windows 上没有
            import readline  # noqa: F401
        _tell("输入歌词的开头，回车开始写；/help 查看命令，Ctrl-D 离开。")
        while True:
            try:
                line = _read_line("歌词> ").strip()
            except KeyboardInterrupt:
                _tell("")
                continue
            except EOFError:
                _tell("")
                return
            if line.split()[:1] == ["/quit"]:
                return
            try:
                self.answer(line)
            except KeyboardInterrupt:
                if len(self.writer.songs) > 1:  # 几首同时写时，写到哪里还没有显示
                    print("\n\n".join(song.text for song in self.writer.songs))
                print(flush=True)
                _tell("（已停下；/more 接着写）")
            except UserError as error:
                _tell(str(error))

    def answer(self, line: str) -> None:
        """一行输入：命令，或歌词的开头。"""
        if not line:
            return
        if not line.startswith("/"):
            _check_text(line)
            self.prompt = line
            self._write(self._seed())
            return
        name, _, argument = line.partition(" ")
        if name not in self.commands:
            near = difflib.get_close_matches(name, [*self.commands, "/quit"], n=1, cutoff=0.5)
            raise UserError(f"没有命令 {name}" + (f"，是否指 {near[0]}？" if near else "；/help 查看全部命令"))
        self.commands[name](argument.strip())

    def again(self, _: str) -> None:
        if self.prompt is None:
            raise UserError("还没有写过；先输入一个开头")
        if self.settings.seed is not None:  # 固定的种子也要换一首
            self.settings.seed = (self.settings.seed + self.settings.num_samples) % 2**31
        self._write(self._seed())

    def more(self, _: str) -> None:
        if not self.writer.songs:
            raise UserError("还没有写过；先输入一个开头")
        song = self.writer.songs[-1]
        self.writer.extend(song, self.settings, self._seed(), _show)
        print(flush=True)
        self.writer.tell_stats()
        self._tell_if_cut()

    def set(self, argument: str) -> None:
        flags = {flag.name: flag for flag in SONG_FLAGS}
        if not argument:
            for name, value in dataclasses.asdict(self.settings).items():
                _tell(f"  {name:<20}{'none' if value is None else value}")
            return
        name, _, value = argument.partition(" ")
        name = name.lstrip("-")
        if name not in flags:
            near = difflib.get_close_matches(name, flags, n=1)
            raise UserError(f"没有设置 {name}" + (f"，是否指 {near[0]}？" if near else "；/set 查看全部设置"))
        found = configuration.parse_flags([flags[name]], [f"--{name}={value.strip()}"], "inference.py", "")
        _check_text(found[name])
        setattr(self.settings, name, found[name])
        _tell(f"{name} = {'none' if found[name] is None else found[name]}")

    def save(self, argument: str) -> None:
        if not argument:
            raise UserError("请写明文件，例如 /save 我的歌.txt")
        if not self.writer.songs:
            raise UserError("还没有可保存的歌词")
        path = Path(argument).expanduser()
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write("\n\n".join(song.text for song in self.writer.songs) + "\n\n")
        except OSError as error:
            raise UserError(f"写不进 {path}：{error.strerror}") from None
        _tell(f"已添到 {path} 末尾")

    def _seed(self) -> int:
        return self.settings.seed if self.settings.seed is not None else secrets.randbelow(2**31 - 1)

    def _write(self, seed: int) -> None:
        print_songs(self.writer, self.prompt, dataclasses.replace(self.settings, seed=seed))
        self._tell_if_cut()

    def _tell_if_cut(self) -> None:
        if not all(song.ended for song in self.writer.songs):
            _tell(f"（写满 {self.settings.max_tokens} 个词元；/more 接着写）")


# ---------------------------------------------------------------------------
# 输入与输出
# ---------------------------------------------------------------------------


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _read_line(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)
    print(prompt, end="", file=sys.stderr, flush=True)  # 标准输出只有歌词
    return input()


def _prompts_from_pipe() -> Iterable[str]:
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            line = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            try:
                line = raw.decode("gb18030")  # 中文 Windows 的管道
            except UnicodeDecodeError:
                raise UserError(f"标准输入第 {number} 行的编码有误：请用 UTF-8") from None
        if line.strip():
            yield line.strip()


def _check_text(*texts: Any) -> None:
    """命令行或终端里编码有误的文字会带孤立代理项，分词器不收。"""
    for text in texts:
        if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError("文字的编码有误：请用 UTF-8 的终端输入")


if __name__ == "__main__":
    configuration.run_script(main, UserError, CheckpointError, runtime.DeviceError)

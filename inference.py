"""写歌词：`python inference.py --prompt 今夜我`，或不带 --prompt 进入对话。

歌词写到标准输出，其余一切写到标准错误；标准输入不是终端时，每行一个开头，各写一首。
"""

import contextlib
import dataclasses
import difflib
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import flags
from flags import Flag, constants
from lyrics.cipai import cipai_list
from lyrics.form import LyricsError
from lyrics.notation import form_text
from lyrics.sound import lines_of
from terminal import BROKEN_TEXT, Display, UserError, is_out_of_memory, line_numbers, run_script
from training.checkpoint import BEST, CheckpointError
from training.device import DeviceError, device_name, peak_memory_gb
from writing.copying import index_of_checkpoint
from writing.loading import load_writer, open_copies
from writing.settings import GRAPHS, RUN_FLAGS, SONG_FLAGS, Settings, grouped, shown_form
from writing.stats import Stats
from writing.writer import Song, Writer

DESCRIPTION = "用训练好的检查点写歌词。不带 --prompt 时进入对话；/help 查看对话里的命令。"
# 给了这些之一而没有开头，就从头写一首，不进入对话
WRITES_FROM_NOTHING = ("title", "singer", "lines", "acrostic", "structure", "like", "cipai", "keywords")
FLAGS = grouped(
    [
        Flag("checkpoint", Path(constants.CHECKPOINT_DIR) / BEST, flags.path(), "检查点；架构与分词器都从它读出"),
        Flag("prompt", None, flags.text(), "歌词的开头"),
        *SONG_FLAGS,
        *RUN_FLAGS,
        Flag("copy_index", Path(constants.CACHE_DIR) / "copies", flags.path(), "语料的索引；要用而没有就建"),
    ]
)


def main(argv: Sequence[str]) -> int:
    given = flags.parse_flags(FLAGS, argv, "inference.py", DESCRIPTION)
    options = {flag.name: given.get(flag.name, flag.default) for flag in FLAGS}
    settings = Settings(**{flag.name: options[flag.name] for flag in SONG_FLAGS})
    form = settings.form()
    if options["show_form"]:
        print(shown_form(form), end="")
        return 0
    places = {name: flags.rooted(options[name], name in given) for name in ("checkpoint", "copy_index")}
    began = time.perf_counter()
    writer, device, dtype, about = load_writer(
        places["checkpoint"], options["device"], options["dtype"], options["decode"], _tell
    )
    _tell(about)
    stats = Stats(dtype, time.perf_counter() - began) if options["stats"] else None
    required = bool(settings.max_copy or options["check_copy"])
    writer.copies = open_copies(places["copy_index"], writer.tokenizer, False)
    display = Display(sys.stderr)
    writer.find_copies = lambda: index_of_checkpoint(
        places["checkpoint"], writer.tokenizer, places["copy_index"], display.line, display.progress
    )
    if required:
        writer.copies = writer.copies or writer.find_copies()
    writer.cuda_graph = GRAPHS[options["cuda_graph"]]
    if writer.cuda_graph and device.type != "cuda":
        raise DeviceError(f"--cuda_graph true 只用于 CUDA，这里是 {device_name(device)}")
    printer = Printer(writer, stats, options["check_copy"])
    try:
        terminal = sys.stdin is not None and sys.stdin.isatty()
        if options["prompt"] or any(options[name] is not None for name in WRITES_FROM_NOTHING):
            printer.write(options["prompt"] or "", settings)
        elif terminal:
            Conversation(printer, settings).run()
        elif sys.stdin is not None:
            none = True
            for line in _prompts_from_pipe():
                none = False
                printer.write(line, settings)
                print(flush=True)
            if none:
                _tell("标准输入里没有开头：请用 --prompt，或每行一个开头送进来")
    except KeyboardInterrupt:
        print(flush=True)
        return 130
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError("内存或显存不足：请减小 --num_samples，显卡上也可用 --device cpu") from None
    return 0


class Printer:
    """写出的歌送到标准输出，其余的话送到标准错误。

    Args:
        stats: 要报用时时给出。
        check_copy: 写完之后逐行说与语料的相同处。
    """

    def __init__(self, writer: Writer, stats: Stats | None = None, check_copy: bool = False) -> None:
        self.writer, self.stats, self.check_copy = writer, stats, check_copy
        writer.count = stats.count if stats is not None else writer.count

    def write(self, prompt: str, settings: Settings) -> None:
        """一首时边写边送，几首时写完再依次送。"""
        seed = settings.seed if settings.seed is not None else secrets.randbelow(2**31 - 1)
        self.writer.require(settings, prompt)
        _tell(f"种子 {seed}")
        with self.around():
            if settings.num_samples == 1:
                _show(prompt)
                self.writer.write(prompt, settings, seed, _show)
                print(flush=True)
                return
            for number, song in enumerate(self.writer.write(prompt, settings, seed, _show), 1):
                if number > 1:
                    print()
                sys.stdout.flush()
                _tell(f"── 第 {number} 首 ──")
                print(song.text, flush=True)

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """写的前后：计时；写完照要求说与语料的相同处、用时。"""
        if self.stats is not None:
            self.stats.start()
        yield
        for notice in self.writer.notices():
            _tell(notice)
        if self.check_copy:
            for number, song in enumerate(self.writer.songs, 1):
                if len(self.writer.songs) > 1:
                    _tell(f"── 第 {number} 首 ──")
                for line in self.writer.copied_lines(song.text):
                    _tell(line)
        if self.stats is not None:
            _tell(self.stats.line(peak_memory_gb(self.writer.device)))


# ---------------------------------------------------------------------------
# 对话
# ---------------------------------------------------------------------------

HELP = """输入歌词的开头，回车开始写；Ctrl-C 停下这一首，Ctrl-D 离开。
  /again            用同样的开头另写一首
  /more             接着往下写
  /rewrite 3        另给第 3 行五种写法（同样的字数与韵，与前后相接），选一种换上
  /lock 1-4         留住这些行，/again 只重写其余；/lock none 放开
  /rhymes 月        与这个字（或一行的末字）同韵、双押、近韵的
  /like 文件        照这首歌（或句式）的样子写；/like none 不照
  /cipai 如梦令     照词牌写；/cipai 列出词牌，/cipai none 不照
  /set              查看设置；/set temperature 0.8 改一项（none 表示不用）
  /save 文件        把刚写的歌词添到文件末尾
  /help             本说明
  /quit             离开"""


_SETTABLE = {flag.name: flag for flag in SONG_FLAGS}


class Conversation:
    """对话：一次载入，反复写。"""

    def __init__(self, printer: Printer, settings: Settings) -> None:
        self.printer, self.writer, self.settings = printer, printer.writer, settings
        self.prompt: str | None = None
        self.locked, self.rewritings = set[int](), 0  # 留住的行（从 1 起）；另给过几次写法
        self.commands = {
            "/again": self.again,
            "/more": self.more,
            "/rewrite": self.rewrite,
            "/lock": self.lock,
            "/rhymes": self.rhymes,
            "/like": lambda argument: self.shape("like", argument),
            "/cipai": lambda argument: self.shape("cipai", argument),
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
            except EOFError:  # 在第二个提问处按了 Ctrl-D
                _tell("\n（没有改动）")
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                _tell("内存或显存不足，没有写完；这首歌还在，可减小 num_samples 再试")
            except (UserError, LyricsError) as error:
                _tell(str(error))

    def answer(self, line: str) -> None:
        """一行输入：命令，或歌词的开头。"""
        if not line:
            return
        if not line.startswith("/"):
            if BROKEN_TEXT.search(line):
                raise UserError("文字的编码有误：请用 UTF-8 的终端输入")
            self.prompt, self.locked = line, set()
            self._write(line, self._seed())
            return
        name, _, argument = line.partition(" ")
        if name not in self.commands:
            near = difflib.get_close_matches(name, [*self.commands, "/quit"], n=1, cutoff=0.5)
            raise UserError(f"没有命令 {name}" + (f"，是否指 {near[0]}？" if near else "；/help 查看全部命令"))
        self.commands[name](argument.strip())

    def shape(self, name: str, argument: str) -> None:
        """换一个样例或词牌；不写是哪个词牌就列出来。"""
        if not argument:
            _tell(cipai_list() if name == "cipai" else "请写明文件，例如 /like 一首歌.txt")
            return
        self.settings = self._changed({"like": "none", "cipai": "none", "keep_tones": "false", name: argument})
        form = self.settings.form()
        if form.patterned:
            _tell(f"{form_text(form)}输入开头，或 /again 从头写")

    def again(self, _: str) -> None:
        if self.prompt is None and not self.settings.form().patterned:
            raise UserError("还没有写过；先输入一个开头")
        self.prompt = self.prompt or ""
        if self.settings.seed is not None:  # 固定的种子也要换一首
            self.settings.seed = (self.settings.seed + self.settings.num_samples) % 2**31
        if self.locked:
            self._write_the_rest(self.prompt)
        else:
            self._write(self.prompt, self._seed())

    def _write_the_rest(self, prompt: str) -> None:
        """留住的行不动，其余重写，行数不变。"""
        with self.printer.around():
            try:
                self.writer.write_the_rest(self._song(), self.locked, prompt, self.settings, self._seed(), _show)
            except BaseException:
                _tell("\n（没有写完，仍是原来那首）")
                raise
            print(flush=True)

    def rewrite(self, argument: str) -> None:
        song = self._song()
        lines = lines_of(song.text)
        numbers = line_numbers(argument, len(lines)) if argument else set()
        if len(numbers) != 1:
            raise UserError("一次改一行，例如 /rewrite 3")
        place = numbers.pop()
        self.rewritings += 1  # 固定的种子也要给出别的写法
        seed = (self._seed() + self.rewritings) % 2**31
        options = self.writer.rewritings(song.text, place, self.settings, seed)
        if not options:
            raise UserError(f"第 {place} 行没有写出别的，可再试一次或放宽 /set max_copy")
        _tell(f"第 {place} 行原是：{lines[place - 1]}")
        for choice, option in enumerate(options, 1):
            _tell(f"  {choice}  {option}")
        picked = _read_line("用第几种（回车不换）> ").strip()
        if not picked:
            return
        if not picked.isdecimal() or not 1 <= int(picked) <= len(options):
            raise UserError(f"没有第 {picked} 种，没有改动")
        self.writer.replace_line(song, place, options[int(picked) - 1], self.settings)
        print(song.text, flush=True)

    def lock(self, argument: str) -> None:
        lines = lines_of(self._song().text)
        if argument == "none":
            self.locked = set()
        elif argument:
            self.locked |= line_numbers(argument, len(lines))
        shown = "、".join(map(str, sorted(self.locked)))
        _tell(f"留住第 {shown} 行；/again 重写其余" if shown else "没有留住的行")

    def rhymes(self, argument: str) -> None:
        found = self.writer.rhymes.find(argument)
        if found is None:
            raise UserError("请给一个汉字，例如 /rhymes 月")
        _tell(f"{found.name}，常用的在前：\n{' '.join(found.characters[:120])}")
        for title, words in (("两个字的", found.words), ("后两个字都押的", found.double), ("相近的", found.near)):
            if words:
                _tell(f"{title}：{' '.join(words[:40])}")

    def _song(self) -> Song:
        """最近写的一首。"""
        if not self.writer.songs:
            raise UserError("还没有写过；先输入一个开头")
        return self.writer.songs[-1]

    def more(self, _: str) -> None:
        song = self._song()
        self.locked = set()
        with self.printer.around():
            self.writer.extend(song, self.settings, self._seed(), _show)
            print(flush=True)
        self._tell_if_cut()

    def set(self, argument: str) -> None:
        if not argument:
            for name, value in dataclasses.asdict(self.settings).items():
                _tell(f"  {name:<20}{'none' if value is None else value}")
            return
        name, _, value = argument.partition(" ")
        name = name.lstrip("-")
        if name not in _SETTABLE:
            near = difflib.get_close_matches(name, _SETTABLE, n=1)
            raise UserError(f"没有设置 {name}" + (f"，是否指 {near[0]}？" if near else "；/set 查看全部设置"))
        self.settings = self._changed({name: value.strip()})
        value = getattr(self.settings, name)
        _tell(f"{name} = {'none' if value is None else value}")

    def _changed(self, values: dict[str, str]) -> Settings:
        """改了几项的设置；不合的说出来，没有改。"""
        typed = [f"--{name}={value}" for name, value in values.items()]
        found = flags.parse_flags([_SETTABLE[name] for name in values], typed, "inference.py", "")
        changed = dataclasses.replace(self.settings, **found)
        changed.form()
        if changed.max_copy and self.writer.copies is None:
            self.writer.copies = self.writer.find_copies()
        return changed

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

    def _write(self, prompt: str, seed: int) -> None:
        self.printer.write(prompt, dataclasses.replace(self.settings, seed=seed))
        self._tell_if_cut()

    def _tell_if_cut(self) -> None:
        if not all(song.ended for song in self.writer.songs):
            _tell(f"（写满 {self.settings.budget} 个词元；/more 接着写）")


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


if __name__ == "__main__":
    run_script(main, UserError, CheckpointError, LyricsError, DeviceError)

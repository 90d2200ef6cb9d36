"""写歌词的命令行与对话。"""

import codecs
import dataclasses
import io
import json
import os
import pickle
import runpy
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import checkpoint
import config
import generation
import inference
import lyrics
import tokenizer as tokenizer_module
from config import UserError
from generation import song_seed
from inference import Conversation, Settings, Writer
from lyrics import LyricsError
from model import GPT, ModelConfig
from runtime import DeviceError

REPOSITORY = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
LINES = [
    f"{who}{where}{what}"
    for who in "我你他谁"
    for where in ("在风里", "在河岸", "到故乡")
    for what in ("唱歌", "等你", "看月亮")
]
MAX_SEQ_LEN = 32


@pytest.fixture(scope="session")
def tokenizer():
    return tokenizer_module.train(LINES * 20, 400)


@pytest.fixture(scope="session")
def trained(tokenizer, tmp_path_factory) -> Path:
    """随机权重的小模型：多写汉字和换行，偶尔写字节（半个字、坏字节），从不自己收尾。"""
    torch.manual_seed(0)
    model_config = ModelConfig(tokenizer.vocab_size, MAX_SEQ_LEN, n_layers=2, n_heads=2, n_embed=32)
    model = GPT(model_config).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=0.2 if name == "embedding.weight" else 0.5)
    # 词嵌入的第 0 维不受前文影响地加到 logits 上。
    model.norm.weight[0], model.norm.bias[0] = 0.0, 1.0
    bias = torch.tensor([-1.5 if len(piece) == 1 else 1.0 for piece in tokenizer.token_bytes])
    bias[tokenizer.eos_id] = -20.0
    bias[tokenizer.never_written] = 6.0  # 若不禁止，写的全是控制词元
    bias[tokenizer.newline_id] = 2.0
    model.embedding.weight[:, 0] = bias
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    checkpoint.save(path, checkpoint.model_contents(model, tokenizer, {}, 3, 4.5, 6.25))
    return path


@pytest.fixture
def writer(trained) -> Writer:
    return inference.load_writer(trained, "cpu", "fp32")


FIXES_LINES = ("lines", "acrostic", "structure")  # 定了行数，就不能再给 max_tokens


def settings(**changes) -> Settings:
    values = {flag.name: flag.default for flag in inference.SONG_FLAGS}
    fixed = any(changes.get(name) is not None for name in FIXES_LINES)
    return Settings(**{**values, "max_tokens": None if fixed else 40, "seed": 1, **changes})


@pytest.fixture
def write(trained, capsys):
    """在本进程里运行 inference.py：write(参数…) → (标准输出, 标准错误)。"""

    def call(*argv: str) -> tuple[str, str]:
        capsys.readouterr()
        flags = ["--checkpoint", str(trained), "--device", "cpu", "--dtype", "fp32"]
        if "--max_tokens" not in argv and not {f"--{name}" for name in FIXES_LINES} & set(argv):
            flags += ["--max_tokens", "40"]
        assert inference.main([*flags, *argv]) == 0
        return capsys.readouterr()

    return call


# ---- 一首歌 ----


def test_stdout_holds_the_song_alone(write):
    """标准输出只有歌词，从开头写起；其余写到标准错误。"""
    out, err = write("--prompt", "我在风里", "--seed", "5")
    assert out.startswith("我在风里")
    assert len(out) > len("我在风里") + 10
    assert out.endswith("\n")
    assert "种子 5" in err
    assert "best.pt" in err
    assert "6.250" in err
    assert "种子" not in out
    assert "best.pt" not in out


def test_cuda_graph_needs_cuda(write, monkeypatch):
    """CPU 上 auto、false 照写，true 说明用不了；选择一直传到生成那一步。"""
    chosen = []
    generate = inference.generation.generate

    def watched(*args, **options):
        chosen.append(options["cuda_graph"])
        return generate(*args, **options)

    monkeypatch.setattr(inference.generation, "generate", watched)
    for choice in ("auto", "false"):
        assert write("--prompt", "我", "--seed", "5", "--cuda_graph", choice)[0].startswith("我")
    assert chosen == [None, False]
    with pytest.raises(DeviceError, match="CUDA"):
        write("--prompt", "我", "--cuda_graph", "true")
    with pytest.raises(UserError, match="auto / true / false"):
        write("--prompt", "我", "--cuda_graph", "yes")


def test_same_seed_same_lyrics(write):
    """种子定了歌词就定了；不给种子时报出所用的种子，用它能重写出来。"""
    first, _ = write("--prompt", "我", "--seed", "5")
    assert write("--prompt", "我", "--seed", "5")[0] == first
    assert write("--prompt", "我", "--seed", "6")[0] != first
    drawn, err = write("--prompt", "我")
    seed = err.partition("种子 ")[2].split()[0]
    assert write("--prompt", "我", "--seed", seed)[0] == drawn


def test_streamed_pieces_are_the_song(writer, write):
    """边写边送的文字连起来就是整首；从不出现半个字，也不缺字。"""
    pieces = []
    (song,) = writer.write("我在", settings(max_tokens=300, top_p=1.0), 1, pieces.append)
    assert len(pieces) > 50
    assert "我在" + "".join(pieces) == song.text
    assert "\ufffd" not in song.text
    prompt_length = len(writer.tokenizer.song("我在"))
    assert song.text == "我在" + writer.tokenizer.decode(song.tokens[prompt_length:])
    assert any(len(writer.tokenizer.token_bytes[token]) == 1 for token in song.tokens[prompt_length:])
    out, _ = write("--prompt", "我在", "--seed", "1", "--max_tokens", "300", "--top_p", "1.0")
    assert out == song.text + "\n"


def test_a_character_written_in_bytes_is_shown_whole(writer, monkeypatch):
    """一个字分三个字节词元写出：到齐才送出；没写完的半个字不送出。"""
    byte_ids = {piece[0]: i for i, piece in enumerate(writer.tokenizer.token_bytes) if len(piece) == 1 and i > 6}
    ids = [byte_ids[byte] for byte in "龘龘".encode()]

    def fake(*_, **__):
        yield from ([(0, token)] for token in ids[:5])

    monkeypatch.setattr(generation, "generate", fake)
    pieces = []
    (song,) = writer.write("我", settings(), 1, pieces.append)
    assert pieces == ["龘"]
    assert song.text == "我龘"


def test_several_songs_are_separated_by_an_empty_line(write, writer):
    """三首之间各空一行；第 i 首就是单独用 song_seed(seed, i) 写的那首。"""
    texts = [song.text for song in writer.write("我", settings(num_samples=3), 7, lambda _: None)]
    assert len(set(texts)) == 3
    out, err = write("--prompt", "我", "--seed", "7", "--num_samples", "3")
    assert out == "\n\n".join(texts) + "\n"
    assert "第 3 首" in err
    for number, text in enumerate(texts):
        assert write("--prompt", "我", "--seed", str(song_seed(7, number)), "--num_samples", "1")[0] == text + "\n"


def test_temperature_zero_is_greedy(write):
    """温度 0：与种子无关，几首都相同。"""
    first, _ = write("--prompt", "我", "--temperature", "0", "--seed", "1")
    assert write("--prompt", "我", "--temperature", "0", "--seed", "2")[0] == first
    assert write("--prompt", "我", "--temperature", "0", "--num_samples", "2")[0] == f"{first}\n{first}"
    assert write("--prompt", "我", "--top_k", "1", "--seed", "3")[0] == first


def test_every_flag_reaches_the_sampling(write, monkeypatch):
    """命令行的每个设置都真的用上。"""
    used = []
    original = generation.generate

    def recorded(model, prompt, sampling, **options):
        used.append((sampling, options["num_samples"]))
        return original(model, prompt, sampling, **options)

    monkeypatch.setattr(generation, "generate", recorded)
    flags = "--prompt 我 --max_tokens 3 --min_tokens 2 --temperature 0.7 --top_p 0.5 --top_k 9"
    write(*flags.split(), *"--repetition_penalty 1.3 --seed 4 --num_samples 2".split())
    assert used == [(generation.Sampling(3, 0.7, 9, 0.5, 1.3, 4, min_tokens=2), 2)]


def test_defaults_are_those_promised():
    """--max_tokens 200（不给时）、--temperature 1.0、--top_p 0.9、checkpoints/best.pt。"""
    defaults = {flag.name: flag.default for flag in inference.FLAGS}
    assert (settings(max_tokens=None).budget, defaults["temperature"], defaults["top_p"]) == (200, 1.0, 0.9)
    assert defaults["checkpoint"] == Path("checkpoints/best.pt")
    assert defaults["dtype"] == defaults["device"] == "auto"


def test_prompts_and_songs_longer_than_the_context(write):
    """开头或歌比 max_seq_len 长，照样写下去。"""
    prompt = "我在风里唱歌，" * 20
    out, _ = write("--prompt", prompt, "--max_tokens", str(4 * MAX_SEQ_LEN))
    assert out.startswith(prompt)
    assert len(out) > len(prompt) + 2 * MAX_SEQ_LEN


@pytest.mark.parametrize("prompt", ["<lyric></s>", "</s>", "<s><title>我", "<unk>", "▁我", "😀𠮷", "a b  c", "\\n"])
def test_typed_text_is_only_text(write, writer, prompt):
    """开头里写控制词元的名字只是普通文字，原样出现；写出的歌里没有控制词元。"""
    out, _ = write("--prompt", prompt, "--seed", "2")
    assert out.startswith(prompt)
    (song,) = writer.write(prompt, settings(), 2, lambda _: None)
    tokenizer = writer.tokenizer
    controls = {*tokenizer.never_written, tokenizer.eos_id}
    assert [token for token in song.tokens if token in controls] == [tokenizer.bos_id, tokenizer.lyric_id]
    for name in ("<lyric>", "</s>", "<s>", "<title>", "<unk>", "<singer>"):
        assert out.count(name) == prompt.count(name)


def test_control_tokens_are_kept_away_by_the_ban_only(writer, monkeypatch):
    """上面的模型若不禁止，写的就是控制词元：所以上面的测试抓得住遗漏。"""
    never = set(writer.tokenizer.never_written)
    monkeypatch.setattr(tokenizer_module.Tokenizer, "never_written", property(lambda _: []))
    (song,) = writer.write("我", settings(), 2, lambda _: None)
    assert len(never & set(song.tokens)) >= 3


def test_title_and_singer_come_before_the_lyric(write, tokenizer, monkeypatch):
    """歌名与歌手按训练时的格式放在正文前；只给歌名也能写；它们不出现在歌词里。"""
    seen = []
    original = generation.generate

    def recorded(model, prompt, *arguments, **options):
        seen.append(list(prompt))
        return original(model, prompt, *arguments, **options)

    monkeypatch.setattr(generation, "generate", recorded)
    plain, _ = write("--prompt", "我", "--seed", "1")
    titled, _ = write("--prompt", "我", "--seed", "1", "--title", "月亮", "--singer", "谁")
    assert titled.startswith("我")
    assert titled != plain
    write("--title", "月亮")
    t = tokenizer
    assert seen[1] == [
        t.bos_id,
        t.title_id,
        *t.encode("月亮"),
        t.singer_id,
        *t.encode("谁"),
        t.lyric_id,
        *t.encode("我"),
    ]
    assert seen[2] == [t.bos_id, t.title_id, *t.encode("月亮"), t.lyric_id]


def test_everything_comes_from_the_checkpoint(write, monkeypatch):
    """config.py 怎么改都不影响写歌：架构与分词器都在检查点里。"""
    before, _ = write("--prompt", "我", "--seed", "5")
    changes = {"N_LAYERS": 3, "N_HEADS": 5, "N_EMBED": 20, "MAX_SEQ_LEN": 8, "BPE_VOCAB_SIZE": 300}
    for name, value in {**changes, "BPE_MODEL_PREFIX": "nowhere", "LYRICS_DIR": "nowhere"}.items():
        monkeypatch.setattr(config, name, value)
    assert write("--prompt", "我", "--seed", "5")[0] == before


@pytest.mark.parametrize("dtype", ["auto", "bf16", "fp16", "int8"])
def test_half_precision_writes_too(write, dtype):
    """每种精度都能写，温度 0 时可重复。"""
    flags = ("--prompt", "我在", "--dtype", dtype, "--temperature", "0", "--max_tokens", "60")
    out, _ = write(*flags)
    assert out.startswith("我在")
    assert len(out) > 20
    assert write(*flags)[0] == out


def favour_ending(writer: Writer, monkeypatch, amount: float) -> None:
    """</s> 的 logit 加上 amount。"""
    original = writer.model.logits
    bias = torch.zeros(writer.tokenizer.vocab_size)
    bias[writer.tokenizer.eos_id] = amount
    monkeypatch.setattr(writer.model, "logits", lambda hidden: original(hidden) + bias)


def test_a_song_may_end_by_itself(writer, monkeypatch):
    """写出 </s> 就停：ended 为真，</s> 不写出，也不占词元。"""
    favour_ending(writer, monkeypatch, 24.0)
    songs = writer.write("我", settings(num_samples=8, max_tokens=100), 1, lambda _: None)
    ended = [song for song in songs if song.ended]
    assert ended
    for song in songs:
        assert writer.tokenizer.eos_id not in song.tokens
        assert song.ended == (len(song.tokens) < 100 + len(writer.tokenizer.song("我")))


def test_min_tokens_holds_the_ending_back(write, writer, monkeypatch):
    """想立刻收尾的模型：写满 min_tokens 才许收尾。"""
    favour_ending(writer, monkeypatch, 60.0)
    for least in (0, 1, 17):
        (song,) = writer.write("我", settings(min_tokens=least), 1, lambda _: None)
        assert len(song.tokens) == least + len(writer.tokenizer.song("我"))
        assert song.ended
    writer.extend(song, settings(min_tokens=5), 1, lambda _: None)
    assert len(song.tokens) == 17 + len(writer.tokenizer.song("我")) + 1 + 5  # 换行与新的五个


@pytest.mark.parametrize("flag", ["--stats", "--stats=true"])
@pytest.mark.parametrize("count", [1, 3])
def test_stats_are_one_line_of_json(write, flag, count):
    """--stats：标准错误最后一行是 JSON，数目与实际相符；标准输出不变；不给它就没有这一行。"""
    flags = ("--prompt", "我", "--seed", "1", "--num_samples", str(count), "--max_tokens", "9")
    plain, quiet = write(*flags)
    out, err = write(flag, *flags)
    assert out == plain
    assert "tokens_per_s" not in quiet
    (line,) = [line for line in err.splitlines() if line.startswith("{")]
    found = json.loads(line)
    assert set(found) == {
        *("tokens", "seconds", "tokens_per_s", "first_token_s", "load_s", "peak_memory_mb", "dtype"),
    }
    assert (found["tokens"], found["dtype"]) == (9 * count, "fp32")
    assert 0 < found["first_token_s"] <= found["seconds"]
    decoding = (found["tokens"] - count) / found["tokens_per_s"]
    assert decoding <= found["seconds"] - found["first_token_s"] + 1e-3
    assert found["load_s"] > 0
    assert found["peak_memory_mb"] > 50


def test_stats_of_a_song_without_tokens(writer, monkeypatch):
    """一个词元也没写成：没有的项是 null，不出错。"""
    favour_ending(writer, monkeypatch, 60.0)
    writer.stats = inference.Stats(torch.device("cpu"), "fp32", 0.5)
    writer.write("我", settings(), 1, lambda _: None)
    found = json.loads(writer.stats.line())
    assert (found["tokens"], found["tokens_per_s"], found["first_token_s"]) == (0, None, None)


def test_auto_says_what_it_picked(trained, capsys, monkeypatch):
    """auto：有原生半精度的 CPU 用 int8，没有的用 fp32；显卡用它的半精度；选了什么写在标准错误里。"""
    for half, expected in ((torch.bfloat16, "int8"), (None, "fp32")):
        monkeypatch.setattr(inference.runtime, "native_half", lambda _, half=half: half)
        assert inference.load_writer(trained, "cpu", "auto").model.head is not None
        assert f"{expected}（auto 选定）" in capsys.readouterr().err
    monkeypatch.setattr(inference.runtime, "native_half", lambda _: torch.bfloat16)
    monkeypatch.setattr("model._working", lambda *_: None)  # 没有 int8 算子的 torch
    assert inference.fastest_dtype(torch.device("cpu")) == "bf16"
    monkeypatch.setattr(inference.runtime, "native_half", lambda _: torch.float16)
    assert inference.fastest_dtype(torch.device("cuda")) == "fp16"
    inference.load_writer(trained, "cpu", "bf16")
    assert "auto" not in capsys.readouterr().err


# ---- 管道与中断 ----


def script(*argv: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / "inference.py"), *argv]
    return subprocess.run(
        command, capture_output=True, env=ENVIRONMENT, encoding="utf-8", timeout=60, check=False, **options
    )


def test_a_pipe_gives_a_song_a_line(trained, write, tmp_path):
    """管道：每行一个开头，各写一首，空行略过；歌后空一行。从别的文件夹运行也一样。"""
    expected = [write("--prompt", prompt, "--seed", "3", "--max_tokens", "12")[0] for prompt in ("我在", "故乡")]
    flags = f"--checkpoint {trained} --device cpu --dtype fp32 --seed 3 --max_tokens 12".split()
    done = script(*flags, input="我在\n\n  故乡 \n", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "".join(f"{song}\n" for song in expected)), done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_closed_stdout_is_no_error(trained):
    """`| head -c 10`：读的一方先走，写歌就停，没有回溯。"""
    command = [sys.executable, str(REPOSITORY / "inference.py"), "--checkpoint", str(trained), "--prompt", "我在"]
    command += ["--device", "cpu", "--dtype", "fp32", "--max_tokens", "10000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        try:
            assert process.stdout.read(6).decode() == "我在"
            process.stdout.close()
            err = process.stderr.read().decode()
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_ctrl_c_stops_a_single_song(write, trained, monkeypatch, capsys):
    """不在对话里时，Ctrl-C 结束程序，退出码 130，已写的留着，不显示回溯。"""
    stop_after(monkeypatch, 5)
    flags = ["--checkpoint", str(trained), "--device", "cpu", "--dtype", "fp32", "--prompt", "我在", "--seed", "1"]
    assert inference.main(flags) == 130
    out = capsys.readouterr().out
    assert out.startswith("我在")
    assert out.endswith("\n")


def stop_after(monkeypatch, steps: int) -> None:
    """写了几步之后按一次 Ctrl-C。"""
    original = generation.generate
    pressed = []

    def interrupted(*arguments, **options):
        for number, step in enumerate(original(*arguments, **options)):
            if number == steps and not pressed:
                pressed.append(True)
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(generation, "generate", interrupted)


# ---- 错误 ----


@pytest.fixture
def fail(capsys, monkeypatch, recwarn):
    """照 `python inference.py 参数…` 运行，必须是退出码 2、几行中文、没有回溯；返回标准错误。"""

    def call(*argv: str, lines: int = 2) -> str:
        monkeypatch.setattr(sys, "argv", ["inference.py", *argv])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(REPOSITORY / "inference.py"), run_name="__main__")
        out, err = capsys.readouterr()
        assert caught.value.code == 2
        assert out == ""
        check_message(err, lines)
        assert [str(warning.message) for warning in recwarn if warning.category is UserWarning] == []
        return err

    return call


def check_message(err: str, lines: int = 2) -> None:
    assert 1 <= len(err.strip().splitlines()) <= lines, err
    assert all(any("\u4e00" <= c <= "\u9fff" for c in line) for line in err.strip().splitlines()), err
    assert "Traceback" not in err


def test_a_missing_checkpoint(fail, tmp_path):
    """没有检查点：写出找的是哪个文件，怎么办。"""
    err = fail("--checkpoint", str(tmp_path / "none.pt"), "--prompt", "我")
    assert str(tmp_path / "none.pt") in err
    assert "train.py" in err


def damaged(kind: str, trained: Path, path: Path) -> None:
    whole = trained.read_bytes()
    if kind == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("今夜我", encoding="utf-8")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"model": [1, 2, 3]}))
    elif kind == "torch":
        torch.save({"weight": torch.zeros(3)}, path)
    elif kind == "folder":
        path.mkdir()
    else:
        contents = torch.load(trained, weights_only=True)
        contents["model_config"]["n_layers"] = 5
        torch.save(contents, path)


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "pickle", "torch", "folder", "mismatch"])
def test_damaged_checkpoints(fail, trained, tmp_path, kind):
    """截断的、空的、不是检查点的、前后不符的：一两行中文，写明文件。"""
    path = tmp_path / "bad.pt"
    damaged(kind, trained, path)
    assert str(path) in fail("--checkpoint", str(path), "--prompt", "我")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--top_p", "1.5"], "--top_p 1.5"),
        (["--top_p", "0"], "--top_p 0"),
        (["--top_p", "nan"], "--top_p nan"),
        (["--temperature", "-1"], "--temperature -1"),
        (["--temperature", "inf"], "--temperature inf"),
        (["--temperature", "热"], "--temperature 热"),
        (["--max_tokens", "0"], "--max_tokens 0"),
        (["--max_tokens", "1.5"], "--max_tokens 1.5"),
        (["--num_samples", "0"], "--num_samples 0"),
        (["--top_k", "-1"], "--top_k -1"),
        (["--repetition_penalty", "0"], "--repetition_penalty 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--prompt", ""], "--prompt"),
        (["--prompt", "   "], "--prompt"),
        (["--prompt"], "--prompt"),
        (["--prompt", "\udce4"], "编码"),
        (["--title", "\udce4"], "编码"),
        (["--device", "tpu"], "tpu"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--device", ""], "--device"),
        (["--dtype", "int3"], "int3"),
        (["--tempreture", "1"], "--temperature"),
        (["--temp", "1"], "--temp"),
        (["多余"], "多余"),
    ],
)
def test_bad_flags(fail, trained, flags, named):
    """参数有误：写出参数和值；拼错的给出最近的名字。"""
    prompt = [] if "--prompt" in flags else ["--prompt", "我"]
    assert named in fail("--checkpoint", str(trained), *prompt, *flags)


def test_all_bad_flags_are_listed_at_once(fail):
    """一次列出全部问题。"""
    err = fail("--prompt", "我", "--top_p", "2", "--max_tokens", "x", "--sed", "1", lines=3)
    assert "--top_p 2" in err
    assert "--max_tokens x" in err
    assert "--seed" in err


def test_errors_of_a_real_process(tmp_path):
    """真正的进程：退出码 2，标准错误里只有这一两行，标准输出为空。"""
    path = tmp_path / "bad.pt"
    path.write_bytes(pickle.dumps({"model": [1, 2, 3]}))
    for flags in (["--checkpoint", str(path)], ["--top_p", "1.5"]):
        done = script("--prompt", "我", *flags)
        assert (done.returncode, done.stdout) == (2, "")
        check_message(done.stderr)


# ---- 对话 ----


@pytest.fixture
def talk(writer, capsys):
    """talk(行, …) → 各行的标准输出；错误与说明在 talk.err。"""

    class Talk:
        def __init__(self) -> None:
            self.conversation = Conversation(writer, settings(max_tokens=20))
            self.err = ""

        def __call__(self, line: str) -> str:
            capsys.readouterr()
            if line.startswith(tuple(f"/set {name}" for name in FIXES_LINES)):
                self.conversation.settings.max_tokens = None
            self.conversation.answer(line)
            out, self.err = capsys.readouterr()
            return out

        def error(self, line: str) -> str:
            with pytest.raises(UserError) as caught:
                self.conversation.answer(line)
            assert capsys.readouterr().out == ""
            return str(caught.value)

    return Talk()


def test_a_line_is_a_prompt(talk, write):
    """输入开头就写一首，与命令行写的相同；空行什么也不做。"""
    assert talk("我在") == write("--prompt", "我在", "--seed", "1", "--max_tokens", "20")[0]
    assert talk("") == ""


def test_help_names_every_command(talk):
    """/help 说到每条命令，写到标准错误。"""
    assert talk("/help") == ""
    for command in [*talk.conversation.commands, "/quit", "Ctrl-C", "Ctrl-D"]:
        assert command in talk.err


def test_set_changes_the_next_song(talk, write):
    """/set 改一项，下一首就用它；/set 单独列出全部。"""
    talk("/set temperature 0")
    assert talk("我在") == write("--prompt", "我在", "--temperature", "0", "--max_tokens", "20")[0]
    talk("/set temperature 0.8")
    talk("/set max_tokens 5")
    talk("/set title 月亮")
    assert (talk.conversation.settings.temperature, talk.conversation.settings.max_tokens) == (0.8, 5)
    expected = write("--prompt", "我在", "--temperature", "0.8", "--title", "月亮", "--seed", "1", "--max_tokens", "5")[
        0
    ]
    assert talk("我在") == expected
    talk("/set title none")
    talk("/set seed none")
    assert talk.conversation.settings.title is None
    assert talk.conversation.settings.seed is None
    assert talk("/set") == ""
    for flag in inference.SONG_FLAGS:
        assert flag.name in talk.err
    assert "0.8" in talk.err


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("/set temperture 1", "temperature"),
        ("/set 温度 1", "/set"),
        ("/set top_p 1.5", "top_p"),
        ("/set temperature", "temperature"),
        ("/set temperature none", "temperature"),
        ("/set max_tokens 很多", "max_tokens"),
        ("/agian", "/again"),
        ("/qiut", "/quit"),
        ("/乱写", "/help"),
        ("/again", "还没有"),
        ("/more", "还没有"),
        ("/save 歌.txt", "还没有"),
        ("/save", "/save"),
        ("我\udce4", "编码"),
    ],
)
def test_mistakes_are_answered_with_a_hint(talk, line, named):
    """打错的命令、设置、值：一句话，指出最近的；设置不变。"""
    before = settings(max_tokens=20)
    message = talk.error(line)
    assert named in message
    assert "\n" not in message
    assert talk.conversation.settings == before


def test_again_writes_another_song_from_the_same_prompt(talk):
    """/again：同样的开头，另一首；种子固定时也换一首，且不与批里的其他首重复。"""
    first = talk("我在")
    again = talk("/again")
    third = talk("/again")
    assert again.startswith("我在")
    assert len({first, again, third}) == 3
    talk("/set num_samples 2")
    talk("/set seed 10")
    batches = [talk("我在").split("\n\n我在"), talk("/again").split("\n\n我在")]
    assert len({song.strip() for batch in batches for song in batch}) >= 4


def test_more_continues_the_same_song(talk, writer):
    """/more 接着同一首往下写：屏幕上的连起来就是整首；可以一直写到超过 max_seq_len。"""
    shown = talk("我在").removesuffix("\n")
    for _ in range(4):
        shown += talk("/more").removesuffix("\n")
    (song,) = writer.songs
    assert shown == song.text
    assert len(song.tokens) == len(writer.tokenizer.song("我在")) + 5 * 20


def test_more_loses_no_half_written_character(talk, writer, monkeypatch):
    """一个字的字节写到一半被 max_tokens 截断，/more 之后这个字完整出现。"""
    byte_ids = {piece[0]: i for i, piece in enumerate(writer.tokenizer.token_bytes) if len(piece) == 1 and i > 6}
    remaining = [byte_ids[byte] for byte in "龘龘".encode()]

    def fake(*_, **__):
        for _ in range(2):
            yield [(0, remaining.pop(0))]

    monkeypatch.setattr(generation, "generate", fake)
    talk.conversation.settings.max_tokens = 2
    shown = talk("我").removesuffix("\n")
    for _ in range(2):
        shown += talk("/more").removesuffix("\n")
    assert not remaining
    assert writer.songs[0].text == "我龘龘"
    assert shown == "我龘龘"


def test_more_after_an_ended_song_starts_a_new_line(talk, writer, monkeypatch):
    """自己收尾的歌，/more 另起一行接着写。"""
    favour_ending(writer, monkeypatch, 50.0)
    shown = talk("我在").removesuffix("\n")
    assert shown == "我在"
    assert writer.songs[0].ended
    assert "/more" not in talk.err
    monkeypatch.undo()
    shown += talk("/more").removesuffix("\n")
    assert shown == writer.songs[0].text
    assert shown.startswith("我在\n")
    assert len(shown) > 10
    assert "/more" in talk.err


def test_save_appends_exactly_what_was_shown(talk, tmp_path):
    """/save 添到文件末尾，一字不差，不覆盖已有的；文件名可以含空格。"""
    path = tmp_path / "我的 歌.txt"
    path.write_text("旧的\n\n", encoding="utf-8")
    first = talk("我在")
    first = first.removesuffix("\n") + talk("/more")
    talk(f"/save {path}")
    assert str(path) in talk.err
    talk("/set num_samples 2")
    second = talk("故乡")
    talk(f"/save {path}")
    assert path.read_bytes().decode() == f"旧的\n\n{first}\n{second}\n"


def test_save_to_an_impossible_place(talk, tmp_path):
    """写不进去：一句话，写明文件，对话继续。"""
    talk("我在")
    for path in (tmp_path / "none" / "歌.txt", tmp_path):
        message = talk.error(f"/save {path}")
        assert str(path) in message
        assert "\n" not in message


def converse(conversation: Conversation, monkeypatch, *events) -> None:
    """依次给对话这些输入行；异常类则在读取时抛出。"""
    waiting = list(events)

    def read(_):
        event = waiting.pop(0)
        if isinstance(event, str):
            return event
        raise event

    monkeypatch.setattr(inference, "_read_line", read)
    conversation.run()
    assert not waiting


@pytest.mark.parametrize("end", ["/quit", " /quit ", EOFError])
def test_leaving(talk, monkeypatch, end):
    """/quit 与 Ctrl-D 离开；空行上的 Ctrl-C 不离开。"""
    converse(talk.conversation, monkeypatch, KeyboardInterrupt, "", "/help", end)


def test_ctrl_c_stops_the_song_and_keeps_what_was_written(talk, writer, monkeypatch, capsys, tmp_path):
    """Ctrl-C 停下这一首、回到提示符；已写的可以 /more 接着写，/save 存下。"""
    stop_after(monkeypatch, 8)
    path = tmp_path / "歌.txt"
    converse(talk.conversation, monkeypatch, "我在", "/more", f"/save {path}", "/quit")
    out, err = capsys.readouterr()
    assert "已停下" in err
    (song,) = writer.songs
    assert len(song.tokens) == len(writer.tokenizer.song("我在")) + 8 + 20
    partial = writer.tokenizer.decode(song.tokens[len(writer.tokenizer.song("我在")) : -20])
    assert out.startswith(f"我在{partial}\n")
    assert path.read_text(encoding="utf-8") == song.text + "\n\n"


def test_mistakes_do_not_end_the_conversation(talk, monkeypatch, capsys):
    """出错后说一句，继续读下一行。"""
    converse(talk.conversation, monkeypatch, "/agian", "/set temperture 1", "我在", "/quit")
    out, err = capsys.readouterr()
    assert "/again" in err
    assert "temperature" in err
    assert out.startswith("我在")


def test_title_alone_does_not_start_a_conversation(write, monkeypatch):
    """给了歌名就直接写，不等输入。"""
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    out, _ = write("--title", "月亮", "--seed", "1")
    assert out.strip()


class Pseudoterminal:
    """在伪终端里运行 inference.py，像人一样打字、看屏幕。"""

    def __init__(self, *argv: str) -> None:
        import pty

        self.master, slave = pty.openpty()
        command = [sys.executable, str(REPOSITORY / "inference.py"), *argv]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env={**ENVIRONMENT, "TERM": "xterm"}, preexec_fn=self._own
        )
        os.close(slave)
        self.seen = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # 一次读到的可能是半个字

    @staticmethod
    def _own() -> None:
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # 使 Ctrl-C 变成信号

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str, press: str = "", seconds: float = 30) -> str:
        """等到屏幕上出现 text；返回到它为止新出现的文字。press：等待时每两秒按一次的键。"""
        deadline = time.monotonic() + seconds
        next_press = time.monotonic() + 0.3  # 提示符显示后，readline 还要一会儿才开始等按键
        while text not in self.seen:
            if press and time.monotonic() > next_press:
                self.type(press)
                next_press += 2
            ready = select.select([self.master], [], [], 0.2)[0]
            if ready:
                try:
                    self.seen += self.decoder.decode(os.read(self.master, 65536))
                except OSError:  # 进程已结束
                    break
            assert time.monotonic() < deadline, f"没有等到 {text!r}：{self.seen[-500:]!r}"
        before, found, self.seen = self.seen.partition(text)
        assert found, f"进程结束时没有 {text!r}：{before[-500:]!r}"
        return before + found

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows 没有伪终端")
def test_a_conversation_in_a_terminal(trained):
    """真正的终端：提示符、命令、Ctrl-C 停下一首、Ctrl-D 以 0 退出。"""
    flags = f"--checkpoint {trained} --device cpu --dtype fp32 --max_tokens 10000000".split()
    terminal = Pseudoterminal(*flags)
    try:
        terminal.expect("歌词> ")
        terminal.type("/agian\n")
        terminal.expect("是否指 /again")
        terminal.expect("歌词> ")
        terminal.type("我在风里\n")
        terminal.expect("种子")
        terminal.expect("我在风里")
        terminal.expect("已停下", press="\x03")
        terminal.expect("歌词> ")
        terminal.expect("歌词> ", press="\x03")  # 空行上的 Ctrl-C 不离开
        terminal.type("/set temperature 0.8\n")
        terminal.expect("temperature = 0.8")
        terminal.expect("歌词> ")
        time.sleep(0.3)
        terminal.type("\x04")
        assert terminal.process.wait(timeout=20) == 0
        assert "Traceback" not in terminal.seen
    finally:
        terminal.close()


# ---- 句式 ----


def sung_lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line]


def counts(text: str) -> list[int]:
    return [lyrics.sung_count(line) for line in sung_lines(text)]


def test_lines_and_line_chars(write):
    """行数与各行的字数：开头的半行也算在内；写满就停，标准输出只有歌词。"""
    out, err = write("--prompt", "我在", "--lines", "4", "--line_chars", "5,3-4", "--seed", "3")
    assert out.startswith("我在")
    assert out.endswith("\n")
    assert not out.endswith("\n\n")
    found = counts(out)
    assert (len(found), found[0], found[2]) == (4, 5, 5)
    assert set(found[1::2]) <= {3, 4}
    assert "种子 3" in err
    assert write("--prompt", "我在", "--lines", "4", "--line_chars", "5,3-4", "--seed", "3")[0] == out
    assert write("--prompt", "我在", "--lines", "4", "--line_chars", "5,3-4", "--seed", "4")[0] != out


@pytest.mark.parametrize("candidates", ["1", "4"])
def test_rhyme_and_scheme(write, candidates):
    """--rhyme 与 --rhyme_scheme：押在该押的行上。"""
    flags = ("--lines", "4", "--line_chars", "4", "--candidates", candidates, "--seed", "5")
    out, _ = write("--rhyme", "江阳", *flags)
    assert [lyrics.rhyme_class(line) for line in sung_lines(out)] == ["江阳"] * 4
    out, _ = write("--rhyme", "江阳", "--rhyme_scheme", "AABA", *flags)
    found = [lyrics.rhyme_class(line) for line in sung_lines(out)]
    assert [name == "江阳" for name in found] == [True, True, False, True]
    out, _ = write("--rhyme_scheme", "ABAB", *flags)
    found = [lyrics.rhyme_class(line) for line in sung_lines(out)]
    assert found[0] == found[2] != found[1] == found[3]


def test_acrostic_and_structure(write):
    """藏头各行的头一个字；分段之间空一行，重复的段落一字不差。"""
    out, _ = write("--acrostic", "我你他谁", "--line_chars", "3-5", "--seed", "2")
    assert [line[0] for line in sung_lines(out)] == list("我你他谁")
    out, _ = write("--structure", "主歌3 副歌2 主歌3 副歌", "--line_chars", "4", "--seed", "2")
    verse, chorus, second, repeated = out.removesuffix("\n").split("\n\n")
    assert [len(verse.split("\n")), len(chorus.split("\n"))] == [3, 2]
    assert (chorus, len(second.split("\n"))) == (repeated, 3)
    assert verse != second


def test_more_candidates_are_more_likely(writer):
    """每行多起几稿，模型自己更看好；不重复前面的行。"""

    def likelihood(song) -> float:
        logits = writer.model(torch.tensor([song.tokens[:-1]]))[0]
        found = torch.log_softmax(logits, -1).gather(-1, torch.tensor(song.tokens[1:])[:, None])
        return found[2:].mean().item()

    one, many = [
        [
            writer.write("我", settings(lines=3, line_chars="4", candidates=count), seed, lambda _: None)[0]
            for seed in range(5)
        ]
        for count in (1, 12)
    ]
    assert sum(map(likelihood, many)) > sum(map(likelihood, one))
    assert all(len(set(sung_lines(song.text))) == 3 for song in many)


@pytest.mark.parametrize("flags", [("--lines", "3"), ("--acrostic", "我你"), ("--structure", "主歌2")])
def test_a_form_without_a_prompt_writes_once(write, monkeypatch, flags):
    """给了行数、藏头或分段而没有开头：从头写一首就结束，不等输入。"""
    monkeypatch.setattr(sys, "stdin", None)
    out, _ = write(*flags, "--seed", "1")
    assert len(sung_lines(out)) == (3 if flags[0] == "--lines" else 2)


def test_songs_of_a_form_equal_the_songs_alone(write):
    """几首守句式的歌：第 i 首就是单独用 song_seed(seed, i) 写的那首。"""
    flags = ("--prompt", "我", "--lines", "3", "--line_chars", "4", "--candidates", "2")
    out, err = write(*flags, "--seed", "7", "--num_samples", "3")
    alone = [write(*flags, "--seed", str(song_seed(7, number)))[0] for number in range(3)]
    assert len(set(alone)) == 3
    assert out == "\n".join(alone)
    assert "第 3 首" in err


def test_a_form_does_not_take_more_than_max_tokens_without_lines(writer):
    """没有行数：写满 max_tokens 个词元的那一行写完为止。"""
    (song,) = writer.write("我", settings(line_chars="4", max_tokens=30), 1, lambda _: None)
    assert set(counts(song.text)) == {4}
    assert not song.ended
    assert 30 <= len(song.tokens) <= 60


def test_stats_of_a_form(write):
    """--stats：守句式时也是一行 JSON，数的是新写的词元；标准输出不变。"""
    flags = ("--structure", "主歌2 副歌2 副歌", "--line_chars", "4", "--seed", "1", "--candidates", "2")
    plain, _ = write(*flags)
    out, err = write(*flags, "--stats")
    assert out == plain
    (line,) = [line for line in err.splitlines() if line.startswith("{")]
    found = json.loads(line)
    assert 8 <= found["tokens"] <= 4 * 13
    assert found["tokens_per_s"] > 0
    assert 0 < found["first_token_s"] <= found["seconds"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--line_chars", "七"], "--line_chars"),
        (["--rhyme", "江洋"], "江阳"),
        (["--rhyme_scheme", "A-B"], "--rhyme_scheme"),
        (["--acrostic", "abc"], "--acrostic"),
        (["--acrostic", "龘"], "「龘」"),
        (["--structure", "副歌"], "--structure"),
        (["--structure", "主歌4", "--lines", "3"], "4 行"),
        (["--lines", "0"], "--lines 0"),
        (["--candidates", "0"], "--candidates 0"),
        (["--lines", "2", "--max_copy", "4", "--copy_index", "nowhere"], "evaluate.py"),
        (["--lines", "2", "--check_copy", "--copy_index", "nowhere"], "evaluate.py"),
        (["--lines", "2", "--line_chars", "3", "--prompt", "我在风里等"], "我在风里等"),
        (["--lines", "2", "--acrostic", "你他", "--prompt", "我在"], "「你」"),
    ],
)
def test_bad_forms(fail, trained, flags, named):
    """句式有误、缺索引、开头与句式不合：退出码 2，标准输出为空，标准错误里说明是哪一项。"""
    assert named in fail("--checkpoint", str(trained), "--device", "cpu", "--dtype", "fp32", *flags, lines=3)


# ---- 照抄 ----


@pytest.fixture(scope="session")
def copies(tokenizer, tmp_path_factory) -> Path:
    """一首歌的索引。"""
    folder = tmp_path_factory.mktemp("copies") / "copies"
    lyrics.CopyIndex.build(["\n".join(LINES)], ["《河岸》谁"], folder, tokenizer.fingerprint, 1)
    return folder


def copied(text: str) -> int:
    """与语料连续相同的最多几个字。"""
    corpus, sung = "".join(LINES), lyrics.normalise(text)
    spans = ((start, end) for start in range(len(sung)) for end in range(start + 1, len(sung) + 1))
    return max((end - start for start, end in spans if sung[start:end] in corpus), default=0)


def test_max_copy(write, copies):
    """--max_copy：写出的歌与语料连续相同不超过它；没有句式时也管。"""
    flags = ("--copy_index", str(copies), "--top_k", "12")
    longest = dict.fromkeys(("0", "1"), 0)
    for limit in longest:
        for seed in range(4):
            form = ("--lines", "4", "--line_chars", "6") if seed % 2 else ("--max_tokens", "30")
            out, _ = write("--prompt", "我", "--seed", str(seed), "--max_copy", limit, *flags, *form)
            longest[limit] = max(longest[limit], copied(out))
    assert longest["1"] == 1
    assert longest["0"] > 1


def test_check_copy_tells_every_line(write, copies):
    """--check_copy：每行一句，相同处与出处都对；歌词照旧；没有相同的也说。"""
    flags = ("--prompt", "我在风里唱歌", "--lines", "3", "--line_chars", "6", "--seed", "1")
    plain, _ = write(*flags)
    out, err = write(*flags, "--check_copy", "--copy_index", str(copies))
    assert out == plain
    told = [line for line in err.splitlines() if "行" in line and line.startswith("第 ")]
    assert len(told) == 3
    assert told[0] == "第 1 行 6 字相同：「我在风里唱歌」，《河岸》谁"
    for line, text in zip(told, sung_lines(out), strict=True):
        longest = copied(text)
        assert f" {longest} 字相同" in line if longest else "没有相同" in line
    _, err = write(*flags, "--check_copy", "--copy_index", str(copies), "--num_samples", "2")
    assert err.count("第 1 行") == 2


# ---- 对话里改歌 ----


@pytest.fixture
def form_talk(talk, monkeypatch):
    """写好一首四行五字的歌；form_talk.pick(选择) 定下回车前输入什么。"""
    talk("/set lines 4")
    talk("/set line_chars 5")
    monkeypatch.setattr(inference, "_read_line", lambda _: pytest.fail("不该问"))

    def pick(choice: str) -> None:
        monkeypatch.setattr(inference, "_read_line", lambda _: choice)

    talk.pick = pick
    return talk


def test_locked_lines_are_kept(form_talk):
    """/lock 1-2 之后 /again：这两行一字不差，其余重写，字数照旧；可以一次次重写；/lock none 放开。"""
    before = sung_lines(form_talk("我在"))
    assert form_talk("/lock 1-2") == ""
    assert "1、2" in form_talk.err
    seen = set()
    for _ in range(3):
        after = sung_lines(form_talk("/again"))
        assert after[:2] == before[:2]
        assert counts("\n".join(after)) == [5] * 4
        seen.add(tuple(after[2:]))
    assert len(seen) == 3
    assert tuple(before[2:]) not in seen
    form_talk("/lock 4")
    assert "1、2、4" in form_talk.err
    last = sung_lines(form_talk("/again"))
    assert (last[:2], last[3]) == (before[:2], after[3])
    form_talk("/lock none")
    assert "没有留住" in form_talk.err
    assert sung_lines(form_talk("/again"))[1] != before[1]


def test_a_locked_line_without_the_first_keeps_the_prompt(form_talk):
    """没有留住第一行时，第一行仍从开头写起。"""
    before = sung_lines(form_talk("我在"))
    form_talk("/lock 3")
    after = sung_lines(form_talk("/again"))
    assert after[0].startswith("我在")
    assert (len(after), after[2]) == (4, before[2])


def test_a_new_prompt_unlocks(form_talk):
    """输入新的开头：留住的行不再算。"""
    form_talk("我在")
    form_talk("/lock 1-4")
    first = form_talk("你")
    assert first.startswith("你")
    assert form_talk("/again") != first


def test_lock_again_after_a_stop(form_talk, writer, monkeypatch, capsys):
    """重写其余时按了 Ctrl-C：对话照常，留住的行还在。"""
    before = sung_lines(form_talk("我在"))
    form_talk("/lock 3-4")
    original = writer.compose

    def interrupted(song, *arguments):
        monkeypatch.setattr(writer, "compose", original)
        song.text += "一行\n"
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "compose", interrupted)
    converse(form_talk.conversation, monkeypatch, "/again", "/again", "/quit")
    out, err = capsys.readouterr()
    assert "已停下" in err
    assert sung_lines(out)[-2:] == before[2:]


def test_more_after_a_stopped_form_sees_what_was_written(form_talk, writer, monkeypatch, capsys):
    """守句式写到一半按 Ctrl-C，/more 的前文是已写的全部。"""
    original = lyrics.SongPlan.write

    def interrupted(self, *arguments):
        for number, text in enumerate(original(self, *arguments)):
            if number == 2:
                raise KeyboardInterrupt
            yield text

    monkeypatch.setattr(lyrics.SongPlan, "write", interrupted)
    converse(form_talk.conversation, monkeypatch, "我在", "/quit")
    (song,) = writer.songs
    assert len(sung_lines(song.text)) == 2
    assert writer.tokenizer.decode(song.tokens[2:]) == song.text


def test_rewrite_replaces_one_line(form_talk, writer, tmp_path):
    """/rewrite 2：列出几种，同样的字数与韵、与已有的行不重复；选一种只换那一行；/save 存的就是屏幕上的。"""
    form_talk("/set rhyme 江阳")
    before = form_talk("我在").split("\n")
    form_talk.pick("2")
    out = form_talk("/rewrite 2")
    options = [line.split(None, 1)[1] for line in form_talk.err.splitlines() if line.startswith("  ")]
    assert 2 <= len(options) <= inference.REWRITINGS
    assert before[1] in form_talk.err
    assert len(set(options)) == len(options)
    for option in options:
        assert lyrics.sung_count(option) == 5
        assert lyrics.rhyme_class(option) == "江阳"
        assert option not in before
    after = out.split("\n")
    assert after == [before[0], options[1], *before[2:]]
    assert writer.songs[0].text + "\n" == out
    assert writer.tokenizer.decode(writer.songs[0].tokens[2:]) == writer.songs[0].text
    path = tmp_path / "歌.txt"
    form_talk(f"/save {path}")
    assert path.read_text(encoding="utf-8") == out + "\n"


def test_rewritings_are_new(form_talk, writer):
    """能用的字没有几个时：给出的写法里没有原来的，也没有歌里别的行。"""
    for change in ("lines 2", "line_chars 1", "rhyme 江阳", "candidates 6"):
        form_talk(f"/set {change}")
    form_talk("唱")
    lines = sung_lines(writer.songs[0].text)
    for number in (1, 2):
        options = writer.rewritings(writer.songs[0].text, number, form_talk.conversation.settings, 3)
        assert options
        assert not set(options) & set(lines)


@pytest.mark.parametrize(("choice", "named"), [("9", "9"), ("0", "0"), ("甲", "甲"), ("-1", "-1"), ("1.5", "1.5")])
def test_a_wrong_choice_changes_nothing(form_talk, writer, choice, named):
    """选的不在其中：说一句，歌不变。"""
    form_talk("我在")
    text = writer.songs[0].text
    form_talk.pick(choice)
    assert named in form_talk.error("/rewrite 1")
    assert writer.songs[0].text == text


def test_no_choice_keeps_the_line(form_talk, writer):
    """回车：不换，也不再显示一遍。"""
    text = form_talk("我在").removesuffix("\n")
    form_talk.pick(" ")
    assert form_talk("/rewrite 1") == ""
    assert writer.songs[0].text == text


@pytest.mark.parametrize(
    "line", ["/rewrite", "/rewrite 5", "/rewrite 0", "/rewrite 1-2", "/rewrite 二", "/lock 5", "/lock 3-9", "/lock x"]
)
def test_wrong_line_numbers(form_talk, line):
    """行号有误：一句话，歌与留住的行不变。"""
    form_talk("我在")
    assert "行" in form_talk.error(line)
    assert form_talk.conversation.locked == set()


@pytest.mark.parametrize("line", ["/rewrite 1", "/lock 1"])
def test_nothing_to_change_yet(talk, line):
    """还没有写过：说一句。"""
    assert "还没有" in talk.error(line)


def test_rewriting_a_song_in_sections_keeps_the_blank_lines(form_talk):
    """分段的歌：行号不数空行，改一行之后空行还在。"""
    form_talk("/set lines none")
    form_talk("/set structure 主歌2 副歌2")
    before = form_talk("我在").split("\n")
    form_talk.pick("1")
    after = form_talk("/rewrite 3").split("\n")
    assert before[2] == after[2] == ""
    assert [index for index in range(len(before)) if before[index] != after[index]] == [3]


def test_rewriting_the_end_of_a_long_song(form_talk, writer):
    """歌比 max_seq_len 长：最后几行照样能改。"""
    form_talk("/set lines 12")
    form_talk("我在")
    assert len(writer.songs[0].tokens) > MAX_SEQ_LEN
    form_talk.pick("")
    for number in (6, 11, 12):
        form_talk(f"/rewrite {number}")
        assert f"第 {number} 行原是" in form_talk.err


def test_rhymes_lists_characters(talk):
    """/rhymes：同韵的常用字，在词表里；不是汉字的说一句。"""
    assert talk("/rhymes 光") == ""
    assert talk.err.startswith("江阳辙")
    assert set(talk.err.splitlines()[1].split()) == {"亮", "乡", "唱"}
    for argument in ("", " abc", " ，"):
        with pytest.raises(UserError, match="汉字"):
            talk.conversation.answer(f"/rhymes{argument}")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("/set rhyme 江洋", "江阳"),
        ("/set rhyme_scheme A1", "rhyme_scheme"),
        ("/set line_chars 0", "line_chars"),
        ("/set acrostic abc", "acrostic"),
        ("/set structure 副歌", "structure"),
        ("/set structure 主歌3", "3 行"),
        ("/set lines 0", "lines"),
        ("/set max_copy 4", "索引"),
    ],
)
def test_set_checks_the_form(form_talk, line, named):
    """/set 句式：有误或与别的设置矛盾时说一句，设置不变。"""
    before = dataclasses.replace(form_talk.conversation.settings)
    with pytest.raises((UserError, lyrics.LyricsError), match=named):
        form_talk.conversation.answer(line)
    assert form_talk.conversation.settings == before


def test_set_rhyme_is_used(form_talk):
    """/set rhyme 江阳：下一首就押它；none 不再押。"""
    form_talk("/set rhyme 江阳")
    assert form_talk.conversation.settings.rhyme == "江阳"
    assert {lyrics.rhyme_class(line) for line in sung_lines(form_talk("我在"))} == {"江阳"}
    form_talk("/set rhyme none")
    assert len({lyrics.rhyme_class(line) for line in sung_lines(form_talk("我在"))}) > 1


# ---- 要求在每种写法里都守着 ----


@pytest.mark.parametrize(
    ("flags", "rows"),
    [
        ({"line_chars": "5", "lines": 4}, 8),
        ({"line_chars": "4", "rhyme": "auto", "lines": 3}, 6),
        ({"structure": "主歌2 副歌2", "line_chars": "6"}, 8),
    ],
)
def test_more_keeps_every_demand(talk, flags, rows):
    """/more 照同样的句式再写一遍：行长、韵都守着。"""
    talk.conversation.settings = settings(**flags)
    talk("我")
    more = talk("/more")
    text = talk.conversation.writer.songs[0].text
    lines = lyrics.lines_of(text)
    assert len(lines) == rows
    assert more.strip()
    assert {lyrics.sung_count(line) for line in lines} == {int(flags["line_chars"])}
    if "rhyme" in flags:
        assert len({lyrics.rhyme_class(line) for line in lines}) == 1


def test_more_of_a_free_length_keeps_the_lines(talk):
    """没有定行数、只定了每行的字数：接着写的行也是那么长。"""
    talk.conversation.settings = settings(line_chars="5", max_tokens=30)
    talk("我")
    talk("/more")
    lines = lyrics.lines_of(talk.conversation.writer.songs[0].text)
    assert {lyrics.sung_count(line) for line in lines} == {5}


def test_more_finishes_a_stopped_song_first(writer):
    """写到一半停下的，先写满原来的行数。"""
    asked = settings(lines=6, line_chars="4")
    song = writer.start("", asked)[0]
    song.text = "我在风里\n你在故乡"
    writer.extend(song, asked, 1, lambda text: None)
    assert [lyrics.sung_count(line) for line in lyrics.lines_of(song.text)] == [4] * 6


@pytest.mark.parametrize("extra", [{"line_chars": "5"}, {"candidates": 2}])
def test_min_tokens_holds_line_by_line(trained, tokenizer, tmp_path, extra):
    """一行一行写时，总想收尾的模型，写满 min_tokens 之前也不收尾。"""
    contents = torch.load(trained, weights_only=True)
    contents["model"]["embedding.weight"][tokenizer.eos_id, 0] = 9.0
    checkpoint.save(tmp_path / "soon.pt", contents)
    writer = inference.load_writer(tmp_path / "soon.pt", "cpu", "fp32")
    lengths = {}
    for least in (0, 60):
        asked = settings(**extra, min_tokens=least, max_tokens=90)
        songs = [writer.write("我", asked, seed, lambda text: None)[0] for seed in range(4)]
        lengths[least] = [len(tokenizer.encode(song.text)) for song in songs]
        assert all(song.ended for song in songs)
    assert max(lengths[0]) < 30
    assert min(lengths[60]) >= 55


@pytest.mark.parametrize("flags", [["--max_tokens", "50"], ["--min_tokens", "5"]])
@pytest.mark.parametrize("form", [["--lines", "3"], ["--acrostic", "我在"], ["--structure", "主歌2"]])
def test_two_lengths_are_refused(trained, form, flags):
    """行数与词元数不能都定：一句话，不悄悄不管其中一个。"""
    with pytest.raises(LyricsError, match="不能同时用"):
        inference.main(["--checkpoint", str(trained), "--prompt", "我", *form, *flags])


def test_control_characters_are_never_written(writer):
    """控制字符的字节与控制词元一样，从不写出。"""
    refused = {writer.tokenizer.token_bytes[index] for index in writer.tokenizer.control_characters}
    assert refused == {bytes([code]) for code in (*range(32), 127) if code != 10}
    (song,) = writer.write("我", settings(temperature=50.0, top_p=1.0, max_tokens=400), 3, lambda text: None)
    assert not [letter for letter in song.text if letter != "\n" and ord(letter) < 32]


@pytest.mark.parametrize(
    "message",
    ["[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory", "MPS backend out of memory"],
)
def test_out_of_memory_keeps_the_song(talk, monkeypatch, message, trained):
    """内存不足：命令行一句话；对话里说一句，歌还在。"""
    talk("我在")
    before = talk.conversation.writer.songs[0].text

    def fails(*_, **__):
        raise RuntimeError(message)

    monkeypatch.setattr(generation, "generate", fails)
    lines = iter(["/more"])
    monkeypatch.setattr(inference, "_read_line", lambda prompt: next(lines))
    with pytest.raises(StopIteration):
        talk.conversation.run()
    assert talk.conversation.writer.songs[0].text == before
    with pytest.raises(UserError, match="内存"):
        inference.main(["--checkpoint", str(trained), "--prompt", "我", "--device", "cpu"])


@pytest.mark.parametrize("key", [EOFError, KeyboardInterrupt])
def test_leaving_the_second_question(talk, monkeypatch, capsys, key):
    """在 /rewrite 的提问处按 Ctrl-D 或 Ctrl-C：回到对话，歌没有动。"""
    talk("我在风里\\n")
    before = talk.conversation.writer.songs[0].text
    answers = iter(["/rewrite 1", key, EOFError])

    def read(prompt):
        answer = next(answers)
        if isinstance(answer, type):
            raise answer
        return answer

    monkeypatch.setattr(inference, "_read_line", read)
    talk.conversation.run()
    assert talk.conversation.writer.songs[0].text == before


@pytest.mark.parametrize(
    ("flag", "value"), [("temperature", "1e39"), ("repetition_penalty", "1e-38"), ("repetition_penalty", "1e30")]
)
def test_absurd_numbers_are_refused(fail, flag, value):
    assert flag in fail("--prompt", "我", f"--{flag}", value)

"""写歌的命令行：输出、管道、中断、错误。"""

import io
import json
import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_writer import ENVIRONMENT, MAX_SEQ_LEN, script, settings, stop_after
from tiny import REPOSITORY

import config
import generation
import inference
from generation import song_seed
from terminal import UserError
from training.device import DeviceError
from writing import writer as writer_module

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
    worth = writer_module.worth_recording

    def watched(device, wanted, tokens, songs):
        chosen.append(wanted)
        return worth(device, wanted, tokens, songs)

    monkeypatch.setattr(writer_module, "worth_recording", watched)
    for choice in ("auto", "false"):
        flags_given = ("--prompt", "我", "--seed", "5", "--cuda_graph", choice, "--decode", "torch")
        assert write(*flags_given)[0].startswith("我")
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


# ---- 管道与中断 ----


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


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--rhyme", "江洋"], "江阳"),
        (["--acrostic", "龘"], "「龘」"),
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


def test_all_bad_flags_are_listed_at_once(fail):
    """一次列出全部问题。"""
    err = fail("--prompt", "我", "--top_p", "2", "--max_tokens", "x", "--sed", "1", lines=3)
    assert "--top_p 2" in err
    assert "--max_tokens x" in err
    assert "--seed" in err


def test_an_error_of_a_real_process(tmp_path):
    """真正的进程：退出码 2，标准错误里只有这一两行，标准输出为空。"""
    path = tmp_path / "bad.pt"
    path.write_bytes(pickle.dumps({"model": [1, 2, 3]}))
    done = script("--prompt", "我", "--checkpoint", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    check_message(done.stderr)


def test_title_alone_does_not_start_a_conversation(write, monkeypatch):
    """给了歌名就直接写，不等输入。"""
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    out, _ = write("--title", "月亮", "--seed", "1")
    assert out.strip()


@pytest.mark.parametrize(
    ("flag", "value"), [("temperature", "1e39"), ("repetition_penalty", "1e-38"), ("repetition_penalty", "1e30")]
)
def test_absurd_numbers_are_refused(fail, flag, value):
    assert flag in fail("--prompt", "我", f"--{flag}", value)


def test_a_pipe_without_a_prompt_is_told(trained, monkeypatch, capsys):
    """标准输入里一个开头也没有（`< /dev/null`、笔记本里）：说一句怎样给。"""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n  \n")))
    assert inference.main(["--checkpoint", str(trained), "--device", "cpu", "--dtype", "fp32"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "请用 --prompt" in err

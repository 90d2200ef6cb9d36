"""导出：transformers 与 llama.cpp 载入后，词元、logits 与写出的歌都和这里的相同。"""

import importlib.util
import json
import re

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import TINY
from transformers import AutoModelForCausalLM, AutoTokenizer

import export
import generation
import train
from interchange.gguf_file import gguf_tensors
from terminal import UserError
from training import checkpoint
from training.checkpoint import CheckpointError

CONTROL = re.compile("<s>|</s>|<unk>|<title>|<singer>|<lyric>|<0x[0-9A-F]{2}>|\u2581")


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    places = {"lyrics_dir": corpus, "checkpoint_dir": folder, "cache_dir": folder, "bpe_model_prefix": folder / "bpe"}
    arguments = [part for name, place in places.items() for part in (f"--{name}", str(place))]
    assert train.main([*TINY, *arguments, "--train_iters", "30", "--eval_interval", "30", "--log_interval", "30"]) == 0
    return folder / "best.pt"


@pytest.fixture(scope="module")
def ours(trained):
    contents = checkpoint.load(trained)
    model, tokenizer = checkpoint.restore(contents, trained)
    return model.eval().requires_grad_(False), tokenizer


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("hf") / "lyrics"
    assert export.main(["--checkpoint", str(trained), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def theirs(folder):
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def greedy(model, tokenizer, prompt: list[int], count: int) -> list[int]:
    sampling = generation.Sampling(max_tokens=count, temperature=0)
    steps = generation.generate(model, prompt, sampling, tokenizer.eos_id, tokenizer.never_written)
    return [token for step in steps for _, token in step]


texts = st.text(
    st.sampled_from("今夜我在风里等你山高水远灯下雨落 \n\t，。a1é😀𠮷龘\u200d<>/s▂"), max_size=40
) | st.text(max_size=40)


@settings(max_examples=400)
@given(text=texts)
def test_token_ids_are_equal_for_every_string(ours, theirs, text):
    """换行、连着的空格、表情、生僻字：词元相同，也还原得回来（控制词元的拼法与 U+2581 除外）。"""
    text = CONTROL.sub("", text.encode("utf-8", "ignore").decode())
    ids = theirs[1](text, add_special_tokens=False)["input_ids"]
    assert ids == ours[1].encode(text)
    assert theirs[1].decode(ids) == text


def test_the_stated_differences(ours, theirs):
    """用户写的 <lyric> 在那里是控制词元；这里只是文字。"""
    assert theirs[1]("<lyric>", add_special_tokens=False)["input_ids"] == [ours[1].lyric_id]
    assert ours[1].lyric_id not in ours[1].encode("<lyric>")


def test_a_prompt_becomes_the_beginning_of_a_song(ours, theirs):
    assert theirs[1]("今夜我")["input_ids"] == ours[1].song("今夜我")
    named = theirs[1]("<s><title>远方<singer>她<lyric>今夜", add_special_tokens=False)["input_ids"]
    assert named == ours[1].song("今夜", "远方", "她")


def test_logits_are_equal(ours, theirs):
    tokens = torch.randint(ours[1].vocab_size, (2, 32), generator=torch.Generator().manual_seed(0))
    assert (theirs[0](tokens).logits - ours[0](tokens)).abs().max() < 1e-4


def test_a_greedy_song_is_equal(ours, theirs):
    model, tokenizer = theirs
    prompt = ours[1].song("今夜我")
    length = ours[0].config.max_seq_len - len(prompt)
    found = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=length)[0, len(prompt) :].tolist()
    expected = greedy(*ours, prompt, length)
    assert found[: len(expected)] == expected
    assert set(found[len(expected) :]) <= {ours[1].eos_id}
    assert tokenizer.decode(found[: len(expected)]) == ours[1].decode(expected)


def test_the_folder(folder, trained):
    """精度、权限、旧版的名称；模型卡里有检查点知道的数；没有留下别的东西。"""
    expected = "README.md config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json"
    assert sorted(path.name for path in folder.iterdir()) == sorted(expected.split())
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # safetensors 自己只让本人读
    assert json.loads((folder / "config.json").read_text())["rotary_pct"] == 1.0
    card, contents = (folder / "README.md").read_text(encoding="utf-8"), checkpoint.load(trained)
    for known in (f"{contents['val_bpc']:.3f}", f"{contents['data']['characters']:,} 字", "2 层 × 32 维", "许可"):
        assert known in card
    generated = json.loads((folder / "generation_config.json").read_text())
    assert generated["top_p"] == 0.9
    assert 0 in generated["suppress_tokens"]


@pytest.mark.parametrize(("dtype", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_lower_precision(trained, tmp_path, dtype, kind):
    export.main(["--checkpoint", str(trained), "--out", str(tmp_path / "hf"), "--dtype", dtype])
    assert {tensor.dtype for tensor in load_file(tmp_path / "hf" / "model.safetensors").values()} == {kind}


@pytest.mark.parametrize(("dtype", "most"), [("fp32", 0), ("fp16", 1e-3), ("q8_0", 1e-2)])
def test_gguf_holds_the_weights_and_tokens(trained, ours, tmp_path, dtype, most):
    out = tmp_path / "lyrics.gguf"
    export.main(["--checkpoint", str(trained), "--out", str(out), "--format", "gguf", "--dtype", dtype])
    reader = gguf.GGUFReader(out)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "gptneox"
    assert fields["gptneox.use_parallel_residual"] is False
    assert fields["gptneox.rope.dimension_count"] == ours[0].config.head_dim
    assert fields["tokenizer.ggml.add_space_prefix"] is False
    assert len(fields["tokenizer.ggml.tokens"]) == ours[1].vocab_size
    assert fields["tokenizer.ggml.tokens"][ours[1].newline_id] == "\n"
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 2 + 2 + 12 * ours[0].config.n_layers
    for name, expected in gguf_tensors(ours[0]).items():
        found = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        assert np.abs(found - expected.numpy()).max() <= most * np.abs(expected.numpy()).max()


@pytest.mark.llama
def test_llama_cpp_writes_the_same_song(trained, ours, tmp_path):
    """llama-cpp-python（python -m pytest -m llama）：词元相同，fp32 与 fp16 的贪心歌相同。"""
    llama_cpp = pytest.importorskip("llama_cpp")
    model, tokenizer = ours
    prompt = tokenizer.song("今夜我")
    count = model.config.max_seq_len - len(prompt)
    for dtype in ("fp32", "fp16"):
        out = tmp_path / f"{dtype}.gguf"
        export.main(["--checkpoint", str(trained), "--out", str(out), "--format", "gguf", "--dtype", dtype])
        llama = llama_cpp.Llama(str(out), n_ctx=model.config.max_seq_len, verbose=False, logits_all=True)
        for text in ("今夜我在 风里\n\n  等你😀龘", "abc  123\n", "山高水远\n灯下雨落"):
            assert llama.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)
        song = list(prompt)
        for _ in range(count):
            llama.reset()
            llama.eval(song)
            logits = np.array(llama.scores[len(song) - 1])
            logits[tokenizer.never_written] = -np.inf
            song.append(int(logits.argmax()))
        expected = greedy(model, tokenizer, prompt, count)
        assert song[len(prompt) :][: len(expected)] == expected


def test_what_is_there_is_not_overwritten(trained, tmp_path):
    """不空的文件夹、已有的文件不动；--force 换掉以前导出的，却不碰别的文件夹。"""
    out = tmp_path / "hf"
    out.mkdir()
    (out / "论文.txt").write_text("别删")
    for argument in ([], ["--force"], ["--force", "false"], ["--force=false"]):
        with pytest.raises(UserError, match="hf"):
            export.main(["--checkpoint", str(trained), "--out", str(out), *argument])
        assert [path.name for path in out.iterdir()] == ["论文.txt"]
    (out / "config.json").write_text("{}")
    with pytest.raises(UserError, match="没有动它"):
        export.main(["--checkpoint", str(trained), "--out", str(out), "--force"])
    (out / "论文.txt").unlink()
    assert export.main(["--checkpoint", str(trained), "--out", str(out), "--force"]) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(export.EXPORTED)
    before = trained.read_bytes()
    with pytest.raises(UserError, match="没有动它"):  # 把检查点自己盖掉
        export.main(["--checkpoint", str(trained), "--out", str(trained), "--format", "gguf", "--force"])
    assert trained.read_bytes() == before
    link = tmp_path / "link"
    link.symlink_to(out)
    assert export.main(["--checkpoint", str(trained), "--out", str(link), "--force", "true"]) == 0
    assert link.is_symlink()
    file = tmp_path / "a.gguf"
    file.write_bytes(b"x")
    with pytest.raises(UserError, match="--force"):
        export.main(["--checkpoint", str(trained), "--out", str(file), "--format", "gguf"])
    assert file.read_bytes() == b"x"


def test_an_interrupted_export_leaves_nothing(trained, tmp_path, monkeypatch):
    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "model_card", dies)
    with pytest.raises(KeyboardInterrupt):
        export.main(["--checkpoint", str(trained), "--out", str(tmp_path / "hf")])
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_one_line(trained, tmp_path, monkeypatch):
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="--out"):
        export.main(["--checkpoint", str(trained)])
    with pytest.raises(UserError, match="q8_0"):
        export.main(["--checkpoint", str(trained), *out, "--dtype", "q8_0"])
    damaged = tmp_path / "bad.pt"
    damaged.write_bytes(trained.read_bytes()[:-1000])
    for path in (damaged, tmp_path / "none.pt"):
        with pytest.raises(CheckpointError, match=path.name):
            export.main(["--checkpoint", str(path), *out])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"requirements-export\.txt"):
        export.main(["--checkpoint", str(trained), *out])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("dtype", "size"), [("fp16", 2), ("bf16", 2), ("fp32", 4)])
def test_a_checkpoint_to_give_away(trained, ours, tmp_path, dtype, size):
    """pt：半精度的检查点，本仓库照常读；不带路径；贪心写的歌与原来的相同；不盖掉别的文件。"""
    out = tmp_path / "small.pt"
    options = ["--checkpoint", str(trained), "--format", "pt", "--dtype", dtype]
    assert export.main([*options, "--out", str(out)]) == 0
    contents = checkpoint.load(out)
    assert not [value for value in contents["config"].values() if "/" in str(value)]
    assert contents["val_bpc"] == checkpoint.load(trained)["val_bpc"]
    weights = contents["model"].values()
    assert {weight.element_size() for weight in weights} == {size}
    model, tokenizer = checkpoint.restore(contents, out)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    prompt = tokenizer.song("今夜我")
    assert dtype == "bf16" or greedy(model.eval(), tokenizer, prompt, 20) == greedy(*ours, prompt, 20)
    assert export.main([*options, "--out", str(out), "--force"]) == 0
    other = tmp_path / "论文.pt"
    other.write_text("别删")
    with pytest.raises(UserError, match="没有动它"):
        export.main([*options, "--out", str(other), "--force"])
    assert other.read_text() == "别删"
    with pytest.raises(UserError, match="q8_0"):
        export.main([*options[:-1], "q8_0", "--out", str(tmp_path / "x.pt")])

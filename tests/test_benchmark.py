"""测速：表与 JSON 齐全，比值是中位数之比，两边交替；不测时间本身。"""

import contextlib
import importlib.util
import json

import pytest
import torch

import benchmark
import config
import generation
from interchange.engines import by_ctranslate2, by_llama
from model import ModelConfig
from terminal import UserError
from writing.decode import CannotFuse

TINY = {"N_LAYERS": 1, "N_HEADS": 2, "N_EMBED": 32, "BPE_VOCAB_SIZE": 320, "MAX_SEQ_LEN": 64}


def no_library(say):
    raise CannotFuse("没有编译器")


@pytest.fixture
def tiny(monkeypatch):
    for name, value in TINY.items():
        monkeypatch.setattr(config, name, value)
    monkeypatch.setattr(benchmark, "memory_bandwidth", lambda _: 1e9)
    monkeypatch.setattr(benchmark, "load_library", no_library)
    monkeypatch.setattr(benchmark, "other_engines", lambda *_: iter(()))  # 不论这里装没装


def run(*argv: str) -> int:
    options = ["--device", "cpu", "--only", "writing", "--songs", "3", "--max_tokens", "12", "--rounds", "2"]
    return benchmark.main([*options, *argv])


@pytest.mark.usefixtures("tiny")
def test_the_table_holds_every_item_at_every_dtype(capsys, tmp_path):
    """一条命令：每种精度的解码、读开头、成批；JSON 与表是同一些数。"""
    assert run("--json", str(tmp_path / "b.json")) == 0
    out = capsys.readouterr().out
    contents = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    found = [(row["name"], row["dtype"]) for row in contents["results"]]
    each = [
        "写 12 个词元",
        "读 64 个词元的开头",
        "一批写 3 首",
        "守句式写 8 行 × 7 字",
        "守句式写 8 行 × 7 字，每行 8 稿",
    ]
    assert set(found) == {(n, d) for n in each for d in ("fp32", "bf16", "int8")}
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")][2:]
    assert [(line[0], line[1]) for line in lines] == found
    peers = {(row["name"], row["dtype"]): row.get("peer_dtype") for row in contents["results"]}
    assert peers["写 12 个词元", "int8"] == "fp32"
    assert peers["写 12 个词元", "bf16"] == "bf16"
    for line, row in zip(lines, contents["results"], strict=True):
        assert len(row["ours"]) == 2
        assert line[2] == benchmark._figure(sum(row["ours"]) / 2)
        if row["peer"]:
            assert line[5] == f"{sum(row['ours']) / sum(row['peer']):.2f}"
    assert contents["machine"] in out


@pytest.mark.usefixtures("tiny")
def test_without_transformers_our_side_is_still_measured(capsys, monkeypatch, tmp_path):
    """没装 transformers：另一边空着，其余照测；--quick 只测一轮。"""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert run("--quick", "--dtype", "bf16", "--json", str(tmp_path / "b.json")) == 0
    assert "transformers" not in capsys.readouterr().out
    rows = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))["results"]
    assert {row["dtype"] for row in rows} == {"bf16"}
    for row in rows:
        assert len(row["ours"]) == 1
        assert bool(row["peer"]) == (row["peer_name"] != "transformers")


def test_both_sides_take_turns_after_a_warm_up():
    """两边轮流，各预热一次，预热不计。"""
    order = []
    row = benchmark.alternate("名", 5, 3, lambda: order.append("我"), lambda: order.append("他"), "谁")
    assert order == ["我", "他"] * 4
    assert len(row["ours"]) == len(row["peer"]) == 3


@pytest.mark.slow
def test_training_measures_both_shapes(capsys, monkeypatch):
    """训练的各行：两种大小各一步；两边在各自的进程里都真的走了。"""
    monkeypatch.setattr(benchmark, "SHAPES", {"小": (1, 2, 32, 2, 16), "更小": (1, 1, 16, 1, 8)})
    assert benchmark.main(["--device", "cpu", "--only", "training", "--quick"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert [line.split("|")[1].strip() for line in lines] == ["训练一步，小", "训练一步，更小"]
    for line in lines:
        assert float(line.split("|")[6]) > 0


@pytest.mark.usefixtures("tiny")
def test_stopped_halfway_leaves_what_was_measured(capsys, monkeypatch, tmp_path):
    """测完一行就打印一行；中途 Ctrl-C，表与 JSON 里是已经测过的。"""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "batch", stop)
    with pytest.raises(KeyboardInterrupt):
        run("--dtype", "fp32", "--json", str(tmp_path / "b.json"))
    names = [row["name"] for row in json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))["results"]]
    assert names == ["写 12 个词元", "读 64 个词元的开头"]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert [line.split("|")[1].strip() for line in lines] == names


def test_a_numbered_card_is_the_one_measured(monkeypatch):
    """--device cuda:1：这个进程与训练的两个进程都用 1 号卡，报出 MFU 与显存；int8 只在 CPU 上有。"""
    card, used, built = torch.device("cuda", 1), [], []

    @contextlib.contextmanager
    def own_process(prepare, build, shape, device, compiled, optimizer):
        built.append(device)
        yield lambda: 3.5

    monkeypatch.setattr(benchmark, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    with pytest.raises(UserError, match="int8 只用于 CPU"):
        run("--device", "cuda:1", "--dtype", "int8")
    assert used == [card]
    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "own_process", own_process)
        patch.setattr(benchmark, "native_half", lambda _: None)
        patch.setattr(benchmark, "peak_flops", lambda _: 1e12)
        row = benchmark.training("cpu 预设", card, 1, False, "muon")
    assert row["name"] == "训练一步，cpu 预设，muon"
    assert benchmark.table_line(row | {"mfu": 0.325}).endswith("| MFU 32.5%，3.5 GiB |")
    assert built == ["cuda:1", "cuda:1"]
    monkeypatch.setattr(benchmark, "use_device", lambda name: used.append(name) or torch.device("cpu"))
    benchmark._steps(lambda model, *given: (None, model, None), (1, 1, 16, 1, 8), "cuda:1", False, "muon")
    assert used[-1] == "cuda:1"


@pytest.mark.usefixtures("tiny")
def test_more_tokens_than_the_context_is_refused():
    """超过上下文：说出最多能测多少。"""
    with pytest.raises(UserError, match="56"):
        run("--max_tokens", "57")


def test_llama_cpp_without_gguf_is_left_out(monkeypatch):
    """要两个包的，缺一个就不比，不半途出错。"""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "llama_cpp" or None)
    model = benchmark.random_model(ModelConfig(320, 64, 1, 2, 32))
    assert list(benchmark.other_engines(model, "fp32", 4, 1)) == []


@pytest.mark.llama
@pytest.mark.parametrize(
    ("package", "build", "kind"),
    [
        ("ctranslate2", by_ctranslate2, "float32"),
        ("llama_cpp", by_llama, "fp32"),
        ("llama_cpp", by_llama, "fp16"),
    ],
)
def test_other_engines_write_the_same(tmp_path, package, build, kind):
    """同样的权重，贪心写出同样的词元：比的是同一件事。"""
    pytest.importorskip(package)
    model = benchmark.random_model(ModelConfig(320, 64, 2, 2, 64))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=0.3 if name == "embedding.weight" else 0.15)
    sampling = generation.Sampling(max_tokens=30, temperature=0)
    expected = [step[0][1] for step in generation.generate(model, benchmark.PROMPT, sampling, stop_id=-1)]
    assert len(set(expected)) > 5
    assert build(model, kind, tmp_path, 40)(benchmark.PROMPT, 30) == expected

"""配置：常量 < 预设 < 命令行，以及每种写错的值怎么说。"""

import ast
import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import config
import flags
from flags import resolve
from terminal import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
PROMISED = {
    "BATCH_SIZE": 64,
    "MAX_SEQ_LEN": 1024,
    "LEARNING_RATE": 3e-4,
    "TRAIN_ITERS": 2000,
    "N_EMBED": 768,
    "N_HEADS": 12,
    "N_LAYERS": 12,
    "USE_SWANLAB": True,
    "BPE_VOCAB_SIZE": 10000,
    "BPE_MODEL_PREFIX": "chinese_lyrics_bpe",
    "DROPOUT": 0.1,
    "MIN_LR": 3e-5,
    "WARMUP_ITERS": 200,
    "WEIGHT_DECAY": 0.1,
    "GRAD_CLIP": 1.0,
    "GENERATE_PROMPT": "今夜我",
}
ALSO_NAMED = (
    "LYRICS_DIR MICRO_BATCH_SIZE VAL_FRACTION EVAL_INTERVAL EVAL_ITERS SAVE_INTERVAL LOG_INTERVAL USE_AMP "
    "USE_COMPILE CHECKPOINT_DIR RESUME SEED SWANLAB_PROJECT PRESET"
).split()


def gpu(*argv: str):
    return resolve(argv, best_preset="gpu")


def message(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        gpu(*argv)
    return str(caught.value)


def load_edited(folder: Path, *edits: tuple[str, str]):
    """一份手改过的 config.py，放在 folder 里载入。"""
    source = (REPOSITORY / "config.py").read_text(encoding="utf-8")
    for old, new in edits:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    path = folder / "config.py"
    path.write_text(source, encoding="utf-8")
    specification = importlib.util.spec_from_file_location("edited_config", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


# ---- 默认值与次序 ----


def test_promised_defaults():
    """README 表里承诺的默认值，作为常量和 gpu 预设的结果都成立。"""
    resolved = gpu()
    for name, value in PROMISED.items():
        assert getattr(config, name) == value, name
        if name != "BPE_MODEL_PREFIX":
            assert getattr(resolved, name.lower()) == value, name
    for name in ALSO_NAMED:
        assert hasattr(config, name), name
        assert hasattr(resolved, name.lower()), name


def test_run_config_holds_every_constant():
    """写出来的 RunConfig 与 config.py 的常量一一对应，类型与规则相同。"""
    fields = {field.name: field.type for field in dataclasses.fields(flags.RunConfig)}
    del fields["typed"]  # 命令行上写明了哪些
    assert list(fields) == [name.lower() for name in flags.RULES]
    for name, rule in flags.RULES.items():
        assert fields[name.lower()] == (rule.kind | None if rule.optional else rule.kind), name


def test_every_constant_is_a_flag():
    """写成字面值的常量个个有类型规则，因而个个是参数；新添的不会漏掉。"""
    tree = ast.parse((REPOSITORY / "config.py").read_text(encoding="utf-8"))
    targets = [
        (node.targets[0] if isinstance(node, ast.Assign) else node.target, node.value)
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
    ]
    literals = [target for target, value in targets if isinstance(value, ast.Constant)]
    constants = [target.id for target in literals if isinstance(target, ast.Name)]
    assert constants == list(flags.RULES)
    assert [flag.name for flag in flags.training_flags()] == [name.lower() for name in constants]


def test_preset_replaces_constants_and_flags_replace_preset():
    """cpu 预设换掉常量，命令行再换掉预设；预设没提到的仍是常量。"""
    resolved = gpu("--preset", "cpu", "--n_layers", "3")
    assert resolved.n_layers == 3
    assert resolved.n_embed == config.PRESETS["cpu"]["N_EMBED"] != config.N_EMBED
    assert resolved.weight_decay == config.WEIGHT_DECAY


def test_flag_wins_although_it_equals_the_constant():
    """命令行写的值即使等于常量，也要压过预设。"""
    assert config.PRESETS["cpu"]["N_EMBED"] != config.N_EMBED
    assert gpu("--preset", "cpu", "--n_embed", str(config.N_EMBED)).n_embed == config.N_EMBED


@pytest.mark.parametrize("chosen", ["gpu", "mac", "cpu"])
def test_preset_auto(chosen):
    """auto 是这台机器宜用的；结果里写的是选定的预设。"""
    resolved = resolve([], best_preset=chosen)
    assert resolved.preset == chosen
    expected = config.PRESETS[chosen].get("N_LAYERS", config.N_LAYERS)
    assert resolved.n_layers == expected
    assert resolve(["--preset", "gpu"], best_preset="cpu").n_layers == config.N_LAYERS


def test_replaced_and_changed_are_told_apart():
    """开头显示的两份清单：预设换掉的常量，命令行改动的值。"""
    resolved = gpu("--preset", "cpu", "--seed", "5", "--weight_decay", str(config.WEIGHT_DECAY))
    assert flags.replaced_by_preset(resolved)["N_LAYERS"] == config.PRESETS["cpu"]["N_LAYERS"]
    assert flags.changed_from_constants(resolved) == {"seed": 5}
    assert flags.changed_from_constants(gpu()) == {}
    assert flags.replaced_by_preset(gpu()) == {}


def test_frozen():
    """决定好的配置不能在途中被改。"""
    resolved = gpu()
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolved.batch_size = 1


def test_plain_dict_is_storable():
    """存进检查点的只有普通类型，weights_only 才读得回来。"""
    plain = flags.as_plain_dict(gpu())
    assert {type(value) for value in plain.values()} <= {str, int, float, bool, type(None)}
    assert plain["lyrics_dir"] == str(REPOSITORY / "ChineseLyrics")
    assert set(plain) == {name.lower() for name in flags.RULES}


# ---- 命令行的写法 ----


def test_values_are_converted():
    """整数、小数、布尔、文字与 none 各得其类型；= 与空格两种写法都行。"""
    resolved = gpu(
        *("--batch_size", "16", "--learning_rate=1e-3", "--train_iters", "1e3"),
        *("--use_amp", "false", "--micro_batch_size", "4", "--generate_prompt", "如果 爱"),
    )
    assert (resolved.batch_size, resolved.learning_rate, resolved.train_iters) == (16, 1e-3, 1000)
    assert type(resolved.batch_size) is type(resolved.train_iters) is int
    assert resolved.use_amp is False
    assert (resolved.micro_batch_size, resolved.generate_prompt) == (4, "如果 爱")
    assert gpu("--micro_batch_size", "none").micro_batch_size is None


@pytest.mark.parametrize(("word", "value"), [("true", True), ("false", False)])
def test_booleans_take_true_or_false(word, value):
    """布尔值写 true 或 false。"""
    assert gpu("--resume", word).resume is value


@pytest.mark.parametrize("word", ["yes", "no", "1", "0", "on", "t", "", "none"])
def test_other_booleans_are_refused(word):
    """别的写法不猜，指明两种写法。"""
    text = message("--use_amp", word)
    assert "--use_amp" in text
    assert "true 或 false" in text


def test_boolean_without_value_is_refused():
    """`--resume` 后面没有值时不当作 true。"""
    assert "--resume 后面缺少值" in message("--resume")
    assert "--resume 后面缺少值" in message("--resume", "--batch_size", "4")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("--batchsize", "--batch_size"),
        ("--batch-size", "--batch_size"),
        ("--n_layer", "--n_layers"),
        ("--learning_rat", "--learning_rate"),
        ("--useswanlab", "--use_swanlab"),
    ],
)
def test_unknown_flag_suggests_the_nearest(wrong, right):
    """写错的参数名提示最接近的一个，并且只说这一件事。"""
    text = message(wrong, "4")
    assert wrong in text
    assert f"是否指 {right}？" in text
    assert "\n" not in text


@pytest.mark.parametrize("abbreviated", ["--batch", "--batch_siz", "--lr", "--learning", "--b", "-b"])
def test_abbreviations_are_refused(abbreviated):
    """缩写一律不认，哪怕没有歧义。"""
    assert f"没有参数 {abbreviated}" in message(abbreviated, "4")


def test_stray_words_are_refused():
    """多出来的文字（例如含空格的开头没加引号）不会被悄悄丢掉。"""
    assert "多余的文字：爱" in message("--generate_prompt", "如果", "爱")


def test_all_problems_in_one_error():
    """一次列出全部问题，不让人改一个跑一次。"""
    text = message("--batch_size", "0", "--dropout", "2", "--use_amp", "maybe", "--wrong", "1", "--seed")
    for expected in ("--batch_size 0", "--dropout 2", "--use_amp maybe", "--wrong", "--seed"):
        assert expected in text
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("batch_size", "0"),
        ("batch_size", "1.5"),
        ("batch_size", "many"),
        ("batch_size", "1e999"),
        ("micro_batch_size", "0"),
        ("val_fraction", "0"),
        ("val_fraction", "0.9"),
        ("val_fraction", "nan"),
        ("dropout", "1"),
        ("learning_rate", "0"),
        ("learning_rate", "inf"),
        ("min_lr", "-1"),
        ("warmup_iters", "-1"),
        ("seed", "-1"),
        ("bpe_vocab_size", "100000"),
        ("train_iters", "0"),
        ("preset", "tpu"),
        ("generate_prompt", " "),
        ("lyrics_dir", ""),
        ("checkpoint_dir", ""),
        ("checkpoint_dir", " "),
    ],
)
def test_values_out_of_range(flag, value):
    """每个范围外的值都被拒绝，并点出参数名。空的路径（未设的 shell 变量）不能变成当前文件夹。"""
    text = message(f"--{flag}", value)
    assert f"--{flag}" in text
    assert "应为" in text


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--n_embed", "100", "--n_heads", "12"), ("N_EMBED=100", "N_HEADS=12")),
        (("--n_embed", "36", "--n_heads", "12"), ("N_EMBED", "偶数")),
        (("--min_lr", "1"), ("MIN_LR=1", "LEARNING_RATE")),
        (("--n_embed", "100", "--min_lr", "1"), ("N_EMBED=100", "MIN_LR=1")),
    ],
)
def test_cross_checks(argv, named):
    """单看都对、合起来不对的值：头数整除、每头偶数维、最低学习率；有几处说几处。"""
    text = message(*argv)
    for word in named:
        assert word in text


# ---- 手改的常量 ----


def test_hand_edited_constants(monkeypatch):
    """手改常量直接生效：小数处写整数也行，可省的写 None 或数都行。"""
    monkeypatch.setattr(config, "USE_SWANLAB", False)
    monkeypatch.setattr(config, "DROPOUT", 0)
    monkeypatch.setattr(config, "GRAD_CLIP", 1)
    monkeypatch.setattr(config, "TRAIN_ITERS", 1e3)
    monkeypatch.setattr(config, "MICRO_BATCH_SIZE", 8)
    resolved = gpu()
    assert resolved.use_swanlab is False
    assert resolved.dropout == 0.0
    assert type(resolved.dropout) is type(resolved.grad_clip) is float
    assert resolved.train_iters == 1000
    assert type(resolved.train_iters) is int
    assert resolved.micro_batch_size == 8
    monkeypatch.setattr(config, "MICRO_BATCH_SIZE", None)
    assert gpu().micro_batch_size is None
    assert gpu("--dropout", "0.3").dropout == 0.3
    assert flags.changed_from_constants(gpu()) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [("BATCH_SIZE", None), ("USE_AMP", 1), ("N_LAYERS", True), ("DROPOUT", "much"), ("SEED", 1.5), ("GRAD_CLIP", [])],
)
def test_wrong_constants_name_the_file(monkeypatch, name, value):
    """手改错了的常量，说明在 config.py 的哪一个。"""
    monkeypatch.setattr(config, name, value)
    text = message()
    assert f"config.py 的 {name} = {value!r}" in text


def test_wrong_constants_are_listed_together(monkeypatch):
    """几个常量都错时一次列出。"""
    monkeypatch.setattr(config, "BATCH_SIZE", 0)
    monkeypatch.setattr(config, "VAL_FRACTION", 2)
    assert len(message().splitlines()) == 2


def test_edited_and_annotated_file(tmp_path, monkeypatch):
    """真的改文件：加了类型注解、换了值与说明，值、--help 与路径都跟着走。"""
    edited = load_edited(
        tmp_path,
        ("USE_SWANLAB = True  #", "USE_SWANLAB: bool = False  #"),
        ('LYRICS_DIR = "ChineseLyrics"  # 歌词文件夹', 'LYRICS_DIR: str = "我的#歌"  # 自己的歌词'),
    )
    monkeypatch.setattr(flags, "constants", edited)
    resolved = flags.resolve([], "gpu")
    assert resolved.use_swanlab is False
    assert resolved.lyrics_dir == REPOSITORY / "我的#歌"
    described = {flag.name: flag for flag in flags.training_flags()}
    assert described["use_swanlab"].help == "用 SwanLab 记录；未登录时自动转为本地离线记录"
    assert described["lyrics_dir"].help.startswith("自己的歌词")
    assert described["lyrics_dir"].default == "我的#歌"


# ---- 路径 ----


def test_relative_paths(tmp_path, monkeypatch):
    """config.py 里的相对路径从仓库算起，命令行里的从当前文件夹算起。"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "CACHE_DIR", "somewhere/cache")
    resolved = gpu("--lyrics_dir", "songs")
    assert resolved.lyrics_dir == tmp_path / "songs"
    assert resolved.cache_dir == REPOSITORY / "somewhere" / "cache"
    assert resolved.checkpoint_dir == REPOSITORY / "checkpoints"
    assert resolved.bpe_model_prefix == REPOSITORY / "chinese_lyrics_bpe"


def test_absolute_paths_stay(tmp_path, monkeypatch):
    """绝对路径在两处都原样保留。"""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    resolved = gpu("--checkpoint_dir", str(tmp_path / "runs"))
    assert (resolved.cache_dir, resolved.checkpoint_dir) == (tmp_path / "cache", tmp_path / "runs")


# ---- 帮助与退出码 ----


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_constant(capsys, flag):
    """--help 列出每个常量、它的说明和默认值，退出码 0。"""
    with pytest.raises(SystemExit) as caught:
        gpu(flag)
    assert caught.value.code == 0
    shown = re.sub(r"\s", "", capsys.readouterr().out)
    for known in flags.training_flags():
        described = re.sub(r"\s", "", known.help)
        assert described, known.name
        assert re.search(rf"--{known.name}(整数|数|路径|文字|true\|false){re.escape(described)}", shown), known.name
    assert "（默认64）" in shown
    assert "（默认true）" in shown


def test_wrong_flags_end_the_script(tmp_path):
    """真正的进程，从别的文件夹启动：全部问题列在一次报错里，几行中文，退出码 2，没有回溯。"""
    command = [sys.executable, str(REPOSITORY / "train.py"), "--batch_sise", "4", "--dropout", "2", "--resume", "yes"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) <= 3, done.stderr
    for named in ("--batch_size", "--dropout 2", "--resume yes"):
        assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert all(re.search("[\u4e00-\u9fff]", line) for line in lines)


def test_device_cpu_takes_the_cpu_preset():
    """有显卡而指定 --device cpu 时，auto 也取 cpu 预设。"""
    assert flags.resolve(["--device", "cpu"], "gpu").preset == "cpu"
    assert flags.resolve([], "gpu").preset == "gpu"


def test_values_edited_in_a_preset_are_checked(monkeypatch):
    """PRESETS 里改错的值和常量一样列出来。"""
    monkeypatch.setitem(config.PRESETS, "cpu", {"BATCH_SIZE": 0, "N_LAYER": 2, "LEARNING_RATE": "1e-3"})
    with pytest.raises(UserError) as error:
        flags.resolve(["--preset", "cpu"], "cpu")
    assert "BATCH_SIZE = 0" in str(error.value)
    assert "N_LAYER" in str(error.value)
    assert "LEARNING_RATE" not in str(error.value)


def test_a_switch_may_stand_alone():
    """默认为 false 的开关单写就是 true，后面跟着别的参数也一样。"""
    given = flags.parse_flags(flags.training_flags(), ["--allow_new_corpus", "--batch_size", "4"], "train.py", "")
    assert given == {"allow_new_corpus": True, "batch_size": 4}

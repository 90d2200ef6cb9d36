"""结构：一层只用它下面的，脚本互不 import，没有什么 import 脚本；文件读得完，函数不过一屏。"""

import ast
import graphlib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = {"train", "inference", "evaluate", "benchmark", "export", "webui"}
# 一个房间（根目录的文件，或一个文件夹）可以 import 哪些房间；脚本可以 import 一切，除了别的脚本。
ROOMS = {
    "config": set(),
    "terminal": set(),
    "flags": {"config", "terminal"},
    "tokenizer": set(),
    "model": set(),
    "optimizer": set(),
    "corpus": {"tokenizer"},
    "lyrics": set(),
    "generation": {"model"},
    "interchange": {"model", "tokenizer"},
    "measures": {"corpus", "lyrics", "model"},
    "training": {"corpus", "flags", "generation", "model", "optimizer", "terminal", "tokenizer"},
    "serving": {"flags", "generation", "lyrics", "terminal", "writing"},
    "writing": {"flags", "generation", "lyrics", "model", "tokenizer"},
}
EXCEPTIONS = {"writing.loading": {"training"}, "writing.copying": {"corpus", "training"}}  # 读检查点、语料的只有这两处
WITHOUT_TORCH = ("config", "terminal", "flags", "tokenizer", "corpus", "lyrics")
LONGEST_FILE = {"model": 300, "train": 350, "inference": 400}
LONGEST_FUNCTION = 60
SOURCES = sorted(
    path for path in [*REPOSITORY.glob("*.py"), *REPOSITORY.glob("[a-z]*/*.py")] if "tests" not in path.parts
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


OURS = {module_name(path) for path in SOURCES}
every_source = pytest.mark.parametrize("path", SOURCES, ids=module_name)


def room_of(module: str) -> str:
    return module.split(".")[0]


def imported_modules(path: Path) -> set[str]:
    """文件里（含函数内部）import 的模块，全名；`from 文件夹 import 文件` 也算文件。"""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} 第 {node.lineno} 行：不用相对 import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & OURS) or {node.module}
    return found


def test_every_file_has_a_room():
    """新添的文件必须先列进上面的表，否则它的 import 方向没人看管。"""
    assert {room_of(module) for module in OURS} == SCRIPTS | set(ROOMS)


@every_source
def test_imports_run_downwards(path):
    """每个房间只用它下面的；脚本互不 import，没有什么 import 脚本。"""
    module = module_name(path)
    used = {room_of(other) for other in imported_modules(path) & OURS} - {room_of(module)}
    allowed = ROOMS.get(room_of(module), set(ROOMS) - {"config"})
    assert used <= allowed | EXCEPTIONS.get(module, set())


def test_no_circles():
    """文件之间也没有圈。"""
    graphlib.TopologicalSorter({module_name(path): imported_modules(path) & OURS for path in SOURCES}).prepare()


@every_source
def test_plain_rooms_do_not_import_torch(path):
    """配置、分词、语料与歌词不碰设备，单独使用时也不必等 torch 载入。"""
    if room_of(module_name(path)) in WITHOUT_TORCH:
        assert "torch" not in {room_of(module) for module in imported_modules(path)}


@every_source
def test_no_unfinished_marks(path):
    """提交的代码里没有留待以后的记号。"""
    text = path.read_text(encoding="utf-8")
    assert [mark for mark in ("TODO", "FIXME") if mark in text] == []


@every_source
def test_files_can_be_read(path):
    """一个文件不超过 450 行，最常读的更短。"""
    limit = LONGEST_FILE.get(module_name(path), 450)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


@every_source
def test_functions_fit_a_screen(path):
    """函数（含文档字符串）不超过 60 行。"""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, functions)]
    lengths = {f"{node.name}（第 {node.lineno} 行）": node.end_lineno - node.lineno + 1 for node in nodes}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}

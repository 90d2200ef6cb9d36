"""写歌的网页：每条路由、写错的栏、OpenAI 的写法；门口与队在 test_webui_doors.py。"""

import contextlib
import json
import re
import subprocess
import threading
import time

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import Served, song_of
from small_writer import LINES, copied, sung_lines
from tiny import REPOSITORY

import inference
import webui
from lyrics.copies import CopyIndex
from lyrics.form import LyricsError
from lyrics.sound import RHYME_CLASSES, rhyme_class, sung_count
from serving.guard import HEADERS
from serving.indexing import Indexing
from serving.songs import Tail
from terminal import UserError
from writing import loading


@pytest.fixture(scope="module")
def served(trained):
    with Served(loading.load_writer(trained, "cpu", "fp32").writer) as served:
        yield served


# ---- 写 ----


def test_page_and_its_files(served):
    """页面与它的每个文件都在，带着规矩；别的文件拿不到。"""
    for name, kind in (("/", "text/html"), *((f"/{path.name}", "") for path in webui.PAGE.glob("*.[jc]s*"))):
        answer = served.client.get(name)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind or ("text/javascript", "text/css"))
        assert {header: answer.headers[header] for header in HEADERS} == HEADERS
    for name in ("/index.html", "/../config.py", "/%2e%2e/config.py", "/page/app.js", "/..%2fconfig.py"):
        assert served.client.get(name).status_code == 404


@pytest.mark.parametrize(
    "changes", [{}, {"lines": 4, "line_chars": "5", "rhyme": "auto"}, {"candidates": 3}, {"temperature": 0.0}]
)
def test_writes_what_inference_writes(served, written, changes):
    """同样的开头、设置与种子，与 inference.py 写的一字不差，一段一段送来。"""
    values = {**changes, "seed": 7} | ({} if "lines" in changes else {"max_tokens": 40})
    events = served.events("write", {"prompt": "我在", "settings": values})
    assert song_of(events) == written("我在", **values)
    assert events[0] == {"place": 0}
    assert events[1]["seed"] == 7
    assert sum("text" in event for event in events) > 3
    assert events[-1]["ended"] is ("lines" in changes)


def test_several_songs_are_what_they_are_alone(served):
    """几首依次写，每一首与用它自己的种子单独写的相同。"""
    values = {"lines": 3, "num_samples": 3}
    events = served.events("write", {"prompt": "", "settings": {**values, "seed": 5}})
    seeds = [event["seed"] for event in events if "seed" in event]
    assert len(set(seeds)) == 3
    for number, seed in enumerate(seeds):
        alone = served.events("write", {"settings": {**values, "num_samples": 1, "seed": seed}})
        assert song_of(events, number) == song_of(alone)


def test_more_goes_on(served):
    """接着写：原来的不动，韵与字数照守；选定的读音定下韵。"""
    text, values = "我在风里唱歌", {"lines": 2, "line_chars": "6", "rhyme": "auto", "seed": 1}
    events = served.events("more", {"text": text, "settings": values})
    lines = sung_lines(text + song_of(events))
    assert lines[0] == text
    assert [sung_count(line) for line in lines] == [6, 6]
    assert rhyme_class(lines[1]) == "梭坡"
    chosen = served.events("more", {"text": text, "settings": values, "readings": {"1": "江阳"}})
    assert rhyme_class(sung_lines(text + song_of(chosen))[1]) == "江阳"


def test_rest_keeps_locked_lines(served):
    """重写其余：留住的一字不动，分节照旧；选定的读音定下韵。"""
    text = "我在风里\n他在河岸\n\n谁还"
    body = {"text": text, "locked": [3], "settings": {"rhyme": "auto", "seed": 2}, "readings": {"3": "江阳"}}
    found = song_of(served.events("rest", body))
    assert found.split("\n")[2:] == ["", "谁还"]
    assert found.split("\n")[0] != "我在风里"
    assert [rhyme_class(line) for line in found.split("\n")[:2]] == ["江阳", "江阳"]


def test_rewrite_offers_lines_of_the_same_shape(served):
    body = {"text": "我在风里唱歌\n他到故乡等你", "line": 1, "settings": {"seed": 3}}
    options = next(event["options"] for event in served.events("rewrite", body) if "options" in event)
    assert 1 <= len(options) <= 5
    assert {(sung_count(option), rhyme_class(option)) for option in options} == {(6, "梭坡")}
    chosen = served.events("rewrite", {**body, "readings": {"1": "江阳"}})
    options = next(event["options"] for event in chosen if "options" in event)
    assert {rhyme_class(option) for option in options} <= {"江阳"}
    again = "我在风里\n他在河岸\n我在风里"  # 样例里一字不差的行，一起换
    (found,) = (
        event
        for event in served.events("rewrite", {"text": again, "line": 3, "settings": {"like": again, "seed": 3}})
        if "options" in event
    )
    assert found["same"] == [3, 1]


def test_lines_and_rhymes(served):
    answer = served.post("/api/lines", {"lines": ["我在风里唱歌", "我们走了", "love", ""]}).json()["lines"]
    assert [line["sung"] for line in answer] == [6, 4, 1, 0]
    assert [line["rhyme"] for line in answer] == ["梭坡", "梭坡", None, None]
    assert [line["readings"] for line in answer] == [[], ["梭坡", "遥条"], [], []]
    page = served.post("/api/rhymes", {"line": "月亮"}).json()
    assert page["name"] == "江阳辙"
    assert set(page["characters"]) == {"亮", "乡", "唱"}
    assert set(page) == {"name", "characters", "words", "near", "double"}
    assert "你" in served.post("/api/rhymes", {"line": "雨"}).json()["near"]
    assert served.post("/api/rhymes", {"line": "走了", "reading": "遥条"}).json()["name"] == "遥条辙"


def test_copied_span(served, copies):
    """有索引时，每行最长的相同处与出处；max_copy 守住。"""
    served.writer.copies = CopyIndex.load(copies, served.writer.tokenizer.fingerprint)
    try:
        line = f"啊！{LINES[0][:3]}，{LINES[0][3:]}。"
        found = served.post("/api/lines", {"lines": [line]}).json()["lines"][0]["copied"]
        assert found == {"start": 2, "end": len(line) - 1, "label": "《河岸》谁"}  # 中间的标点也在内
        events = served.events("write", {"settings": {"lines": 3, "max_copy": 2, "seed": 1}})
        assert copied(song_of(events)) <= 2
    finally:
        served.writer.copies = None


def test_a_missing_index_is_built_meanwhile(trained, copies):
    """没有索引：在另一个线程里建，照样写歌；要查照抄的说还在建，建好就查得了。"""
    writer, go, said = loading.load_writer(trained, "cpu", "fp32").writer, threading.Event(), []

    def build():
        go.wait(30)
        return CopyIndex.load(copies, writer.tokenizer.fingerprint)

    indexing = Indexing(writer, build, said.append)
    indexing.start()
    with Served(writer, indexing=indexing) as served:
        assert served.client.get("/api/about").json()["index"]["building"]
        asked = {"settings": {"lines": 2, "max_copy": 3, "seed": 1}}
        assert "还在建" in served.post("/api/write", asked).json()["errors"]["max_copy"]
        assert song_of(served.events("write", {"settings": {"lines": 1}}))
        go.set()
        until = time.monotonic() + 10
        while indexing.building and time.monotonic() < until:
            time.sleep(0.005)
        assert served.client.get("/api/about").json()["index"] == {"ready": True, "building": False, "reason": ""}
        assert copied(song_of(served.events("write", asked))) <= 3
    assert said == []


@pytest.mark.parametrize(
    ("error", "told"), [(LyricsError("语料不在\n请先建"), "语料不在；请先建"), (MemoryError(), "MemoryError")]
)
def test_an_index_that_cannot_be_built(trained, error, told, capsys):
    """建不成：终端上一行说为什么，要查照抄的那一栏也说；歌照样写。"""
    writer, said = loading.load_writer(trained, "cpu", "fp32").writer, []

    def build():
        raise error

    indexing = Indexing(writer, build, said.append)
    indexing._run()
    assert (len(said), said[0].count("\n"), told in said[0]) == (1, 0, True)
    with Served(writer, indexing=indexing) as served:
        assert told in served.client.get("/api/about").json()["index"]["reason"]
        assert told in served.post("/api/write", {"settings": {"max_copy": 3}}).json()["errors"]["max_copy"]
        assert song_of(served.events("write", {"settings": {"lines": 1}}))


def test_check_tells_the_wanted_counts(served):
    answer = served.post("/api/check", {"settings": {"lines": 3, "line_chars": "7,5-6"}}).json()
    assert answer == {"errors": {}, "lines": 3, "wanted": [[7, 7], [5, 6]]}
    assert served.post("/api/check", {"settings": {"cipai": "如梦令"}}).json()["lines"] == 6
    assert served.post("/api/check", {"settings": {"like": "我在风里\n他在河岸"}}).json()["wanted"] == [[4, 4]] * 2


def test_about_and_health(served):
    about = served.client.get("/api/about").json()
    assert (about["model"], about["classes"]) == ("best", list(RHYME_CLASSES))
    assert about["index"] == {"ready": False, "building": False, "reason": ""}
    assert set(about["flags"]) == {flag.name for flag in inference.SONG_FLAGS}
    assert served.client.get("/healthz").json() == {"status": "ok", "waiting": 0}


# ---- 写错的 ----


@pytest.mark.parametrize(
    ("name", "value"),
    [("lines", "abc"), ("temperature", -1), ("line_chars", "七"), ("rhyme", "江洋"), ("acrostic", "a"), ("seed", 1.5),
     ("rhyme_scheme", "A1"), ("structure", "主歌"), ("cipai", "无此词牌"), ("tones", "上去"), ("keywords", "a"),
     ("breaks", "x"), ("acrostic", "龘"), ("top_p", 0), ("max_copy", 3)],
)  # fmt: skip
def test_errors_are_told_beside_their_field(served, trained, name, value):
    """写错的一栏，用 inference.py 的话；什么也没有写。"""
    answer = served.post("/api/write", {"prompt": "我", "settings": {name: value}})
    assert answer.status_code == 400
    assert set(answer.json()["errors"]) == {name}
    typed = ["--checkpoint", str(trained), "--device", "cpu", "--prompt", "我", f"--{name}={value}"]
    with pytest.raises((UserError, ValueError)) as caught:
        inference.main(typed)
    told = answer.json()["errors"][name].split("；")[0]
    assert str(caught.value).startswith(told)
    assert served.post("/api/check", {"settings": {name: value}}).json()["errors"] == answer.json()["errors"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("write", {"settings": {"lines": 4, "max_tokens": 9}}, "max_tokens"),
        ("write", {"settings": {"num_samples": 9}}, "num_samples"),
        ("write", {"settings": {"candidates": 33}}, "candidates"),
        ("write", {"settings": {"max_tokens": 100_001}}, "max_tokens"),
        ("write", {"settings": {"like": "", "nope": 1}}, "nope"),
        ("write", {"settings": {"checkpoint": "/etc/passwd"}}, "checkpoint"),
        ("write", {"settings": []}, "settings"),
        ("write", {"prompt": 3}, "prompt"),
        ("write", {"prompt": "我" * 20_001}, "prompt"),
        ("write", {"prompt": "我\n你\n他", "settings": {"lines": 2}}, "prompt"),
        ("write", {"page": 1}, "page"),
        ("more", {"text": "我", "ended": "yes"}, "ended"),
        ("rest", {"text": ""}, "text"),
        ("rest", {"text": "我", "locked": [2]}, "locked"),
        ("rest", {"text": "我", "readings": {"1": "无"}}, "readings"),
        ("rewrite", {"text": "我", "line": 0}, "line"),
        ("rewrite", {"text": "我"}, "line"),
        ("rhymes", {"line": "abc"}, "line"),
        ("rhymes", {"line": "月", "reading": []}, "reading"),
        ("lines", {"lines": "月"}, "lines"),
        ("lines", {"lines": ["月"] * 2001}, "lines"),
    ],
)
def test_limits(served, path, body, field):
    answer = served.post(f"/api/{path}", body)
    assert (answer.status_code, set(answer.json()["errors"])) == (400, {field})


def test_an_example_is_text_and_never_a_path(served, tmp_path):
    """--like 在网页上是样例的文字：写成路径也不去读那个文件。"""
    secret = tmp_path / "secret.txt"
    secret.write_text("我在风里唱歌\n他到故乡等你", encoding="utf-8")
    answer = served.post("/api/check", {"settings": {"like": str(secret)}}).json()
    assert answer["lines"] == 1


def test_impossible_line_is_told(served):
    """写到一半写不出来的，说一句，之前的还在。"""
    values = {"acrostic": "我歌", "line_chars": "1", "rhyme": "江阳", "seed": 1}
    events = served.events("write", {"settings": values})
    assert "写不出来" in events[-1]["error"]


# ---- OpenAI 的写法 ----


def test_openai_client(served, written):
    """openai 这个包照常用：写、几首、边写边送、stop、我们自己的字段、出错。"""
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    with contextlib.closing(client):
        assert [model.id for model in client.models.list()] == ["best"]
        found = client.completions.create(model="best", prompt="我在", max_tokens=30, seed=3, temperature=0.9)
        assert "我在" + found.choices[0].text == written("我在", max_tokens=30, seed=3, temperature=0.9)
        assert found.choices[0].finish_reason == "length"
        assert found.usage.completion_tokens == 30
        several = client.completions.create(model="best", prompt="我", n=3, seed=3, max_tokens=9, echo=True)
        assert [choice.index for choice in several.choices] == [0, 1, 2]
        assert all(choice.text.startswith("我") for choice in several.choices)
        stream = client.completions.create(
            model="best", prompt="我在", max_tokens=30, seed=3, temperature=0.9, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = list(stream)
        assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == found.choices[0].text
        assert chunks[-1].usage == found.usage
        line = client.completions.create(model="best", prompt="我在", max_tokens=30, seed=3, temperature=0.9, stop="\n")
        assert line.choices[0].text == found.choices[0].text.split("\n")[0]
        assert line.choices[0].finish_reason == "stop"
        form = {"lines": 2, "line_chars": "5", "rhyme": "江阳"}
        song = client.completions.create(model="best", prompt="", seed=1, extra_body=form).choices[0]
        assert [(sung_count(line), rhyme_class(line)) for line in sung_lines(song.text)] == [(5, "江阳")] * 2
        for wrong in (
            {"suffix": "他"},
            {"extra_body": {"rhyme": "江洋"}},
            {"max_tokens": -1},
            {"logprobs": 2},
            {"n": 0},
        ):
            with pytest.raises(openai.BadRequestError) as caught:
                client.completions.create(model="best", prompt="我", **wrong)
            assert caught.value.param in {"suffix", "rhyme", "max_tokens", "logprobs", "n"}
        assert client.models.retrieve("best").id == "best"
        with pytest.raises(openai.NotFoundError, match="没有这个模型"):
            client.models.retrieve("worst")


@given(st.text("ab\n", max_size=20), st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3), st.data())
def test_stop_is_never_shown(text, stops, data):
    """怎样切开都一样：给出的正是最先写全的 stop 之前的。"""
    tail, said, rest = Tail(stops), "", text
    while rest and not tail.found:
        size = data.draw(st.integers(1, len(rest)))
        said, rest = said + tail.push(rest[:size]), rest[size:]
    ends = {end: [len(stop) for stop in stops if text[:end].endswith(stop)] for end in range(len(text) + 1)}
    first = next((end - max(sizes) for end, sizes in ends.items() if sizes), len(text))
    assert said + ("" if tail.found else tail.held) == text[:first]


def test_examples_in_the_documentation(served, capsys):
    """docs/webui.md 的 curl 与 Python 两个例子照写就能用，写出同一首。"""
    page = (REPOSITORY / "docs" / "webui.md").read_text(encoding="utf-8").replace("http://127.0.0.1:7860", served.url)
    curl = next(block for block in re.findall(r"```bash\n(.*?)```", page, re.S) if block.startswith("curl"))
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, check=True, encoding="utf-8").stdout
    song = json.loads(answer)["choices"][0]["text"]
    assert len(sung_lines("今夜我" + song)) == 4
    exec(re.search(r"```python\n(.*?)```", page, re.S)[1], {})
    assert capsys.readouterr().out == f"今夜我{song}\n"


def test_flags_in_the_documentation():
    """docs/webui.md 的表列出全部参数。"""
    page = (REPOSITORY / "docs" / "webui.md").read_text(encoding="utf-8")
    table = page.split("| 参数 | 默认")[1]
    assert set(re.findall(r"`--([a-z_]+)`", table)) == {flag.name for flag in webui.FLAGS}

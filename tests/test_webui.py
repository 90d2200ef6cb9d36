"""写歌的网页：每条路由、每种不许、排队、走了的客户。"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from served import Served, song_of
from small_writer import ENVIRONMENT, LINES, copied, sung_lines
from small_writer import settings as song_settings
from tiny import REPOSITORY

import inference
import webui
from lyrics.copies import CopyIndex
from lyrics.sound import RHYME_CLASSES, rhyme_class, sung_count
from serving.guard import HEADERS
from serving.songs import Tail
from serving.turns import run
from terminal import UserError
from writing import loading

LONG = {"prompt": "我", "settings": {"max_tokens": 100_000}}  # 不停下就要写几十秒


@pytest.fixture(scope="module")
def served(trained):
    with Served(loading.load_writer(trained, "cpu", "fp32").writer) as served:
        yield served


@pytest.fixture
def written(writer, capsys):
    """written(开头, 设置…)：inference.py 写的，不带末尾的换行。"""

    def call(prompt: str, **changes) -> str:
        capsys.readouterr()
        inference.Printer(writer).write(prompt, song_settings(**changes))
        return capsys.readouterr().out.removesuffix("\n")

    return call


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
    """接着写：原来的不动，韵与字数照守。"""
    text, values = "我在风里唱歌", {"lines": 2, "line_chars": "6", "rhyme": "auto", "seed": 1}
    events = served.events("more", {"text": text, "settings": values})
    lines = sung_lines(text + song_of(events))
    assert lines[0] == text
    assert [sung_count(line) for line in lines] == [6, 6]
    assert rhyme_class(lines[1]) == "梭坡"


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
        line = served.post("/api/lines", {"lines": [f"啊{LINES[0]}"]}).json()["lines"][0]
        assert line["copied"] == {"same": LINES[0], "label": "《河岸》谁"}
        events = served.events("write", {"settings": {"lines": 3, "max_copy": 2, "seed": 1}})
        assert copied(song_of(events)) <= 2
    finally:
        served.writer.copies = None


def test_check_tells_the_wanted_counts(served):
    answer = served.post("/api/check", {"settings": {"lines": 3, "line_chars": "7,5-6"}}).json()
    assert answer == {"errors": {}, "lines": 3, "wanted": [[7, 7], [5, 6]]}
    assert served.post("/api/check", {"settings": {"cipai": "如梦令"}}).json()["lines"] == 6
    assert served.post("/api/check", {"settings": {"like": "我在风里\n他在河岸"}}).json()["wanted"] == [[4, 4]] * 2


def test_about_and_health(served):
    about = served.client.get("/api/about").json()
    assert (about["model"], about["has_index"], about["classes"]) == ("best", False, list(RHYME_CLASSES))
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


# ---- 门口 ----


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "192.168.1.7"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"host": "localhost"}, 200),
        ({}, 200),
    ],
)
def test_foreign_hosts_and_origins(served, headers, status):
    headers = {"content-type": "application/json", **headers}
    answer = served.client.post("/api/lines", content=b'{"lines":[]}', headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers
    own = {"origin": served.url, "content-type": "application/json"}
    assert served.client.post("/api/lines", content=b'{"lines":[]}', headers=own).status_code == 200


def test_token_and_allowed_hosts(writer):
    """绑在外面：要口令；IP 地址的主机名可以，别的要 --allowed_hosts。"""
    with Served(writer, token="open-s3", hosts=["room.example"], public=True) as served:
        get = served.client.get
        assert get("/").status_code == 200
        assert get("/healthz").status_code == 200
        for given in ({}, {"authorization": "Bearer s3"}, {"authorization": "Basic s3"}):
            answer = get("/v1/models", headers=given)
            assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")
        right = {b"authorization": b"Bearer open-s3"}
        for host, status in ((b"192.168.1.7:7860", 200), (b"room.example", 200), (b"evil.example", 403)):
            assert get("/v1/models", headers={**right, b"host": host}).status_code == status
        from_room = {**right, b"host": b"room.example", b"origin": b"https://room.example"}
        assert get("/v1/models", headers=from_room).status_code == 200


def test_body_over_the_limit(served):
    big = {"prompt": "a" * 300_000}
    assert served.post("/api/write", big).status_code == 413
    parts = (b'{"prompt": "', *(b"a" * 50_000 for _ in range(6)), b'"}')
    answer = served.client.post("/api/write", content=iter(parts), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert served.client.get("/healthz").status_code == 200


def test_an_error_inside_has_an_id(served, monkeypatch, capsys):
    """里面出的错：500、一个编号，回溯写在终端；服务还在。"""
    monkeypatch.setattr(served.writer, "write", lambda *_: 1 / 0)
    answer = served.post("/v1/completions", {"prompt": "我"})
    assert answer.status_code == 500
    number = re.search("编号 ([0-9a-f]{8})", answer.json()["error"]["message"])[1]
    err = capsys.readouterr().err
    assert number in err
    assert "ZeroDivisionError" in err
    assert "编号" in served.events("write", {})[-1]["error"]
    monkeypatch.setattr(type(served.writer), "require", lambda *_: 1 / 0)
    assert "编号" in served.post("/api/write", {}).json()["error"]["message"]
    monkeypatch.undo()
    assert song_of(served.events("write", {"settings": {"lines": 1}}))


# ---- 排队 ----


def test_a_client_that_goes_away_frees_its_turn(served):
    """写到一半走了的，一秒之内轮到下一位；等着的走了，后面的往前。"""
    first, _ = served.begin(LONG)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(served.events, "write", {"settings": {"lines": 2}})
        served.wait_for(2)
        left = time.monotonic()
        first.close()
        events = waiting.result()
        assert time.monotonic() - left < 1
    assert [event["place"] for event in events if "place" in event] == [1, 0]
    served.wait_for(0)


def test_waiting_clients_move_up(served):
    """排在前面的走了，各位的位次往前。"""
    first, _ = served.begin(LONG)
    with httpx2.Client(base_url=served.url, trust_env=False) as impatient, ThreadPoolExecutor(1) as pool:
        request = impatient.build_request("POST", "/api/write", json={"settings": {"lines": 2}})
        impatient.send(request, stream=True)
        served.wait_for(2)
        waiting = pool.submit(served.events, "write", {"settings": {"lines": 2}})
        served.wait_for(3)
        impatient.close()
        served.wait_for(2)
        first.close()
        events = waiting.result()
    assert [event["place"] for event in events if "place" in event] == [2, 1, 0]


def test_a_whole_answer_is_not_written_for_one_who_left(served):
    """不是边写边送的也一样。"""
    client = httpx2.Client(base_url=served.url, timeout=0.3, trust_env=False)
    with pytest.raises(httpx2.TimeoutException):
        client.post("/v1/completions", json={"prompt": "我", "max_tokens": 100_000})
    client.close()
    served.wait_for(0)


def test_thirty_three_at_once(served, written):
    """33 位一起来，一位不少，每首都是 inference.py 用那个种子写的。"""

    def song(seed: int) -> str:
        return song_of(served.events("write", {"prompt": "我", "settings": {"max_tokens": 20, "seed": seed}}))

    with ThreadPoolExecutor(33) as pool:
        songs = list(pool.map(song, range(33)))
    assert songs == [written("我", max_tokens=20, seed=seed) for seed in range(33)]


def test_fifty_at_once(served):
    """一位在写、32 位等着，其余 17 位得 429 与 Retry-After；再来就写得成。"""
    first, _ = served.begin(LONG)
    body = {"prompt": "我", "max_tokens": 5, "seed": 1}

    def ask(_: int) -> httpx2.Response:
        return httpx2.post(f"{served.url}/v1/completions", json=body, timeout=60, trust_env=False, verify=False)

    with ThreadPoolExecutor(49) as pool:
        asked = [pool.submit(ask, number) for number in range(49)]
        until = time.monotonic() + 20
        while sum(one.done() for one in asked) < 17 and time.monotonic() < until:
            time.sleep(0.01)
        first.close()
        answers = [one.result() for one in asked]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(refused) == 17
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert {answer.json()["error"]["type"] for answer in refused} == {"rate_limit_error"}
        again = list(pool.map(ask, range(17)))
    done = [answer for answer in [*answers, *again] if answer.status_code == 200]
    assert len(done) == 49
    assert len({answer.json()["choices"][0]["text"] for answer in done}) == 1


def test_a_song_has_a_time_limit(writer):
    with Served(writer, seconds=0.2) as served:
        events = served.events("write", LONG)
        assert "0.2 秒" in events[-1]["error"]
        assert song_of(events) != "我"
        served.wait_for(0)


def test_closing_tells_the_clients(writer):
    """停的时候，写着的与等着的都收到一句话。"""
    with Served(writer) as served, ThreadPoolExecutor(1) as pool:
        first, events = served.begin(LONG)
        waiting = pool.submit(served.events, "write", {})
        served.wait_for(2)
        served.server.should_exit = True
        assert "停了" in list(events)[-1]["error"]
        assert "停了" in waiting.result()[-1]["error"]
        first.close()


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
        for wrong in ({"suffix": "他"}, {"extra_body": {"rhyme": "江洋"}}, {"max_tokens": -1}, {"logprobs": 2}):
            with pytest.raises(openai.BadRequestError) as caught:
                client.completions.create(model="best", prompt="我", **wrong)
            assert caught.value.param in {"suffix", "rhyme", "max_tokens", "logprobs"}


@given(st.text("ab\n", max_size=20), st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3), st.data())
def test_stop_is_never_shown(text, stops, data):
    """怎样切开都一样：给出的正是第一个 stop 之前的。"""
    tail, said, rest = Tail(stops), "", text
    while rest and not tail.found:
        size = data.draw(st.integers(1, len(rest)))
        said, rest = said + tail.push(rest[:size]), rest[size:]
    places = [text.find(stop) for stop in stops if stop in text]
    if not tail.found:
        said += tail.held
    assert said == (text[: min(places)] if places else text)


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


# ---- 不成样子的请求 ----

PATHS = ("/api/write", "/api/more", "/api/rest", "/api/rewrite", "/api/lines", "/api/rhymes", "/v1/completions")
WRONG = st.one_of(st.lists(st.integers(), min_size=1), st.dictionaries(st.text(), st.none(), min_size=1))
NOT_AN_OBJECT = st.one_of(
    st.binary(max_size=200).filter(lambda body: b"{" not in body),
    st.sampled_from([b"{", b'{"prompt": NaN}', b"[" * 100_000, b'{"prompt": "\\ud800"}', b'{"a":' * 5000]),
    st.sampled_from([b"\xff\xfe{}", b"9" * 5000]),
    st.one_of(st.none(), st.booleans(), st.integers(), st.text()).map(lambda value: json.dumps(value).encode()),
)
ODD_FIELD = st.builds(
    lambda name, value: json.dumps({name: value}).encode(),
    st.sampled_from(["prompt", "settings", "text", "line", "lines", "locked", "ended", "readings", "stop", "n", "seed"])
    | st.text(max_size=30),
    WRONG,
)
METHODS = st.sampled_from(["GET", "PUT", "DELETE", "PATCH", "POST"])
MALFORMED = st.one_of(
    st.tuples(st.just("POST"), st.sampled_from(PATHS), NOT_AN_OBJECT),
    st.tuples(st.just("POST"), st.sampled_from(PATHS[:1]), ODD_FIELD),
    st.tuples(st.sampled_from(["GET", "PUT", "DELETE", "PATCH"]), st.sampled_from(PATHS), st.just(b"")),
    st.tuples(METHODS, st.text("abc/%.~é?", max_size=20).map(lambda path: f"/x{path}"), st.binary(max_size=20)),
)


def assert_refused(served, request) -> None:
    method, path, body = request
    answer = served.client.request(method, path, content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500, (request, answer.text)
    assert "error" in answer.json() or "errors" in answer.json()


@examples(max_examples=60)
@given(request=MALFORMED)
def test_malformed_requests(served, request):
    assert_refused(served, request)


@pytest.mark.slow
@examples(max_examples=2000)
@given(request=MALFORMED)
def test_two_thousand_malformed_requests(served, request):
    assert_refused(served, request)


def test_not_even_http(served):
    """不是 HTTP 的、说到一半的，服务照开。"""
    for garbage in (b"\x00\xff\x16\x03", b"GET\r\n\r\n", b"POST /api/write HTTP/1.1\r\nhost: localhost\r\ncontent-"):
        with socket.create_connection(("127.0.0.1", served.port), 5) as connection:
            connection.sendall(garbage)
    assert served.client.get("/healthz").status_code == 200


# ---- 开与停 ----


def start(trained, *argv: str) -> tuple[subprocess.Popen, str]:
    """开一个进程，等到它说出地址。"""
    command = [sys.executable, str(REPOSITORY / "webui.py"), "--checkpoint", str(trained), "--dtype", "fp32"]
    process = subprocess.Popen(
        [*command, "--decode", "torch", "--port", "0", *argv], stderr=subprocess.PIPE, env=ENVIRONMENT, text=True,
        encoding="utf-8",
    )  # fmt: skip
    said = ""
    while "http://" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    return process, re.search(r"http://\S+?(?=（)", said)[0]


@pytest.mark.skipif(os.name == "nt", reason="Windows 没有 SIGTERM")
@pytest.mark.parametrize(("number", "host"), [(signal.SIGINT, "127.0.0.1"), (signal.SIGTERM, "0.0.0.0")])
def test_signals_end_it(trained, number, host):
    """正写着也在两秒之内停下，告诉客户，退出码照例；绑在外面的造一个口令，没有它不写。"""
    process, shown = start(trained, "--most_tokens", "100000", "--host", host)
    address, _, token = shown.partition("#token=")
    assert (len(token) > 16) == (host == "0.0.0.0")
    url = re.sub(r"//.*:", "//127.0.0.1:", address)
    with httpx2.Client(base_url=url, timeout=30, trust_env=False) as client:
        if token:
            assert client.get("/v1/models").status_code == 401
            client.headers["authorization"] = f"Bearer {token}"
        answer = client.send(client.build_request("POST", "/api/write", json=LONG), stream=True)
        lines = answer.iter_lines()
        while "text" not in next(lines):
            pass
        began = time.monotonic()
        process.send_signal(number)
        assert "停了" in list(lines)[-1]
        assert process.wait(5) == 128 + number
        assert time.monotonic() - began < 2
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_a_token_must_fit_a_header():
    with pytest.raises(UserError, match="--token 只能是"):
        webui.main(["--token", "开门"])


def test_port_in_use(served):
    with pytest.raises(UserError, match=f"{served.port}：端口已被占用"):
        webui.main(["--port", str(served.port)])


def test_without_its_requirements(tmp_path):
    """没有装 uvicorn：一行说装什么，退出码 2。"""
    (tmp_path / "uvicorn.py").write_text("raise ImportError(name='uvicorn')")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, str(REPOSITORY / "webui.py")], capture_output=True, env=environment, encoding="utf-8",
        check=False,
    )  # fmt: skip
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert "pip install -r requirements-webui.txt" in found.stderr


def test_the_thread_survives(capsys):
    """写的线程里什么错都不让它倒。"""

    class Failing:
        told: list = []

        def begin(self):
            raise MemoryError

        check = work = begin

        def tell(self, event):
            self.told.append(event)

    failing = Failing()
    failing.begin = lambda: None
    run(failing)
    assert failing.told[-1] is None
    assert "内存" in failing.told[0]["error"]

"""写歌的网页的门口与队：谁不许进，走了的客户，不成样子的请求，开与停。"""

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
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from served import Served, song_of
from small_writer import ENVIRONMENT
from tiny import REPOSITORY

import webui
from serving.turns import run
from terminal import UserError
from writing import loading

LONG = {"prompt": "我", "settings": {"max_tokens": 100_000}}  # 不停下就要写几十秒


@pytest.fixture(scope="module")
def served(trained):
    with Served(loading.load_writer(trained, "cpu", "fp32").writer) as served:
        yield served


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
# 客户端自己把 /x/.. 收成 /，那是有的页面。
NO_SUCH_PATH = st.text("abc/%.~é?", max_size=20).filter(lambda path: "/.." not in path).map(lambda path: f"/x{path}")
METHODS = st.sampled_from(["GET", "PUT", "DELETE", "PATCH", "POST"])
MALFORMED = st.one_of(
    st.tuples(st.just("POST"), st.sampled_from(PATHS), NOT_AN_OBJECT),
    st.tuples(st.just("POST"), st.sampled_from(PATHS[:1]), ODD_FIELD),
    st.tuples(st.sampled_from(["GET", "PUT", "DELETE", "PATCH"]), st.sampled_from(PATHS), st.just(b"")),
    st.tuples(METHODS, NO_SUCH_PATH, st.binary(max_size=20)),
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

"""测试里的网页：真的端口、真的请求，模型小到不费时。"""

import asyncio
import json
import threading
import time
from collections.abc import Iterator

import httpx2

import webui
from serving.guard import Guard
from serving.songs import Desk
from serving.turns import Turns
from writing.writer import Writer

MOST_TOKENS = 100_000


class Served:
    """在另一个线程里开着的服务。"""

    def __init__(
        self, writer: Writer, queue: int = 32, seconds: float = 60, token: str | None = None, indexing=None, **guard
    ) -> None:
        self.turns, self.writer = Turns(queue, seconds), writer
        self.listening = webui.listen("127.0.0.1", 0)
        self.port = self.listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        app = webui.application(Desk(writer, MOST_TOKENS, indexing), self.turns, "best")
        options = {"hosts": [], "public": False, **guard}
        self.server = webui.make_server(Guard(app, token, **options), self.turns)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve([self.listening])))

    def __enter__(self) -> "Served":
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)
        self.client = httpx2.Client(base_url=self.url, timeout=60, trust_env=False)
        return self

    def __exit__(self, *_) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()

    def post(self, path: str, body: object, **options) -> httpx2.Response:
        return self.client.post(path, json=body, **options)

    def events(self, path: str, body: object) -> list[dict]:
        """一次写歌的全部事。"""
        answer = self.post(f"/api/{path}", body)
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]

    def begin(self, body: object) -> tuple[httpx2.Client, Iterator[dict]]:
        """开始写，收到第一段文字就交还：（关上就是走了的连接，余下的事）。"""
        client = httpx2.Client(base_url=self.url, timeout=60, trust_env=False)
        answer = client.send(client.build_request("POST", "/api/write", json=body), stream=True)
        events = (json.loads(line) for line in answer.iter_lines())
        for event in events:
            if "text" in event:
                break
        return client, events

    def wait_for(self, length: int, seconds: float = 1.0) -> None:
        """等到队里正好几位。"""
        until = time.monotonic() + seconds
        while len(self.turns) != length:
            assert time.monotonic() < until, f"队里还有 {len(self.turns)} 位"
            time.sleep(0.005)


def song_of(events: list[dict], number: int = 0) -> str:
    """一首歌的文字，开头在内。"""
    own = [event for event in events if event.get("song", 0) == number]
    return "".join(event.get("prompt", "") + event.get("text", "") for event in own)

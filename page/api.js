// 与服务说话：口令、查一查的、边写边收的。

import { session } from "./store.js";

const KEY = "token";

// 口令只从地址的 # 里拿一次，收在这个标签页里，不留在地址上
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (!given.has("token")) return;
  session.set(KEY, given.get("token"));
  given.delete("token");
  history.replaceState(null, "", `#${given}`);
}

// 服务说的不行：errors 是 {栏名: 一句话}
export class Refusal extends Error {
  constructor(message, errors = {}) {
    super(message);
    this.errors = errors;
  }
}

async function send(path, body, signal) {
  const headers = { "content-type": "application/json" };
  const token = session.get(KEY);
  if (token) headers.authorization = `Bearer ${token}`;
  const method = body === undefined ? "GET" : "POST";
  let answer;
  try {
    answer = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("连不上服务：它还开着吗？");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Refusal(said.error?.message ?? said.errors?.[""] ?? "", said.errors);
}

export async function ask(path, body) {
  return (await send(path, body)).json();
}

// 一件一件地给出写出的：{place} {song, seed, prompt} {text} {options} {ended} {error}
export async function* events(path, body, signal) {
  const reader = (await send(path, body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new Refusal("与服务的连接断了，写到的还在");
    });
    if (done) return;
    const lines = (held + value).split("\n");
    held = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

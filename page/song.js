// 几首歌与它们的历史：每一次改动都记下来，收在浏览器里，关了再开还在。

const MOST_STATES = 300;
const PREFIX = "lyrics:";

let lastId = 0;

export const newLine = (text = "") => ({ id: ++lastId, text, locked: false, reading: null });

export function newSong(text = "", extra = {}) {
  return { lines: text ? text.split("\n").map(newLine) : [], ended: true, seed: null, title: "", singer: "", ...extra };
}

export const textOf = (song) => song.lines.map((line) => line.text).join("\n");

// 唱的各行，空行不算；序号从 1 起就是服务认的行号
export const sungLines = (song) => song.lines.filter((line) => line.text.trim());

export function append(song, text) {
  const [first, ...others] = text.split("\n");
  if (!song.lines.length) song.lines.push(newLine());
  song.lines.at(-1).text += first;
  for (const other of others) song.lines.push(newLine(other));
}

// 浏览器里存着的各项
function stored() {
  const found = new Map();
  try {
    for (let place = 0; place < localStorage.length; place++) {
      const key = localStorage.key(place);
      if (key.startsWith(PREFIX)) found.set(key.slice(PREFIX.length), localStorage.getItem(key));
    }
  } catch {
    // 浏览器不让看
  }
  return found;
}

export class Book {
  // 现在的几首 this.songs，正看着第 this.current 首；历史在 localStorage，一个状态一项
  constructor() {
    this.songs = [];
    this.current = 0;
    this.memory = stored();
    const range = this.#read("range");
    this.range = range ?? { first: 0, at: -1, last: -1 };
    const saved = this.#read("now") ?? this.#read(this.range.at);
    if (saved) this.#show(saved);
    if (this.range.at < 0) this.commit();
  }

  get song() {
    return this.songs[this.current] ?? null;
  }

  get canUndo() {
    return this.range.at > this.range.first;
  }

  get canRedo() {
    return this.range.at < this.range.last;
  }

  // 记下现在的样子；与上一个相同的不记
  commit() {
    const state = JSON.stringify({ songs: this.songs, current: this.current });
    this.save(state);
    if (state === this.#text(this.range.at)) return;
    for (let number = this.range.at + 1; number <= this.range.last; number++) this.#forget(number);
    this.range.last = this.range.at += 1;
    this.#write(this.range.at, state);
    while (this.range.last - this.range.first >= MOST_STATES) this.#forget(this.range.first++);
    this.#write("range", JSON.stringify(this.range));
  }

  // 还没有记进历史的也不丢
  save(state = JSON.stringify({ songs: this.songs, current: this.current })) {
    this.#write("now", state);
  }

  step(by) {
    this.commit();
    const state = this.#read(this.range.at + by);
    if (!state || this.range.at + by > this.range.last) return false;
    this.range.at += by;
    this.#show(state);
    this.save();
    this.#write("range", JSON.stringify(this.range));
    return true;
  }

  #show({ songs, current }) {
    this.songs = songs;
    this.current = current;
    for (const song of songs) for (const line of song.lines) lastId = Math.max(lastId, line.id);
  }

  // 浏览器不让存（隐私模式）或装满了的，只在这个页面里有
  #text(name) {
    return this.memory.get(String(name)) ?? null;
  }

  #read(name) {
    return JSON.parse(this.#text(name));
  }

  #forget(name) {
    this.memory.delete(String(name));
    try {
      localStorage.removeItem(PREFIX + name);
    } catch {
      // 本来就没有存
    }
  }

  #write(name, text) {
    this.memory.set(String(name), text);
    try {
      localStorage.setItem(PREFIX + name, text);
    } catch {
      // 装满了：丢掉最早的一半历史再试一次
      const half = Math.ceil((this.range.at - this.range.first) / 2);
      for (let gone = 0; gone < half; gone++) this.#forget(this.range.first++);
      try {
        localStorage.setItem(PREFIX + name, text);
      } catch {
        // 还是不行
      }
    }
  }
}

// 一个标签页一本：它的几首歌与历史，每一次改动都记下来，收在浏览器里，关了再开还在。

import { known } from "./song.js";
import { local, session } from "./store.js";

const MOST_STATES = 300;
const WAITING = 2000; // 毫秒：重开一页，等它原来的样子放手
const PREFIX = "lyrics:";
const me = fresh();

function fresh() {
  return Math.random().toString(36).slice(2, 10);
}

const key = (id, name) => `${PREFIX}${id}:${name}`;

// {哪一本: {项: 文字}}
function shelf() {
  const books = new Map();
  for (const full of local.keys().filter((one) => one.startsWith(PREFIX))) {
    const [, id, name] = full.split(":");
    if (!books.has(id)) books.set(id, new Map());
    books.get(id).set(name, local.get(full));
  }
  return books;
}

const usedAt = (entries) => JSON.parse(entries.get("range") ?? "{}").used ?? 0;

// 占住一本，直到这个标签页关了；占不住的是 false。不是 https 也不是本机的没有锁，就当没有人占
async function hold(id, wait = 0) {
  if (!navigator.locks) return true;
  const options = wait ? { signal: AbortSignal.timeout(wait) } : { ifAvailable: true };
  return new Promise((done) => {
    const keep = (lock) => {
      done(Boolean(lock));
      return lock && new Promise(() => {});
    };
    navigator.locks.request(key(id, "open"), options, keep).catch(() => done(false));
  });
}

// 这个标签页的一本：重开的是原来那本；新开的是没有人用着的里面最近的，都有人用就是新的
export async function openBook() {
  for (const old of local.keys().filter((one) => /^lyrics:[^:]+$/.test(one))) {
    const text = local.get(old); // 早先各标签页共用一本
    local.remove(old);
    local.set(key("0", old.slice(PREFIX.length)), text);
  }
  const own = session.get("book");
  if (own && (await hold(own, WAITING))) return new Book(own, shelf().get(own));
  const books = shelf();
  if (!own) {
    const saved = [...books].filter(([, entries]) => entries.has("now"));
    saved.sort(([, one], [, other]) => usedAt(other) - usedAt(one));
    for (const [id, entries] of saved) if (await hold(id)) return new Book(id, entries);
  }
  const id = fresh();
  hold(id);
  const copied = books.get(own)?.get("now"); // 复制出来的标签页，从同一首起
  return new Book(id, new Map(copied ? [["now", copied]] : []));
}

export class Book {
  // 现在的几首 this.songs，正看着第 this.current 首；历史里一个状态一项
  constructor(id, entries = new Map()) {
    this.songs = [];
    this.current = 0;
    this.entries = entries;
    this.range = this.#read("range") ?? { first: 0, at: -1, last: -1 };
    while (this.range.first < this.range.at && !this.#isWhole()) this.range.first += 1;
    if (!this.#text(this.range.at)) this.range = { first: this.range.at + 1, at: this.range.at, last: this.range.at };
    this.#take(id);
    const saved = this.#read("now") ?? this.#read(this.range.at);
    this.saved = local.get(key(id, "now"));
    if (saved) this.#show(saved);
    this.commit();
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
    const state = this.save();
    if (state === this.#text(this.range.at)) return;
    this.#keepOwn();
    for (let number = this.range.at + 1; number <= this.range.last; number++) this.#forget(number);
    this.range.last = this.range.at += 1;
    this.#write(this.range.at, state);
    while (this.range.last - this.range.first >= MOST_STATES) this.#forget(this.range.first++);
    this.#writeRange();
  }

  // 还没有记进历史的也不丢
  save() {
    const state = JSON.stringify({ songs: this.songs, current: this.current });
    if (state !== this.saved) {
      this.saved = state;
      this.#keepOwn();
      this.#write("now", state);
    }
    return state;
  }

  step(by) {
    this.commit();
    const state = this.#read(this.range.at + by);
    if (!state || this.range.at + by > this.range.last) return false;
    this.range.at += by;
    this.#show(state);
    this.save();
    this.#writeRange();
    return true;
  }

  #show({ songs, current }) {
    this.songs = songs;
    this.current = current;
    known(songs);
  }

  #take(id) {
    this.id = id;
    session.set("book", id);
    do this.owned = local.set(key(id, "owner"), me);
    while (!this.owned && this.#makeRoom());
  }

  // 睡着的时候，别的标签页拿去用了：这里的另成一本
  #keepOwn() {
    if (!this.owned || local.get(key(this.id, "owner")) === me) return;
    this.#take(fresh());
    hold(this.id);
    for (const [name, text] of this.entries) if (name !== "owner") local.set(key(this.id, name), text);
  }

  // 从 first 到 at 一个不缺
  #isWhole() {
    for (let number = this.range.first; number <= this.range.at; number++) if (!this.#text(number)) return false;
    return true;
  }

  #text(name) {
    return this.entries.get(String(name)) ?? null;
  }

  #read(name) {
    return JSON.parse(this.#text(name));
  }

  #forget(name) {
    this.entries.delete(String(name));
    local.remove(key(this.id, name));
  }

  #writeRange() {
    this.#write("range", JSON.stringify({ ...this.range, used: Date.now() }));
  }

  #write(name, text) {
    this.entries.set(String(name), text);
    while (this.owned && !local.set(key(this.id, name), text) && this.#makeRoom()); // 不让存的，只在这个页面里有
  }

  // 装满了：丢掉最早的历史，先是自己的一半，剩得不多了就是别的各本的；歌都不丢
  #makeRoom() {
    const states = this.range.at - this.range.first;
    if (states < 50) {
      const others = [...shelf()].filter(([id]) => id !== this.id);
      others.sort(([, one], [, other]) => usedAt(one) - usedAt(other));
      for (const [id, entries] of others) {
        const gone = [...entries.keys()].filter((name) => /^\d+$/.test(name));
        for (const name of gone) local.remove(key(id, name));
        if (gone.length) return true;
      }
    }
    const half = Math.ceil(states / 2);
    for (let gone = 0; gone < half; gone++) this.#forget(this.range.first++);
    return half > 0;
  }
}

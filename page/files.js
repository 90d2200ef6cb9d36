// 导出与导入：.txt，.lrc（时间标签空着），.json（train.py 读得了的语料）。

import { newSong, textOf } from "./song.js";

const WRITERS = {
  txt: (song) => textOf(song) + "\n",
  lrc: (song) => {
    const head = [song.title && `[ti:${song.title}]`, song.singer && `[ar:${song.singer}]`].filter(Boolean);
    return [...head, ...song.lines.map((line) => `[00:00.00]${line.text}`), ""].join("\n");
  },
  json: (song) =>
    JSON.stringify([{ name: song.title, singer: song.singer, lyric: song.lines.map((line) => line.text) }], null, 1) +
    "\n",
};

export function download(song, kind) {
  const url = URL.createObjectURL(new Blob([WRITERS[kind](song)], { type: "text/plain;charset=utf-8" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `${(song.title || "歌词").replace(/[\\/:*?"<>|]/g, "_")}.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function fromLrc(text) {
  const tag = (name) => text.match(new RegExp(`^\\[${name}:([^\\]]*)\\]`, "m"))?.[1].trim() ?? "";
  const lines = text.split("\n").filter((line) => !/^\[[a-z]+:[^\]]*\]\s*$/i.test(line));
  const lyric = lines.map((line) => line.replace(/^(\[[\d:.]*\])+/, "").trim());
  return newSong(lyric.join("\n").trim(), { title: tag("ti"), singer: tag("ar") });
}

function fromJson(text) {
  const read = [JSON.parse(text)].flat();
  return read
    .filter((one) => one && (Array.isArray(one.lyric) || typeof one.lyric === "string"))
    .map((one) => {
      const lyric = Array.isArray(one.lyric) ? one.lyric.map(String).join("\n") : one.lyric;
      return newSong(lyric, { title: String(one.name ?? ""), singer: String(one.singer ?? "") });
    });
}

// 一个文件里的几首；读不出的抛出 Error
export async function readSongs(file) {
  const text = (await file.text()).replace(/^\ufeff/, "").replace(/\r\n?/g, "\n");
  const kind = file.name.split(".").pop().toLowerCase();
  let songs;
  try {
    songs = kind === "json" ? fromJson(text) : [kind === "lrc" ? fromLrc(text) : newSong(text.trim())];
  } catch {
    songs = [];
  }
  songs = songs.filter((song) => song.lines.some((line) => line.text.trim()));
  if (!songs.length) throw new Error(`${file.name} 里没有读出歌词`);
  return songs.slice(0, 8);
}

// 导出与导入：.txt，.lrc（时间标签空着），.json（train.py 读得了的语料）。

import { newSong, textOf } from "./song.js";

const MOST_BYTES = 4 * 2 ** 20;
const MOST_SONGS = 8;

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

// 一行有几个时间的，各唱一遍：照时间排
function fromLrc(text) {
  const tag = (name) => text.match(new RegExp(`^\\[${name}:([^\\]]*)\\]`, "mi"))?.[1].trim() ?? "";
  const lines = text.split("\n").filter((line) => !/^\s*\[[a-z]+:[^\]]*\]\s*$/i.test(line));
  const timed = lines.flatMap((line) => {
    const [times] = line.match(/^\s*(\[\d+:[\d.:]*\])*/);
    const words = line.slice(times.length).trim();
    const seconds = [...times.matchAll(/\[(\d+):([\d.]*)/g)].map(([, minutes, rest]) => minutes * 60 + Number(rest));
    return (seconds.length ? seconds : [null]).map((at) => [at, words]);
  });
  if (timed.every(([at]) => at != null)) timed.sort(([one], [other]) => one - other);
  return newSong(timed.map(([, words]) => words).join("\n").trim(), { title: tag("ti"), singer: tag("ar") });
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

// UTF-8、UTF-16（有开头的记号），或国标
export async function textOfFile(file) {
  if (file.size > MOST_BYTES) throw new Error(`${file.name} 太大：至多 ${MOST_BYTES / 2 ** 20} MB`);
  const bytes = new Uint8Array(await file.arrayBuffer());
  const wide = { "255,254": "utf-16le", "254,255": "utf-16be" }[bytes.slice(0, 2).join()];
  let text;
  try {
    text = new TextDecoder(wide ?? "utf-8", { fatal: true }).decode(bytes);
  } catch {
    text = new TextDecoder("gb18030").decode(bytes);
  }
  return text.replace(/\r\n?/g, "\n");
}

// 一个文件里的前几首，与共有几首；读不出的抛出 Error
export async function readSongs(file) {
  const text = await textOfFile(file);
  const kind = file.name.split(".").pop().toLowerCase();
  let songs;
  try {
    songs = kind === "json" ? fromJson(text) : [kind === "lrc" ? fromLrc(text) : newSong(text.trim())];
  } catch {
    songs = [];
  }
  songs = songs.filter((song) => song.lines.some((line) => line.text.trim()));
  if (!songs.length) throw new Error(`${file.name} 里没有读出歌词`);
  return { songs: songs.slice(0, MOST_SONGS), total: songs.length };
}

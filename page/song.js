// 一首歌的样子。

let lastId = 0;

export const newLine = (text = "") => ({ id: ++lastId, text, locked: false, reading: null });

export function newSong(text = "", extra = {}) {
  return { lines: text ? text.split("\n").map(newLine) : [], ended: true, seed: null, title: "", singer: "", ...extra };
}

// 从别处来的几首：以后的编号不与它们的相同
export function known(songs) {
  for (const song of songs) for (const line of song.lines) lastId = Math.max(lastId, line.id);
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

// 写歌的页面：把表单、各行、韵典与服务接起来。

import { Refusal, ask, events, takeToken } from "./api.js";
import { openBook } from "./book.js";
import { composing } from "./caret.js";
import { $, make, soon } from "./dom.js";
import { Editor } from "./editor.js";
import { download, readSongs } from "./files.js";
import { buildForm, fill, fromAddress, prompt, settings, showErrors, toAddress } from "./form.js";
import { lookUp, startRhymes } from "./rhymes.js";
import { append, newSong, sungLines, textOf } from "./song.js";

let book;
let editor;
let checks = 0;
let writing = null; // 正在写的：AbortController

function say(message) {
  $("status").textContent = message;
}

function complain(message) {
  $("problem").textContent = message;
  $("problem").hidden = !message;
}

function showErrorsOf(error, focus = true) {
  const field = showErrors(error.errors ?? {});
  if (focus) field?.focus();
  const other = Object.entries(error.errors ?? {}).filter(([name]) => !document.getElementById(`f-${name}`));
  complain(error.message || other.map(([, message]) => message).join("；"));
}

function update() {
  const song = book.song;
  const busy = Boolean(writing);
  const any = Boolean(song?.lines.some((line) => line.text.trim()));
  $("write").hidden = busy;
  $("stop").hidden = !busy;
  $("more").disabled = busy || !any;
  $("rest").disabled = busy || !any;
  $("undo").disabled = busy || !book.canUndo;
  $("redo").disabled = busy || !book.canRedo;
  for (const button of $("export").querySelectorAll("button")) button.disabled = !any;
  $("import").disabled = busy;
  $("fresh").disabled = busy;
}

function showCards() {
  $("cards").hidden = book.songs.length < 2;
  $("cards").replaceChildren(
    ...book.songs.map((song, number) => {
      const first = sungLines(song).slice(0, 4).map((line) => make("span", {}, line.text));
      const pick = () => {
        book.commit();
        book.current = number;
        book.commit();
        show();
      };
      const pressed = String(number === book.current);
      return make("button", { type: "button", "aria-pressed": pressed, onclick: pick }, make("b", {}, `第 ${number + 1} 首`), ...first);
    }),
  );
}

function show() {
  showCards();
  editor.render();
  update();
}

// 去写一件；用 take 收每一件事。停下、出错都留着写到的
async function work(path, body, take, done = null) {
  if (writing) return;
  writing = new AbortController();
  complain("");
  showErrors({});
  update();
  say("正在写……");
  let problem = null;
  let seed = null;
  let saved = performance.now();
  try {
    for await (const event of events(path, body, writing.signal)) {
      if (event.place != null) say(event.place ? `排在第 ${event.place} 位` : "正在写……");
      if (event.seed != null) seed ??= event.seed;
      if (event.error) problem = event.error;
      take(event);
      if (performance.now() - saved > 500) {
        book.save();
        saved = performance.now();
      }
    }
    say(problem ? "" : done ?? `写好了，种子 ${seed}`);
    complain(problem ?? "");
  } catch (error) {
    if (error.name === "AbortError") say("停下了，写到的还在");
    else if (error instanceof Refusal) {
      say("");
      showErrorsOf(error);
    } else throw error;
  } finally {
    writing = null;
    book.commit();
    show();
  }
  return seed;
}

async function write() {
  const found = await check();
  if (!found || writing) return;
  const { title = "", singer = "" } = settings();
  let fresh = false;
  if ($("status").getBoundingClientRect().top > innerHeight * 0.6) $("status").scrollIntoView(); // 手机上，歌在表单下面
  const seed = await work("/api/write", { prompt: prompt(), settings: settings() }, (event) => {
    if (event.seed != null) {
      if (!fresh) {
        fresh = true;
        book.commit();
        book.songs = [];
        book.current = 0;
      }
      book.songs[event.song] = newSong(event.prompt, { title, singer, seed: event.seed });
    }
    receive(book.songs[event.song], event);
  });
  if (seed != null) toAddress(seed);
}

function receive(song, event) {
  if (!song) return;
  if (event.text) append(song, event.text);
  if (event.ended != null) song.ended = event.ended;
  if (event.text || event.seed != null) {
    showCards();
    editor.render();
  }
}

async function more() {
  const song = book.song;
  if (!(await check())) return;
  book.commit();
  const body = { text: textOf(song), ended: song.ended, readings: editor.readings(), settings: settings() };
  await work("/api/more", body, (event) => receive(song, event));
}

// 没有留住的各行依次换成新写的；写到哪里换到哪里
async function rest() {
  const song = book.song;
  if (!(await check())) return;
  book.commit();
  const lines = sungLines(song);
  const locked = lines.flatMap((line, place) => (line.locked ? [place + 1] : []));
  const start = prompt() && textOf(song).startsWith(prompt()) ? prompt() : "";
  const body = { text: textOf(song), locked, readings: editor.readings(), prompt: start, settings: settings() };
  let written = "";
  await work("/api/rest", body, (event) => {
    if (!event.text) return;
    written += event.text;
    const fresh = written.split("\n").filter((line) => line.trim());
    fresh.forEach((text, place) => {
      if (!lines[place] || lines[place].locked || lines[place].text === text) return;
      Object.assign(lines[place], { text, reading: null });
    });
    editor.render();
  });
}

async function rewrite(id) {
  const line = editor.line(id);
  if (!line?.text.trim() || writing) return;
  const number = sungLines(book.song).indexOf(line) + 1;
  const { seed, ...others } = settings(); // 固定的种子也要给出别的写法
  const body = { text: textOf(book.song), line: number, settings: others, readings: editor.readings() };
  const ids = sungLines(book.song).map((one) => one.id);
  let found = { options: [] };
  await work("/api/rewrite", body, (event) => (found = event.options ? event : found), "选一种：按数字键或点一下，Esc 不换");
  if (found.options.length) editor.offer(id, found.options, found.same.map((one) => ids[one - 1]));
}

// 各栏写得对不对、各行该几个字；不对的说在栏旁，什么也不送。边填边查的（typing）不动光标
async function check(typing = false) {
  const number = ++checks;
  try {
    const found = await ask("/api/check", { prompt: prompt(), settings: settings() });
    if (typing && number !== checks) return null; // 又改过了
    editor.wanted = found.wanted;
    editor.mostCopied = Number(settings().max_copy) || 0;
    editor.refresh();
    const wrong = Object.keys(found.errors).length > 0;
    if (wrong) showErrorsOf(found, !typing);
    else {
      showErrors({});
      complain("");
    }
    return wrong ? null : found;
  } catch (error) {
    showErrorsOf(error, !typing);
    return null;
  }
}

const checkSoon = soon(400, () => check(true));

function step(by) {
  if (writing || !book.step(by)) return;
  editor.choices = null;
  show();
  say(by < 0 ? "撤销了一步" : "重做了一步");
}

function keys(event) {
  if (composing(event)) return;
  const control = event.ctrlKey || event.metaKey;
  const inForm = event.target.closest("form, aside");
  if (control && event.key === "Enter") write();
  else if (event.key === "Escape" && writing) writing.abort();
  else if (control && event.key.toLowerCase() === "z" && !inForm) step(event.shiftKey ? 1 : -1);
  else if (control && event.key.toLowerCase() === "y" && !inForm) step(1);
  else return;
  event.preventDefault();
}

async function open(file) {
  try {
    const { songs, total } = await readSongs(file);
    book.commit();
    book.songs = songs;
    book.current = 0;
    book.commit();
    fill({ title: book.song.title, singer: book.song.singer });
    complain("");
    say(total > songs.length ? `共 ${total} 首，读出前 ${songs.length} 首` : `读出 ${total} 首`);
    show();
  } catch (error) {
    complain(error.message);
  }
}

function blank() {
  book.commit();
  const { title = "", singer = "" } = settings();
  book.songs = [newSong(prompt() || " ", { title, singer })];
  book.song.lines[0].text = prompt();
  book.current = 0;
  book.commit();
  show();
  editor.focus(book.song.lines[0].id);
}

// 歌名、歌手是这首歌的：写完再填也算
function named(event) {
  if (!["title", "singer"].includes(event.target.name) || !book.song || writing) return;
  for (const song of book.songs) song[event.target.name] = event.target.value.trim();
  editor.showTitle();
  editor.commitSoon();
}

// 语料的索引正建着：建好了就标出与语料的相同处
async function awaitIndex(about) {
  while (about.index.building) {
    $("model").textContent = `${about.model} · 正在建语料的索引，建好了标出照抄处`;
    await new Promise((done) => setTimeout(done, 2000));
    about = await ask("/api/about").catch(() => about);
    if (about.index.ready) editor.learnAgain();
  }
  $("model").textContent = about.model;
}

function listen() {
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    write();
  });
  $("form").addEventListener("input", (event) => {
    named(event);
    toAddress(null);
    checkSoon();
  });
  $("stop").addEventListener("click", () => writing?.abort());
  $("more").addEventListener("click", more);
  $("rest").addEventListener("click", rest);
  $("undo").addEventListener("click", () => step(-1));
  $("redo").addEventListener("click", () => step(1));
  for (const name of ["blank", "fresh"]) $(name).addEventListener("click", blank);
  $("export").addEventListener("click", (event) => {
    const { kind } = event.target.dataset;
    if (kind) download(book.song, kind);
  });
  $("import").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    if ($("file").files[0]) open($("file").files[0]);
    $("file").value = "";
  });
  document.addEventListener("keydown", keys);
  addEventListener("pagehide", () => book.commit());
}

async function start() {
  addEventListener("hashchange", () => location.reload()); // 同一个标签页里贴进了另一个地址
  takeToken();
  let about;
  try {
    [about, book] = await Promise.all([ask("/api/about"), openBook()]);
  } catch (error) {
    complain(error.message);
    return;
  }
  buildForm(about);
  fromAddress();
  const chosen = (count) => say(count > 1 ? `换了，一字不差的 ${count} 行都换` : "换了");
  const selected = (line) => line && lookUp(line.text, line.reading);
  editor = new Editor(book, about.classes, { changed: update, selected, rewrite, chosen });
  startRhymes((word) => editor.insert(word) || say("先选中一行"));
  listen();
  show();
  await check(true);
  document.body.dataset.ready = "";
  awaitIndex(about);
}

start();

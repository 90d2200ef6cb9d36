// 一首歌的各行：显示、在原处改、移、插、删、留住、选写法与读音。

import { ask } from "./api.js";
import { at, composing, leaves, over } from "./caret.js";
import { $, make, soon } from "./dom.js";
import { newLine, sungLines } from "./song.js";

const infos = new Map(); // 一行的文字 → {sung, rhyme, readings, copied}
const SHORTEST = 2; // 与语料相同这么多字起才标出
const WHOLE = 4; // 整行与语料相同、又有这么多字的，显眼地标

const sungLength = (text) => [...text.replace(/[^\p{L}\p{N}]/gu, "")].length;

export class Editor {
  // on：{changed 改了, selected 选中了一行, rewrite 要另写一行}；classes：各辙，次序定颜色
  constructor(book, classes, on) {
    Object.assign(this, { book, classes, on, wanted: [], mostCopied: 0, selected: null, choices: null, rows: new Map() });
    this.pressing = false; // 鼠标按着：松开了才展开这一行，底下的不在手指下挪动
    this.commitSoon = soon(400, () => book.commit());
    this.learnSoon = soon(120, () => this.learn());
    $("lines").addEventListener("keydown", (event) => this.#key(event));
    $("lines").addEventListener("pointerdown", () => (this.pressing = true));
    for (const name of ["pointerup", "pointercancel", "dragend"]) addEventListener(name, () => this.#released());
  }

  get song() {
    return this.book.song;
  }

  line(id = this.selected) {
    return this.song?.lines.find((line) => line.id === id) ?? null;
  }

  reading(line) {
    return line.reading ?? infos.get(line.text)?.rhyme ?? null;
  }

  // 行数、次序变了：重新摆，别的行不动；光标在哪里还在哪里，那一行没有了就到邻近的一行
  render() {
    const list = $("lines");
    const active = document.activeElement?.closest?.(".line");
    const place = [...list.children].indexOf(active);
    const caret = document.activeElement.selectionStart;
    const lines = this.song?.lines ?? [];
    const kept = new Map();
    for (const line of lines) kept.set(line.id, this.rows.get(line.id) ?? this.#makeRow(line.id));
    this.rows = kept;
    const items = [...kept.values()].map((row) => row.item);
    for (const item of [...list.children]) if (!kept.has(Number(item.dataset.id))) item.remove();
    items.forEach((item, index) => {
      if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null);
    });
    if (!this.line()) this.selected = null;
    if (active && !active.contains(document.activeElement)) {
      const next = active.isConnected ? active : items[Math.min(place, items.length - 1)];
      if (next) this.focus(Number(next.dataset.id), active.isConnected ? caret : null);
    }
    $("empty").hidden = lines.length > 0;
    this.showTitle();
    this.refresh();
    this.learnSoon();
  }

  showTitle() {
    const { title, singer } = this.song ?? {};
    $("title").hidden = !title;
    $("title").textContent = title ? `《${title}》${singer}` : "";
  }

  // 只改各行显示的：字数、韵、留住、选中
  refresh(which = () => true) {
    let number = 0;
    for (const line of this.song?.lines ?? []) {
      const sung = Boolean(line.text.trim());
      number += sung;
      if (which(line)) this.#refreshRow(line, sung ? number : 0);
    }
  }

  focus(id, caret) {
    const row = this.rows.get(id);
    if (!row) return;
    row.text.focus();
    if (caret != null) row.text.setSelectionRange(caret, caret);
  }

  // 语料的索引建好了：再问一遍
  learnAgain() {
    infos.clear();
    this.learn();
  }

  // 还不知道的各行，一次问清
  async learn() {
    const texts = [...new Set((this.song?.lines ?? []).map((line) => line.text))].filter((text) => !infos.has(text));
    if (!texts.length) return;
    const { lines } = await ask("/api/lines", { lines: texts }).catch(() => ({ lines: [] }));
    lines.forEach((info, place) => infos.set(texts[place], info));
    this.refresh();
    if (this.selected) this.on.selected(this.line());
  }

  // 在选中的一行的光标处写进一个词
  insert(word) {
    const line = this.line();
    if (!line) return false;
    const { text } = this.rows.get(line.id);
    const [start, end] = [text.selectionStart ?? text.value.length, text.selectionEnd ?? text.value.length];
    text.setRangeText(word, start, end, "end");
    this.#typed(line.id);
    text.focus();
    return true;
  }

  // 一行的几种写法，等着选
  offer(id, options, same = [id]) {
    this.choices = { id, options, same };
    this.refresh();
    this.rows.get(id)?.options.querySelector("button")?.focus();
  }

  change(work) {
    this.book.commit();
    work();
    this.book.commit();
    this.render();
    this.on.changed();
  }

  #makeRow(id) {
    const row = {};
    row.number = make("span", { class: "number", "aria-hidden": "true" });
    row.lock = make("button", { type: "button", class: "lock", "aria-pressed": "false", onclick: () => this.lock(id) }, "留");
    const source = `source-${id}`;
    row.under = make("div", { class: "under", "aria-hidden": "true" }); // 衬在底下的同样的字：撑开高，标出相同处
    row.text = make("textarea", { class: "text", rows: "1", spellcheck: "false", autocapitalize: "off", "aria-describedby": source });
    row.text.addEventListener("input", () => this.#typed(id));
    row.text.addEventListener("beforeinput", (event) => this.#beforeInput(id, event));
    row.text.addEventListener("focus", () => (this.pressing ? null : this.#select(id)));
    row.text.addEventListener("blur", () => this.book.commit());
    row.text.addEventListener("mousemove", (event) => row.source.classList.toggle("pointed", over(row.under, event)));
    row.text.addEventListener("mouseleave", () => row.source.classList.remove("pointed"));
    row.source = make("p", { class: "source", id: source, hidden: true });
    row.verse = make("div", { class: "verse" }, row.under, row.text, row.source);
    row.rhyme = make("span", { class: "rhyme" });
    row.unsure = make("button", { type: "button", class: "rhyme unsure", hidden: true, onclick: () => this.#nextReading(id) });
    row.count = make("span", { class: "count" });
    row.tools = make("div", { class: "tools", role: "group", "aria-label": "这一行", hidden: true });
    row.options = make("div", { class: "options", role: "group", "aria-label": "选一种写法", hidden: true });
    const marks = make("span", { class: "marks" }, row.rhyme, row.unsure, row.count);
    const main = make("div", { class: "row" }, row.number, row.lock, row.verse, marks);
    row.item = make("li", { class: "line", "data-id": id }, main, row.tools, row.options);
    return row;
  }

  #refreshRow(line, number) {
    const row = this.rows.get(line.id);
    if (!row) return;
    const info = infos.get(line.text);
    const selected = line.id === this.selected;
    if (row.text.value !== line.text) row.text.value = line.text;
    row.number.textContent = number || "";
    row.text.setAttribute("aria-label", number ? `第 ${number} 行` : "空行");
    row.lock.setAttribute("aria-pressed", String(line.locked));
    row.lock.setAttribute("aria-label", `留住${number ? `第 ${number} 行` : "空行"}`);
    row.lock.classList.toggle("unseen", !number);
    // 整首只占一站：方向键在各行里走
    const stop = selected || (!this.selected && line === this.song.lines[0]) ? 0 : -1;
    for (const part of [row.lock, row.text, row.unsure]) part.tabIndex = stop;
    row.item.classList.toggle("selected", selected);
    row.item.classList.toggle("blank", !number);
    this.#refreshMarks(row, line, number, info);
    if (selected && !row.tools.children.length) row.tools.append(...this.#tools(line.id));
    row.tools.hidden = !selected;
    this.#refreshOptions(row, line);
  }

  #refreshMarks(row, line, number, info) {
    const name = this.reading(line);
    const readings = info?.readings ?? [];
    const unsure = readings.length > 1;
    for (const chip of [row.rhyme, row.unsure]) chip.dataset.class = this.classes.indexOf(name);
    row.rhyme.hidden = !name || unsure;
    row.unsure.hidden = !unsure;
    row.rhyme.textContent = name ?? "";
    row.unsure.textContent = line.reading ? name : `${name}？`;
    row.unsure.setAttribute("aria-label", `末字读作${name}辙，还可读作${readings.filter((one) => one !== name).join("、")}辙；点一下换`);
    row.unsure.title = row.unsure.getAttribute("aria-label");
    const [least, most] = this.wanted.length && number ? this.wanted[(number - 1) % this.wanted.length] : [0, Infinity];
    const off = info && number && (info.sung < least || info.sung > most);
    row.count.textContent = info && number ? (off ? `${info.sung}/${least === most ? least : `${least}-${most}`}` : info.sung) : "";
    row.count.classList.toggle("off", Boolean(off));
    row.count.title = off ? "字数 / 要的字数" : "字数";
    this.#refreshCopied(row, line, info);
  }

  // 与语料最长的相同处标在字底下，出自哪一首说在一旁；还没有问到的（正在打字）照上一次的
  #refreshCopied(row, line, info) {
    const { text } = line;
    if (info) row.copied = info.copied ? { ...info.copied, same: [...text].slice(info.copied.start, info.copied.end).join("") } : null;
    const { same = "", label = "" } = row.copied ?? {};
    const start = info ? [...text].slice(0, row.copied?.start).join("").length : text.indexOf(same);
    const length = sungLength(same);
    const shown = length >= SHORTEST && start >= 0;
    const much = this.mostCopied ? length > this.mostCopied : length >= WHOLE && length === sungLength(text);
    const now = `${shown && start} ${much} ${text}`;
    if (row.shown !== now) {
      const parts = shown ? [text.slice(0, start), make("mark", { class: much && "much" }, same), text.slice(start + same.length)] : [text];
      row.under.replaceChildren(...parts);
      row.shown = now;
    }
    row.source.hidden = !shown;
    row.source.textContent = shown ? `「${same}」${length} 字，与${label}相同` : "";
  }

  #tools(id) {
    const tool = (name, key, work) =>
      make("button", { type: "button", class: "small", title: key, onclick: work }, name);
    return [
      tool("另写五种", "Alt+R", () => this.on.rewrite(id)),
      tool("上移", "Alt+↑", () => this.move(id, -1)),
      tool("下移", "Alt+↓", () => this.move(id, 1)),
      tool("下面插一行", "回车", () => this.insertAfter(id)),
      tool("删", "", () => this.remove(id)),
    ];
  }

  #refreshOptions(row, line) {
    const mine = this.choices?.id === line.id ? this.choices.options : [];
    const shown = [...row.options.children].map((button) => button.dataset.text).join("\n");
    if (shown !== mine.join("\n")) {
      row.options.replaceChildren(
        ...mine.map((text, place) =>
          make("button", { type: "button", "data-text": text, onclick: () => this.choose(place) }, make("kbd", {}, String(place + 1)), text),
        ),
      );
    }
    row.options.hidden = !mine.length;
  }

  #typed(id) {
    const line = this.line(id);
    const { value } = this.rows.get(id).text;
    if (/[\r\n]/.test(value)) return this.#split(id); // 粘进了几行
    const others = this.choices || !line.text.trim() !== !value.trim(); // 行号要重排，或别处开着写法
    Object.assign(line, { text: value, reading: null });
    this.choices = null;
    this.commitSoon();
    this.learnSoon();
    if (others) {
      this.refresh();
      this.on.changed();
    } else this.#refreshRow(line, sungLines(this.song).indexOf(line) + 1); // 打字时只动这一行
  }

  #released() {
    if (!this.pressing) return;
    this.pressing = false;
    const id = Number(document.activeElement.closest?.(".line")?.dataset.id);
    if (id && document.activeElement.classList.contains("text")) this.#select(id);
  }

  // 手机的键盘不一定说按的是回车
  #beforeInput(id, event) {
    if (event.isComposing || !["insertLineBreak", "insertParagraph"].includes(event.inputType)) return;
    event.preventDefault();
    this.#break(id);
  }

  #select(id) {
    if (this.selected === id) return;
    const touched = [this.song.lines[0].id, this.selected, this.choices?.id, id];
    this.selected = id;
    if (this.choices && this.choices.id !== id) this.choices = null;
    this.refresh((line) => touched.includes(line.id));
    this.on.selected(this.line());
  }

  #nextReading(id) {
    const line = this.line(id);
    const { readings } = infos.get(line.text);
    const next = readings[(readings.indexOf(this.reading(line)) + 1) % readings.length];
    this.change(() => (line.reading = next));
    this.#select(id);
    this.on.selected(line);
  }

  lock(id) {
    const line = this.line(id);
    if (line?.text.trim()) this.change(() => (line.locked = !line.locked));
  }

  move(id, by) {
    const { lines } = this.song;
    const from = lines.findIndex((line) => line.id === id);
    if (!lines[from + by]) return;
    this.change(() => lines.splice(from + by, 0, ...lines.splice(from, 1)));
    this.focus(id);
  }

  insertAfter(id, text = this.line(id).text) {
    const line = newLine();
    this.change(() => {
      if (text !== this.line(id).text) Object.assign(this.line(id), { text, reading: null });
      this.song.lines.splice(this.song.lines.findIndex((one) => one.id === id) + 1, 0, line);
    });
    this.focus(line.id);
  }

  // 光标处分成两行；末尾的就是在下面插一行
  #break(id) {
    const { text } = this.rows.get(id);
    const [before, after] = [text.value.slice(0, text.selectionStart), text.value.slice(text.selectionEnd)];
    if (!after) return this.insertAfter(id, before);
    const { lines } = this.song;
    const line = this.line(id);
    const place = lines.indexOf(line);
    const other = newLine(before ? after : "");
    this.change(() => {
      if (before) {
        other.reading = line.reading;
        Object.assign(line, { text: before, reading: null });
      } else line.text = after;
      lines.splice(before ? place + 1 : place, 0, other);
    });
    this.focus(before ? other.id : id, 0);
  }

  #split(id) {
    const { text } = this.rows.get(id);
    const parts = text.value.split(/\r\n?|\n/);
    const rest = text.value.slice(text.selectionEnd).split(/\r\n?|\n/);
    const line = this.line(id);
    const others = parts.slice(1).map(newLine);
    this.change(() => {
      Object.assign(line, { text: parts[0], reading: null });
      this.song.lines.splice(this.song.lines.indexOf(line) + 1, 0, ...others);
    });
    const last = others.at(-rest.length) ?? line;
    this.focus(last.id, last.text.length - rest[0].length);
  }

  // 与上一行连成一行
  #join(place) {
    const { lines } = this.song;
    const [above, line] = [lines[place - 1], lines[place]];
    const caret = above.text.length;
    if (!line.text) return this.remove(line.id);
    const kept = above.text ? above : line;
    this.change(() => {
      if (above.text) Object.assign(above, { text: above.text + line.text, reading: line.reading });
      lines.splice(lines.indexOf(above.text ? line : above), 1);
    });
    this.focus(kept.id, caret);
  }

  remove(id) {
    const { lines } = this.song;
    const place = lines.findIndex((line) => line.id === id);
    const next = lines[place - 1] ?? lines[place + 1];
    this.selected = null;
    this.change(() => lines.splice(place, 1));
    if (next) this.focus(next.id, next.text.length);
  }

  choose(place) {
    const { id, options, same } = this.choices;
    if (place >= options.length) return;
    this.choices = null;
    const changed = same.map((one) => this.line(one)).filter((line) => line && (line.id === id || !line.locked));
    this.change(() => changed.forEach((line) => Object.assign(line, { text: options[place] })));
    this.focus(id);
    this.on.chosen(changed.length);
  }

  #key(event) {
    const id = Number(event.target.closest(".line")?.dataset.id);
    const typing = event.target.classList.contains("text");
    if (!id || composing(event) || event.ctrlKey || event.metaKey) return;
    const { lines } = this.song;
    const place = lines.findIndex((line) => line.id === id);
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (this.choices && !typing && /^[1-5]$/.test(event.key)) this.choose(Number(event.key) - 1);
    else if (this.choices && event.key === "Escape") {
      this.choices = null;
      this.refresh();
      this.focus(id);
    } else if (event.altKey && step) this.move(id, step);
    else if (event.altKey && event.code === "KeyL") this.lock(id);
    else if (event.altKey && event.code === "KeyR") this.on.rewrite(id);
    else if (typing && step && lines[place + step] && leaves(event.target, step)) this.focus(lines[place + step].id);
    else if (typing && event.key === "Enter") this.#break(id);
    else if (typing && event.key === "Backspace" && at(event.target, 0) && place) this.#join(place);
    else if (typing && event.key === "Backspace" && !lines[place].text && lines[1]) this.remove(id);
    else if (typing && event.key === "Delete" && lines[place + 1] && at(event.target, event.target.value.length)) this.#join(place + 1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  // 服务认的：{行号: 选定的辙}
  readings() {
    const chosen = sungLines(this.song).map((line, place) => [place + 1, line.reading]);
    return Object.fromEntries(chosen.filter(([, reading]) => reading));
  }
}

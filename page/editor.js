// 一首歌的各行：显示、在原处改、移、插、删、留住、选写法与读音。

import { ask } from "./api.js";
import { $, make, soon } from "./dom.js";
import { newLine, sungLines } from "./song.js";

const infos = new Map(); // 一行的文字 → {sung, rhyme, readings, copied}

export class Editor {
  // on：{changed 改了, selected 选中了一行, rewrite 要另写一行}；classes：各辙，次序定颜色
  constructor(book, classes, on) {
    Object.assign(this, { book, classes, on, wanted: [], selected: null, choices: null, rows: new Map() });
    this.commitSoon = soon(400, () => book.commit());
    this.learnSoon = soon(120, () => this.learn());
    $("lines").addEventListener("keydown", (event) => this.#key(event));
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

  // 行数、次序变了：重新摆；光标在哪里还在哪里
  render() {
    const list = $("lines");
    const focused = document.activeElement?.closest?.(".line")?.dataset.id;
    const caret = focused && document.activeElement.selectionStart;
    const lines = this.song?.lines ?? [];
    const kept = new Map();
    for (const line of lines) kept.set(line.id, this.rows.get(line.id) ?? this.#makeRow(line.id));
    this.rows = kept;
    const wanted = [...kept.values()].map((row) => row.item);
    if (wanted.length !== list.children.length || wanted.some((item, place) => list.children[place] !== item)) {
      list.replaceChildren(...wanted);
      if (focused && kept.has(Number(focused))) this.focus(Number(focused), caret);
    }
    $("empty").hidden = lines.length > 0;
    $("title").hidden = !this.song?.title;
    $("title").textContent = this.song?.title ? `《${this.song.title}》${this.song.singer}` : "";
    this.refresh();
    this.learnSoon();
  }

  // 只改各行显示的：字数、韵、留住、选中
  refresh() {
    let number = 0;
    for (const line of this.song?.lines ?? []) {
      const sung = Boolean(line.text.trim());
      this.#refreshRow(line, sung ? ++number : 0);
    }
  }

  focus(id, caret) {
    const row = this.rows.get(id);
    if (!row) return;
    row.text.focus();
    if (caret != null) row.text.setSelectionRange(caret, caret);
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
    if (!line) return;
    const { text } = this.rows.get(line.id);
    const [start, end] = [text.selectionStart ?? text.value.length, text.selectionEnd ?? text.value.length];
    text.setRangeText(word, start, end, "end");
    this.#typed(line.id);
    text.focus();
  }

  // 一行的几种写法，等着选
  offer(id, options) {
    this.choices = { id, options };
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
    row.text = make("input", { type: "text", class: "text", spellcheck: "false", autocapitalize: "off" });
    row.text.addEventListener("input", () => this.#typed(id));
    row.text.addEventListener("focus", () => this.#select(id));
    row.text.addEventListener("blur", () => this.book.commit());
    row.copied = make("span", { class: "copied", tabindex: "0", hidden: true });
    row.rhyme = make("span", { class: "rhyme" });
    row.unsure = make("button", { type: "button", class: "rhyme unsure", hidden: true, onclick: () => this.#nextReading(id) });
    row.count = make("span", { class: "count" });
    row.tools = make("div", { class: "tools", role: "toolbar", "aria-label": "这一行", hidden: true });
    row.options = make("div", { class: "options", role: "group", "aria-label": "选一种写法", hidden: true });
    const marks = make("span", { class: "marks" }, row.copied, row.rhyme, row.unsure, row.count);
    const main = make("div", { class: "row" }, row.number, row.lock, row.text, marks);
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
    const copied = info?.copied?.same?.length > 1 ? info.copied : null;
    row.copied.hidden = !copied;
    row.copied.textContent = copied ? `同 ${[...copied.same].length}` : "";
    row.copied.title = copied ? `「${copied.same}」，${copied.label}` : "";
    row.copied.setAttribute("aria-label", copied ? `与语料相同 ${copied.same.length} 字：${row.copied.title}` : "");
    if (copied) row.copied.dataset.tip = row.copied.title;
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

  #select(id) {
    if (this.selected === id) return;
    this.selected = id;
    if (this.choices && this.choices.id !== id) this.choices = null;
    this.refresh();
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

  insertAfter(id) {
    const line = newLine();
    this.change(() => this.song.lines.splice(this.song.lines.findIndex((one) => one.id === id) + 1, 0, line));
    this.focus(line.id);
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
    const { id, options } = this.choices;
    if (place >= options.length) return;
    this.choices = null;
    const line = this.line(id);
    this.change(() => Object.assign(line, { text: options[place] }));
    this.focus(id);
  }

  #key(event) {
    const id = Number(event.target.closest(".line")?.dataset.id);
    const typing = event.target.classList.contains("text");
    if (!id || event.isComposing || event.ctrlKey || event.metaKey) return;
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
    else if (typing && step && lines[place + step]) this.focus(lines[place + step].id);
    else if (typing && event.key === "Enter") this.insertAfter(id);
    else if (typing && event.key === "Backspace" && !lines[place].text && lines.length > 1) this.remove(id);
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

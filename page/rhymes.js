// 韵典：选中一行的末字，同韵、双押、近韵。

import { ask } from "./api.js";
import { $, make, soon } from "./dom.js";

const PARTS = [
  ["characters", "同韵的字"],
  ["words", "同韵的词"],
  ["double", "双押"],
  ["near", "近韵"],
];
const SHOWN = 80;

let insert = () => {};
let asked = "";

// 一组按钮只占一站：方向键在里面走
function walk(event) {
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const all = [...event.currentTarget.children];
  const next = all[all.indexOf(document.activeElement) + by];
  if (!next) return;
  document.activeElement.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  event.preventDefault();
}

function part(name, title, words) {
  const buttons = words.slice(0, SHOWN).map((word, place) =>
    make("button", { type: "button", tabindex: place ? -1 : 0, onclick: () => insert(word) }, word),
  );
  return make(
    "section",
    {},
    make("h3", { id: `rhymes-${name}` }, title),
    make("div", { class: "words", role: "group", "aria-labelledby": `rhymes-${name}`, onkeydown: walk }, ...buttons),
  );
}

async function look(line, reading) {
  const key = `${line}\n${reading ?? ""}`;
  if (key === asked) return;
  asked = key;
  let page = null;
  try {
    page = line.trim() ? await ask("/api/rhymes", { line: line.slice(-24), reading: reading ?? null }) : null;
  } catch {
    page = null; // 末尾不是汉字
  }
  if (key !== asked) return;
  const parts = page ? PARTS.filter(([name]) => page[name].length).map(([name, title]) => part(name, title, page[name])) : [];
  $("rhymes").replaceChildren(...(page ? [make("h2", {}, page.name), ...parts] : []));
}

export const lookUp = soon(250, look);

export function startRhymes(onInsert) {
  insert = onInsert;
  $("rhyme-of").addEventListener("input", (event) => lookUp(event.target.value, null));
}

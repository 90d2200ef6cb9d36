// 要怎样的一首：各栏、栏旁的错、地址里的设置。

import { $, make } from "./dom.js";
import { textOfFile } from "./files.js";
import { session } from "./store.js";

// [参数, 名称, 写法, 种类]；名称与 inference.py 的参数相同
const GROUPS = [
  [
    "",
    ["prompt", "开头", "今夜我"],
    ["title", "歌名", "远方"],
    ["singer", "歌手", ""],
    ["structure", "段落", "主歌4 副歌4 主歌4 副歌"],
    ["lines", "行数", "8", "number"],
    ["line_chars", "每行字数", "7 或 7,7,5,7 或 5-9"],
    ["rhyme", "韵", "", "rhyme"],
    ["rhyme_scheme", "韵式", "AABA"],
    ["acrostic", "藏头", "今夜有雨"],
    ["keywords", "关键词", "雨,窗台"],
  ],
  [
    "照着写",
    ["like", "样例或句式", "贴一首歌，照它的样子写新词", "text"],
    ["keep_tones", "平仄也照样例", "", "switch"],
    ["cipai", "词牌", "忆江南", "cipai"],
    ["breaks", "停顿", "2-2-3"],
    ["tones", "平仄", "中平中仄仄平平"],
  ],
  [
    "细调",
    ["num_samples", "几首", "1", "number"],
    ["temperature", "温度", "1", "number"],
    ["top_p", "top_p", "0.9", "number"],
    ["top_k", "top_k", "0 为不限", "number"],
    ["repetition_penalty", "重复惩罚", "1", "number"],
    ["candidates", "每行几稿", "1", "number"],
    ["max_copy", "照抄至多几字", "0 为不查", "number"],
    ["max_tokens", "至多几个词元", "200", "number"],
    ["min_tokens", "至少几个词元", "0", "number"],
    ["seed", "种子", "随机", "number"],
  ],
];
const NARROW = new Set(
  "title singer lines line_chars rhyme rhyme_scheme breaks tones num_samples temperature top_p top_k repetition_penalty candidates max_copy max_tokens min_tokens seed".split(" "),
);
const NAMES = GROUPS.flatMap(([, ...fields]) => fields.map(([name]) => name));

const field = (name) => $(`f-${name}`);

function control(name, hint, kind, about) {
  const common = { id: `f-${name}`, name, "aria-describedby": `e-${name}` };
  if (kind === "rhyme") {
    const options = [["", "不限"], ["auto", "随首句"], ...about.classes.map((one) => [one, `${one}辙`])];
    return make("select", common, ...options.map(([value, shown]) => make("option", { value }, shown)));
  }
  if (kind === "text") return make("textarea", { ...common, rows: 3, placeholder: hint });
  if (kind === "switch") return make("input", { ...common, type: "checkbox" });
  const input = make("input", { ...common, type: "text", placeholder: hint });
  if (kind === "number") input.inputMode = "decimal";
  if (kind === "cipai") input.setAttribute("list", "cipai");
  return input;
}

function row([name, label, hint, kind], about) {
  const title = about.flags[name]?.help ?? "歌词的开头";
  const labelled = make("label", { for: `f-${name}`, title }, label);
  const error = make("p", { id: `e-${name}`, class: "error", hidden: true });
  const made = [control(name, hint, kind, about), labelled];
  if (kind !== "switch") made.reverse();
  return make("div", { class: `field${NARROW.has(name) ? " narrow" : ""}${kind === "switch" ? " switch" : ""}` }, ...made, error);
}

export function buildForm(about) {
  const names = make("datalist", { id: "cipai" }, ...about.cipai.map((one) => make("option", { value: one })));
  const groups = GROUPS.map(([title, ...fields]) => {
    const rows = make("div", { class: "rows" }, ...fields.map((one) => row(one, about)));
    return title ? make("details", {}, make("summary", {}, title), rows) : rows;
  });
  const load = make("input", { type: "file", id: "like-file", accept: ".txt,.lrc", hidden: true });
  load.addEventListener("change", async () => {
    try {
      field("like").value = await textOfFile(load.files[0]);
      field("like").dispatchEvent(new Event("input", { bubbles: true }));
    } catch (error) {
      showErrors({ like: error.message });
    }
    load.value = "";
  });
  $("fields").append(...groups, names);
  const upload = make("button", { type: "button", class: "small", onclick: () => load.click() }, "从文件读样例");
  field("like").after(upload, load);
}

// 写明了的各栏
export function settings() {
  const values = {};
  for (const name of NAMES) {
    const input = field(name);
    const value = input.type === "checkbox" ? input.checked || "" : input.value.trim();
    if (name !== "prompt" && value !== "") values[name] = value;
  }
  return values;
}

export const prompt = () => field("prompt").value.trim();

export function showErrors(errors) {
  for (const name of NAMES) {
    const message = errors[name] ?? "";
    $(`e-${name}`).textContent = message;
    $(`e-${name}`).hidden = !message;
    field(name).toggleAttribute("aria-invalid", Boolean(message));
    if (message) {
      field(name).setAttribute("aria-invalid", "true");
      field(name).closest("details")?.setAttribute("open", "");
    }
  }
  const first = NAMES.find((name) => errors[name]);
  return first ? field(first) : null;
}

// 地址里是设置：同样的检查点打开它，写出同样的一首。随机的种子只写在地址上：重开这一页，再写还是随机的
export function toAddress(seed) {
  const values = { prompt: prompt(), ...settings() };
  if (seed != null && values.seed === undefined) {
    values.seed = seed;
    session.set("drawn", String(seed));
  }
  const given = new URLSearchParams(Object.entries(values).filter(([, value]) => value !== ""));
  try {
    history.replaceState(null, "", `#${given}`);
  } catch {
    // Safari 嫌改得太勤
  }
}

// 几栏换成这些
export function fill(values) {
  for (const [name, value] of Object.entries(values)) field(name).value = value;
}

export function fromAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of given) {
    const input = NAMES.includes(name) ? field(name) : null;
    if (!input || (name === "seed" && value === session.get("drawn"))) continue;
    if (input.type === "checkbox") input.checked = value === "true";
    else input.value = value;
    input.closest("details")?.setAttribute("open", "");
  }
}

// 光标与指针：输入法、折行、指着哪里。

// 输入法正拼着：按键是它的（Safari 收尾的那一下不说在拼，只给 229）
export const composing = (event) => event.isComposing || event.keyCode === 229;

export const at = (text, place) => text.selectionStart === place && text.selectionEnd === place;

// 折成几行的，方向键先在里面走
export function leaves(text, step) {
  const folded = text.offsetHeight > 2.5 * parseFloat(getComputedStyle(text).fontSize) + 10;
  return !folded || at(text, step < 0 ? 0 : text.value.length);
}

// 指着标出的字
export function over(under, { clientX, clientY }) {
  const boxes = [...(under.querySelector("mark")?.getClientRects() ?? [])];
  return boxes.some((box) => clientX >= box.left && clientX <= box.right && clientY >= box.top && clientY <= box.bottom);
}

// 浏览器的存放处；不让存的（隐私模式、关了 cookie）就当没有。

function kept(area) {
  const tried = (work, otherwise) => {
    try {
      return work(area());
    } catch {
      return otherwise;
    }
  };
  return {
    get: (name) => tried((store) => store.getItem(name), null),
    // 存不下的是 false
    set: (name, text) => tried((store) => (store.setItem(name, text), true), false),
    remove: (name) => tried((store) => store.removeItem(name)),
    keys: () => tried((store) => Object.keys(store), []),
  };
}

export const local = kept(() => localStorage);
export const session = kept(() => sessionStorage);

// What every page shares: the state in its address, elements made of text alone, and data that other files bring.
"use strict";
const leaderboard = {
  up: document.body.dataset.up,

  // Text without control and direction characters: a record must not turn words around or forge lines.
  printable(text) {
    return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (sign) => (sign === "\n" ? sign : " "));
  },

  // An element with attributes and children; strings become text and never markup.
  element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === true) made.setAttribute(key, "");
      else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
    }
    for (const child of children) {
      if (child !== null && child !== undefined) made.append(typeof child === "string" ? leaderboard.printable(child) : child);
    }
    return made;
  },

  // A table with a caption; cells are strings or elements.
  table(caption, heads, rows) {
    const { element } = leaderboard;
    const head = element("tr", {}, ...heads.map((each) => element("th", { scope: "col" }, each)));
    const body = rows.map((row) =>
      element("tr", {}, ...row.map((each, place) => (place ? element("td", {}, each) : element("th", { scope: "row" }, each)))));
    const made = element("table", {}, element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, ...body));
    return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, made);
  },

  // What the page's address says after #, and how to change it without a new entry in the history.
  state() {
    return new URLSearchParams(location.hash.slice(1));
  },
  remember(changes) {
    const state = leaderboard.state();
    for (const [key, value] of Object.entries(changes)) {
      if (value === "" || value === null) state.delete(key);
      else state.set(key, value);
    }
    const text = state.toString();
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  },

  data(id) {
    const island = document.getElementById(id);
    return island ? JSON.parse(island.textContent) : null;
  },

  // A file of the site that calls leaderboard[kind](data); fetch cannot read files of a disk, a script can be loaded.
  load(path, kind) {
    return new Promise((resolve, reject) => {
      leaderboard[kind] = resolve;
      const script = leaderboard.element("script", { src: leaderboard.up + path });
      script.onerror = () => reject(new Error(`${path} is not there`));
      document.head.append(script);
    });
  },

  number(value, decimals) {
    return value === null || value === undefined ? "—" : value.toFixed(decimals).replace("-", "−");
  },
};

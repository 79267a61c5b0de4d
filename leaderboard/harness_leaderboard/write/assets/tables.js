// Sorting, searching and paging of the tables that the page already holds, the overview's filters, the choice of columns.
"use strict";
(() => {
  const MANY = 100; // rows: beyond that a table is shown in parts

  // Rows without a value stay last, whichever way a column is sorted.
  const order = (direction) => (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const numbers = [Number(a), Number(b)];
    const both = !Number.isNaN(numbers[0]) && !Number.isNaN(numbers[1]);
    return direction * (both ? numbers[0] - numbers[1] : String(a).localeCompare(String(b), "en"));
  };
  DataTable.type("value", { order: { asc: order(1), desc: order(-1) } });

  const tables = {};
  for (const table of document.querySelectorAll("table")) {
    const rows = table.tBodies[0].rows.length;
    if (rows < 2 || table.closest("#trial")) continue;
    const isOverview = table.id === "overview";
    const made = new DataTable(table, {
      paging: rows > MANY, pageLength: MANY / 2, lengthChange: false, info: rows > MANY, autoWidth: false, order: [],
      orderMulti: true, searching: isOverview || rows > 20, columnDefs: [{ targets: "_all", type: "value", orderSequence: ["asc", "desc", ""] }],
      layout: { topStart: null, topEnd: isOverview || rows <= 20 ? null : "search", bottomStart: rows > MANY ? "info" : null, bottomEnd: rows > MANY ? "paging" : null },
    });
    if (table.id) tables[table.id] = made;
    made.table().container().querySelector("nav")?.setAttribute("aria-label", `Parts of: ${table.caption.textContent.trim()}`);
  }

  // The order of the first table with a name is part of the address.
  const keep = tables.overview ?? tables.scores;
  if (keep) {
    const keys = Array.from(keep.table().node().tHead.rows[0].cells, (cell) => /c-(\S+)/.exec(cell.className)?.[1]);
    const sorted = leaderboard.state().get("sort");
    if (sorted) {
      const place = keys.indexOf(sorted.replace(/^-/, ""));
      if (place >= 0) keep.order([[place, sorted.startsWith("-") ? "desc" : "asc"]]).draw();
    }
    keep.on("order", () => {
      const [first] = keep.order();
      leaderboard.remember({ sort: first && first[1] ? (first[1] === "desc" ? "-" : "") + keys[first[0]] : "" });
    });
  }

  // Filters of the overview, kept in the address so that it can be sent to others.
  const form = document.getElementById("filters");
  if (form && tables.overview) {
    const overview = tables.overview;
    const keys = Array.from(overview.table().node().tHead.rows[0].cells, (cell) => /c-(\S+)/.exec(cell.className)[1]);
    const inputs = Array.from(form.querySelectorAll("[data-filter]"));
    const name = (input) => input.dataset.filter || "search";
    const fits = (input, row) => {
      const key = input.dataset.filter;
      if (!key || !input.value) return true;
      const cell = row.cells[keys.indexOf(key)];
      const text = (cell.querySelector(".below") ?? cell).textContent.trim();
      if (key === "seeds") return Number(text) >= Number(input.value);
      return key === "methods" ? text.split(/, | · |beside: /).includes(input.value) : text === input.value;
    };
    overview.search.fixed("filters", (text, data, index) => inputs.every((input) => fits(input, overview.row(index).node())));
    const apply = () => {
      overview.search(inputs.find((input) => !input.dataset.filter).value).draw();
      const shown = overview.rows({ search: "applied" }).count();
      document.getElementById("filters-count").textContent = `${shown} of ${overview.rows().count()} boards`;
    };
    const read = () => {
      const state = leaderboard.state();
      for (const input of inputs) input.value = state.get(name(input)) ?? "";
      apply();
    };
    form.addEventListener("input", () => {
      leaderboard.remember(Object.fromEntries(inputs.map((input) => [name(input), input.value])));
      apply();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => {
      leaderboard.remember(Object.fromEntries(inputs.map((input) => [name(input), ""])));
      setTimeout(apply);
    });
    addEventListener("hashchange", read);
    read();
  }

  // Columns that the reader does not want, by a style sheet of the script's own.
  for (const set of document.querySelectorAll("[data-columns]")) {
    const sheet = new CSSStyleSheet();
    document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
    const boxes = Array.from(set.querySelectorAll("input"));
    const hidden = new Set((leaderboard.state().get("hide") ?? "").split(","));
    for (const box of boxes) box.checked = !hidden.has(box.value);
    const apply = () => {
      const out = boxes.filter((box) => !box.checked).map((box) => box.value);
      sheet.replaceSync(out.map((key) => `#${CSS.escape(set.dataset.columns)} .c-${CSS.escape(key)} { display: none }`).join("\n"));
      leaderboard.remember({ hide: out.join(",") });
    };
    set.addEventListener("change", apply);
    apply();
  }
})();

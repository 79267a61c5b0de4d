// Sorting by a click on a column head. Nothing else on the page needs a script. Rows without a value stay last.
"use strict";
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const table = head.closest("table");
    const column = head.cellIndex;
    const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of head.parentElement.cells) {
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    }
    head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.sort ?? "";
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const isNumber = head.dataset.type === "number";
      return direction * (isNumber ? Number(a) - Number(b) : a.localeCompare(b, "en"));
    };
    for (const body of table.tBodies) {
      const rows = Array.from(body.rows).filter((row) => !row.classList.contains("divider"));
      rows.sort((a, b) => compare(key(a), key(b)));
      for (const row of rows) body.append(row);
    }
  });
}

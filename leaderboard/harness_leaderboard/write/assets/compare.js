// Two methods of a board against each other: what the board claims, then seed by seed and item by item.
"use strict";
(() => {
  const { element, table, number } = leaderboard;
  const board = leaderboard.data("data-figures");
  const known = leaderboard.data("data-pairs");
  const form = document.getElementById("compare-form");
  if (!form || !board || board.rows.length < 2) return;
  const [first, second] = form.querySelectorAll("select");
  const result = document.getElementById("compare-result");
  const rows = new Map(board.rows.map((row) => [row.label, row]));
  for (const select of [first, second]) {
    for (const label of rows.keys()) select.append(element("option", {}, label));
  }
  const state = leaderboard.state();
  const labels = Array.from(rows.keys());
  // What the address says, else the pair that the board opens with; never a method against itself.
  first.value = [state.get("this"), known.opens.this, ...labels].find((label) => rows.has(label));
  second.value = [state.get("against"), known.opens.against, ...labels].find((label) => rows.has(label) && label !== first.value);

  // The board's claim, as this minus against. Of very many pairs the page holds the first that it shows, a file all.
  async function claim(one, other) {
    const find = () => known.pairs.find((each) => (each.first === one && each.second === other) || (each.first === other && each.second === one));
    let found = find();
    if (!found && known.file) {
      known.pairs = await leaderboard.load(known.file, "pairs");
      delete known.file;
      found = find();
    }
    if (!found || found.first === one) return found;
    const turned = (ends) => ends && [ends[1] === null ? null : -ends[1], ends[0] === null ? null : -ends[0]];
    return { ...found, first: one, second: other, difference: -found.difference, newItems: turned(found.newItems), theseItems: turned(found.theseItems) };
  }

  function interval(ends) {
    return ends ? `[${number(ends[0], known.decimals)}, ${number(ends[1], known.decimals)}]` : "—";
  }

  function verdict(found) {
    if (!found) return element("p", { class: "verdict" }, "The board compares only ranked methods with two seeds each: nothing is claimed about these two.");
    const better = found.difference > 0 === board.higherIsBetter ? found.first : found.second;
    const text = found.separated
      ? `${better} is better, on ${known.scope === "new items" ? "new items of the same kind" : "these items"}.`
      : `Not told apart${found.needed ? `; a difference of this size needs about ${found.needed} seeds` : "; more seeds alone would not show a difference of this size, " + known.remedy + " might"}.`;
    // The intervals below are of this pair alone, and the verdict looks at all pairs of the board.
    const ends = found.newItems ?? found.theseItems;
    const alone = !found.separated && ends && ends[0] !== null && ends[1] !== null && (ends[0] > 0 || ends[1] < 0)
      ? " By itself the pair's interval excludes 0; among all pairs of the board that is not enough." : "";
    return element("p", { class: "verdict" }, text + alone);
  }

  function seeds(one, other) {
    const all = [...new Set([...Object.keys(one.seeds), ...Object.keys(other.seeds)])].sort((a, b) => a - b);
    const lines = all.map((seed) => {
      const [a, b] = [one.seeds[seed], other.seeds[seed]];
      return [seed, number(a, known.decimals), number(b, known.decimals), a === undefined || b === undefined ? "—" : number(a - b, known.decimals)];
    });
    return table("Seed by seed", ["Seed", one.label, other.label, "Difference"], lines);
  }

  function items(one, other, scores) {
    const [a, b] = [scores[one.label], scores[other.label]];
    if (!a || !b || a.length !== b.length) return element("p", {}, "The records keep no scores per item for these two.");
    const gaps = a.map((value, place) => [place, value, b[place]]).filter(([, x, y]) => x !== null && y !== null);
    const sign = board.higherIsBetter ? 1 : -1;
    const ahead = gaps.filter(([, x, y]) => sign * (x - y) > 0).length;
    const behind = gaps.filter(([, x, y]) => sign * (x - y) < 0).length;
    const widest = gaps.filter(([, x, y]) => x !== y).sort((p, q) => Math.abs(q[1] - q[2]) - Math.abs(p[1] - p[2])).slice(0, 20);
    const lines = widest.map(([place, x, y]) => [`${place}`, number(x, 3), number(y, 3), number(x - y, 3)]);
    const text = `Of ${gaps.length} items, means over seeds: ${one.label} is ahead on ${ahead}, behind on ${behind}, equal on ${gaps.length - ahead - behind}.`;
    return element("div", {}, element("p", {}, text),
      lines.length ? table("Items where they differ most, by place in the data", ["Item", one.label, other.label, "Difference"], lines) : null);
  }

  let loaded = null;
  async function show() {
    const [one, other] = [rows.get(first.value), rows.get(second.value)];
    if (one === other) {
      result.replaceChildren(element("p", {}, "Choose two different methods."));
      return;
    }
    const found = await claim(one.label, other.label);
    if (one !== rows.get(first.value) || other !== rows.get(second.value)) return; // another choice was made meanwhile
    const parts = [verdict(found)];
    if (found) {
      parts.push(table(`${one.label} minus ${other.label}`, ["Difference", "95 %, new items", "95 %, these items", "p, corrected", "Seeds"],
        [[number(found.difference, known.decimals), interval(found.newItems), interval(found.theseItems),
          found.p < 0.001 ? "< 0.001" : number(found.p, 3), found.paired ? `${found.seeds}, shared` : `${found.seeds}, not shared`]]));
    }
    parts.push(seeds(one, other));
    const place = element("div", {});
    if (known.items) {
      const button = element("button", { type: "button", id: "compare-items" }, "Item by item");
      button.addEventListener("click", async () => {
        loaded ??= await leaderboard.load(known.items, "items");
        place.replaceChildren(items(one, other, loaded));
      });
      place.append(button);
    } else {
      place.append(element("p", { class: "quiet" }, "There are no scores per item here."));
    }
    result.replaceChildren(...parts, place);
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", () => {
    leaderboard.remember({ this: first.value, against: second.value });
    show();
  });
  show();
})();

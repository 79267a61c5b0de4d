// While a sweep runs: how far it is, the curves of what trains, what failed, and that there are newer pages.
"use strict";
(() => {
  const { element, table } = leaderboard;
  const EVERY = 2000; // milliseconds
  const place = document.getElementById("progress-text");
  const below = document.getElementById("progress-failures");
  let first = null;

  function show(news) {
    first ??= news.version;
    const newer = news.version !== first;
    const text = `${news.records} records, ${news.failure_count} of them did not finish; ${news.running.length} trials training now.`;
    const link = newer ? element("a", { href: "index.html", id: "progress-newer" }, "There are new records: show them.") : null;
    place.replaceChildren(text, ...(link ? [" ", link] : []));
    const parts = [];
    if (news.running.length) {
      parts.push(table("Training now", ["Trial", "Step", "Loss"], news.running.map((each) => {
        const loss = each.points["train/loss"]?.at(-1)?.[1];
        return [each.label, each.steps ? `${each.step} of ${each.steps}` : `${each.step}`, typeof loss === "number" ? loss.toPrecision(4) : "—"];
      })));
      const curves = Object.fromEntries(news.running.filter((each) => each.points["train/loss"]?.length > 1).map((each) => [each.label, each.points["train/loss"].filter(([, value]) => value !== null)]));
      if (Object.keys(curves).length) parts.push(leaderboard.curvesOf(curves, "Training loss"));
    }
    if (news.failures.length) {
      parts.push(element("details", {}, element("summary", {}, `${news.failure_count} did not finish`),
        element("ul", { class: "reasons" }, ...news.failures.map((each) => element("li", {}, each)))));
    }
    const open = below.querySelector("details")?.open;
    below.replaceChildren(...parts);
    if (open) below.querySelector("details").open = true;
  }

  async function ask() {
    try {
      show(await (await fetch("live.json")).json());
    } catch {
      place.textContent = "The server does not answer any more.";
    }
    setTimeout(ask, EVERY);
  }
  ask();
})();

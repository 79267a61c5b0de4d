// One trial, named by its id after # in the address: specification, result, environment, and how to make it again.
"use strict";
(() => {
  const { element, table } = leaderboard;
  const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  const count = (value) => (Number.isInteger(value) ? value.toLocaleString("en") : value);
  const counts = (caption, found) => pairs(caption, Object.fromEntries(Object.entries(found).map(([key, value]) => [key, count(value)])));
  const time = (value) => value.replace("T", " ").replace(/(\+00:00|Z)$/, " UTC");
  const pairs = (caption, found) => table(caption, ["Name", "Value"], Object.entries(found).map(([key, value]) => [key, text(value)]));

  function flat(value, prefix = "") {
    const found = {};
    for (const [key, each] of Object.entries(value)) {
      if (each && typeof each === "object" && !Array.isArray(each)) Object.assign(found, flat(each, `${prefix}${key}.`));
      else found[prefix + key] = each;
    }
    return found;
  }

  function link(path, title) {
    return element("a", { href: path.split("/").map((part) => (part === ".." ? part : encodeURIComponent(part))).join("/") }, title);
  }

  function copy(command) {
    const button = element("button", { type: "button" }, "Copy");
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(command);
      button.textContent = "Copied";
    });
    return button;
  }

  function render(id, trial, shared) {
    document.title = trial.label;
    document.getElementById("trial-title").textContent = trial.label;
    const score = trial.metrics[trial.metric];
    const parts = [
      element("p", { class: "verdict" }, `${trial.state.replaceAll("_", " ")}${score === null || score === undefined ? "" : `, ${trial.metric} ${score}`}`),
      element("p", {}, `Trial ${id}, ${trial.spec.purpose === "report" ? "reported" : "of a search: its scores, of validation data, choose a setting and are not results"}, ${time(trial.started)} to ${time(trial.finished)}.`),
      element("p", {}, "See ", element("a", { href: `methods/${trial.method}.html` }, `the method ${trial.spec.method}`), ", ",
        element("a", { href: `tasks/${trial.task}.html` }, `the task ${trial.spec.task}`),
        ...(trial.board ? [", ", element("a", { href: trial.board }, "its board")] : []),
        ...(trial.record ? [", ", link(`${trial.folder}/${trial.record}`, "its record"),
          ...Object.entries(trial.artifacts).flatMap(([name, file]) => [", ", link(`${trial.folder}/${file}`, `its ${name}`)])] : []), "."),
    ];
    if (trial.error.type || trial.error.message) {
      parts.push(element("h2", {}, "Why it did not finish"), element("p", { class: "bad" }, `${trial.error.type ?? ""}: ${trial.error.message ?? ""}`));
      if (trial.error.traceback) parts.push(element("details", {}, element("summary", {}, "Traceback"), element("pre", { tabindex: "0" }, trial.error.traceback)));
    }
    if (trial.attempts.length) parts.push(element("p", {}, `Earlier tries: ${trial.attempts.join("; ")}.`));
    parts.push(element("h2", {}, "The command that makes it again"), element("pre", { tabindex: "0" }, trial.command), copy(trial.command),
      element("p", { class: "quiet" }, "With the same versions, data and base model it has the same id. A finished trial is not trained twice: give a new --results."),
      element("h2", {}, "Results"),
      ...(Object.keys(trial.metrics).length ? [table(trial.spec.purpose === "report" ? "Final metrics" : "Final metrics, of validation data", ["Metric", "Value", "Why none"],
        Object.entries(trial.metrics).map(([key, value]) => [key, text(value), trial.reasons[key] ?? ""]))] : []),
      counts("Parameters", trial.counts), counts("Cost", trial.cost),
      element("h2", {}, "Specification"), pairs("Everything that decides the result", flat(trial.spec)),
      element("h2", {}, "Environment"), pairs("What it ran on", flat(shared[trial.environment])));
    document.getElementById("trial").replaceChildren(...parts);
    const curves = document.getElementById("trial-curves");
    curves.hidden = Object.keys(trial.curves).length === 0;
    if (!curves.hidden) leaderboard.drawTrial(trial.curves, [trial.metric, "train/loss"]);
  }

  async function show() {
    const id = location.hash.slice(1);
    const place = document.getElementById("trial");
    if (!/^[0-9a-f]{16}$/.test(id)) {
      place.replaceChildren(element("p", {}, "The address must end in # and a trial's id of 16 digits and letters."));
      return;
    }
    try {
      const { trials, shared } = await leaderboard.load(`data/trials/${id.slice(0, 2)}.js`, "trials");
      if (!Object.hasOwn(trials, id)) throw new Error(id);
      render(id, trials[id], shared);
    } catch {
      place.replaceChildren(element("p", {}, `There is no trial ${id} in these results.`));
    }
  }
  addEventListener("hashchange", show);
  show();
})();

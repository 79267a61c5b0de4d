// Figures, drawn by Observable Plot from the numbers that the page holds; redrawn when a choice or the width changes.
"use strict";
(() => {
  const { element } = leaderboard;
  const COLORS = [0, 1, 2, 3, 4, 5].map((each) => `var(--series-${each})`);
  const DASHES = ["none", "5 3", "2 2", "8 3 2 3"];
  const GREY = "var(--series-6)";
  const LINE = 12; // pixels between two labels
  const LETTER = 6; // pixels that a letter of a label takes
  const FAR = 5; // times the usual distance from the best
  const MOST_ENDS = 24; // labels that fit beside curves
  const MOST_LABELS = 40; // that a figure of points can hold; beyond, pointing at one shows its name

  // Gives each point's name the free place that is nearest to the point, so that none covers another name or a point.
  function apart(xs, ys, names) {
    const taken = xs.map((left, each) => ({ left: left - 6, right: left + 6, at: ys[each], own: each }));
    const shifts = d3.range(0, 4 * xs.length).flatMap((each) => (each ? [each, -each] : [0])).map((each) => (each * LINE) / 2);
    const placed = [...ys];
    for (const each of d3.sort(d3.range(xs.length), (each) => ys[each])) {
      const [left, right] = [xs[each] + 7, xs[each] + 9 + LETTER * names[each].length];
      const isFree = (at) => taken.every((other) => other.own === each || other.right < left || other.left > right || Math.abs(other.at - at) >= LINE - 1);
      placed[each] = shifts.map((shift) => ys[each] + shift).find(isFree) ?? ys[each];
      taken.push({ left, right, at: placed[each], own: -1 });
    }
    return placed;
  }

  // Names beside points, and a line from a point to its name where that had to move away.
  function withNames(points, x, color) {
    const names = points.map((each) => each.name);
    const text = (data, facets, channels, { x: across, y: down }) => {
      const [xs, ys] = [Array.from(channels.x.value, across), Array.from(channels.y.value, down)];
      return { data, facets, channels: { x: { value: xs }, y: { value: apart(xs, ys, names) } } };
    };
    const leader = (data, facets, channels, { x: across, y: down }) => {
      const [xs, ys] = [Array.from(channels.x1.value, across), Array.from(channels.y1.value, down)];
      const ends = apart(xs, ys, names).map((at, each) => (Math.abs(at - ys[each]) < LINE ? ys[each] : at));
      const across2 = xs.map((at, each) => (ends[each] === ys[each] ? at : at + 7));
      return { data, facets, channels: { x1: { value: xs }, y1: { value: ys }, x2: { value: across2 }, y2: { value: ends } } };
    };
    return [
      Plot.link(points, Plot.initializer({ x1: x, y1: "y", x2: x, y2: "y", stroke: color, strokeOpacity: 0.6 }, leader)),
      Plot.text(points, Plot.initializer({ x, y: "y", text: "name", dx: 8, textAnchor: "start", fill: color, stroke: "var(--card)", fontSize: 11 }, text)),
    ];
  }

  // A method looks the same in every figure of a page: those compared by colour, then by dashes; references are grey.
  function looks(labels, references = []) {
    const aside = [...new Set(references)].sort();
    const sorted = [...new Set(labels)].filter((label) => !aside.includes(label)).sort();
    const place = new Map([...sorted, ...aside].map((label, index) => [label, index]));
    return {
      place: (label) => place.get(label),
      color: (label) => (aside.includes(label) ? GREY : COLORS[place.get(label) % COLORS.length]),
      dash: (label) => DASHES[(aside.includes(label) ? aside.indexOf(label) : Math.floor(place.get(label) / COLORS.length)) % DASHES.length],
    };
  }

  const looksOf = (rows, name = "label", besides = []) => looks([...rows.map((row) => row[name]), ...besides], rows.filter((row) => row.reference).map((row) => row[name]));

  // A line a label; Plot dashes all lines of a mark alike.
  function dashed(points, look, options) {
    return d3.groups(points, (each) => look.dash(each.label)).map(([dash, some]) => Plot.line(some, { z: "label", stroke: (each) => look.color(each.label), strokeDasharray: dash, ...options }));
  }

  function base(canvas, label, options) {
    return {
      width: Math.max(300, canvas.clientWidth), height: 340, marginLeft: 56, marginBottom: 42, className: "plot", ariaLabel: label,
      style: { background: "none", fontFamily: "var(--sans)", fontSize: "12px", overflow: "visible" }, ...options,
    };
  }

  function fill(select, choices) {
    if (!select || select.options.length) return;
    for (const [value, text] of choices) select.append(element("option", { value }, text));
  }

  // Moves labels at the right of curves apart, so that none covers another.
  function spread(ends, low, high, height) {
    const gap = ((high - low) * LINE) / height || 1;
    const placed = ends.map((each) => ({ ...each, at: each.y })).sort((a, b) => a.at - b.at);
    for (let round = 0; round < 60; round += 1) {
      for (let index = 1; index < placed.length; index += 1) {
        const lack = gap - (placed[index].at - placed[index - 1].at);
        if (lack > 0) {
          placed[index].at += lack / 2;
          placed[index - 1].at -= lack / 2;
        }
      }
      if (placed.length && placed[0].at < low) placed[0].at = low; // not across the axis
    }
    return placed;
  }

  function frontier(points, x, higherIsBetter) {
    const sign = higherIsBetter ? 1 : -1;
    const sorted = [...points].sort((a, b) => a[x] - b[x] || sign * (b.score - a.score));
    const found = [];
    for (const each of sorted) if (!found.length || sign * (each.score - found.at(-1).score) > 0) found.push(each);
    return found;
  }

  // How far from the best score a figure reaches: what is much worse than most would press all others onto one line, so it
  // stands at the edge, with its value beside its name. No edge lies where the metric has no values.
  function reach(scores, higherIsBetter, bounds) {
    const best = (higherIsBetter ? d3.max : d3.min)(scores);
    const usual = d3.median(scores, (each) => Math.abs(each - best));
    const edge = best + (higherIsBetter ? -1 : 1) * FAR * usual;
    const farthest = Math.min(Math.max(edge, bounds[0] ?? -Infinity), bounds[1] ?? Infinity);
    const isBeyond = (score) => usual > 0 && (higherIsBetter ? score < farthest : score > farthest);
    const place = (score) => (isBeyond(score) ? farthest : score);
    const isNear = (score) => usual === 0 || Math.abs(score - best) <= FAR * usual;
    return { isBeyond, isNear, place, name: (label, score) => (isBeyond(score) ? `${label} ${higherIsBetter ? "↓" : "↑"} ${Number(score.toPrecision(3))}` : label) };
  }

  const COSTS = [["parameters", "Trained adapter parameters"], ["milliseconds", "Milliseconds per step, alone"], ["bytes", "Peak memory in bytes, alone"]];
  const SHAPES = ["circle", "square", "triangle", "diamond", "star", "wye", "cross"];

  function scatter(canvas, title, points, x, xTitle, page, look, extra = () => [], isSize = false, isNamed = () => true) {
    const yTitle = page.metric;
    const { isBeyond, isNear, place, name } = reach(points.map((each) => each.score), page.higherIsBetter, page.bounds);
    const [low, high] = d3.extent(points.flatMap((each) => (each.interval && !isBeyond(each.score) ? each.interval : [])));
    const guessing = page.chance !== null && (isNear(page.chance) || (low <= page.chance && page.chance <= high)) ? [page.chance] : [];
    points = points.map((each) => ({ ...each, y: place(each.score), name: name(each.label, each.score) }));
    const level = isSize ? points.filter((each) => each.reference && each[x] === 0) : []; // a line across, not a point far off
    const flat = level.length < points.length ? level : [];
    points = points.filter((each) => !flat.includes(each));
    const shown = points.filter(isNamed);
    const sizes = points.map((each) => each[x]);
    const log = Math.min(...sizes) > 0 && Math.max(...sizes) > 3 * Math.min(...sizes);
    const isCount = Math.min(...sizes) >= 1000 || Math.max(...sizes) >= 10000;
    const text = (each) => `${each.label}${each.budget ? `\nbudget ${each.budget}` : ""}\n${xTitle}: ${each[x].toLocaleString("en")}\n${yTitle}: ${each.score}`;
    const color = (each) => look.color(each.label);
    return Plot.plot(base(canvas, `${title}: ${yTitle} against ${xTitle}`, {
      marginRight: 70, x: { label: xTitle, type: log ? "log" : "linear", grid: false, inset: 24, ticks: Math.max(2, Math.round(canvas.clientWidth / 120)), tickFormat: isCount ? "~s" : undefined },
      y: { label: yTitle, grid: true, inset: 12 },
      marks: [
        ...extra(points),
        Plot.ruleY(guessing, { stroke: "currentColor", strokeOpacity: 0.6, strokeDasharray: "1 3" }),
        Plot.text(guessing, { y: (each) => each, text: () => "guessing", frameAnchor: "right", textAnchor: "start", dx: 4, fill: "currentColor", fontSize: 11 }),
        Plot.ruleY(flat, { y: "y", stroke: GREY, strokeDasharray: "2 3" }),
        Plot.text(flat, { y: "y", text: "name", frameAnchor: "right", textAnchor: "start", dx: 4, fill: "currentColor", fontSize: 11 }),
        Plot.ruleX(points.filter((each) => each.interval && !isBeyond(each.score)), { x, y1: (each) => place(each.interval[0]), y2: (each) => place(each.interval[1]), stroke: color, strokeOpacity: 0.55 }),
        Plot.dot(points, { x, y: "y", fill: color, symbol: (each) => SHAPES[look.place(each.label) % SHAPES.length], r: 4.5 }),
        ...(shown.length > MOST_LABELS ? [] : withNames(shown, x, color)),
        Plot.tip(points, Plot.pointer({ x, y: "y", title: text, fill: "var(--card)", stroke: "var(--line)" })),
      ],
      symbol: { type: "identity" }, color: { type: "identity" },
    }));
  }

  const draw = {
    pareto(figure, canvas, controls, page) {
      const known = COSTS.filter(([key]) => page.rows.some((row) => row[key] !== null && row.score !== null));
      fill(controls.x, [...known.slice(1), ...known.slice(0, 1)]); // at one budget all have about as many parameters
      const x = controls.x.value;
      const points = page.rows.filter((row) => row.score !== null && row[x] !== null);
      if (!points.length) return null;
      const extra = (placed) => [Plot.line(frontier(placed.filter((row) => !row.reference), x, page.higherIsBetter), { x, y: "y", stroke: "currentColor", strokeOpacity: 0.3, strokeDasharray: "4 3", curve: "step-after" })];
      const title = COSTS.find(([key]) => key === x)[1];
      return scatter(canvas, "What a score costs", points, x, title, page, looksOf(page.rows), extra, x === "parameters");
    },

    curves(figure, canvas, controls, page) {
      fill(controls.metric, [...new Map(page.curves.map((each) => [each.metric, each.title]))]);
      const found = page.curves.filter((each) => each.metric === controls.metric.value);
      if (!found.length) return null;
      return lines(canvas, found, found[0].title, looksOf(page.rows));
    },

    search(figure, canvas, controls, page) {
      if (!page.search.length) return null;
      const groups = d3.rollups(page.search, (each) => ({ score: d3.mean(each, (one) => one.score), chosen: each.some((one) => one.chosen) }), (each) => each.label, (each) => each.rate);
      const points = groups.flatMap(([label, rates]) => rates.map(([rate, found]) => ({ label, rate, ...found }))).sort((a, b) => a.rate - b.rate);
      const look = looksOf(page.rows, "method", points.map((each) => each.label));
      const { place, name } = reach(points.map((each) => each.score), page.higherIsBetter, page.bounds);
      for (const each of points) each.y = place(each.score);
      const ends = d3.groups(points, (each) => each.label).map(([label, each]) => ({ label, text: name(label, each.at(-1).score), x: each.at(-1).rate, y: each.at(-1).y }));
      const [low, high] = d3.extent(points, (each) => each.y);
      return Plot.plot(base(canvas, `Score against learning rate of the search: ${page.metric}`, {
        marginRight: 110, x: { label: "Learning rate", type: "log", ticks: Math.max(2, Math.round(canvas.clientWidth / 120)), tickFormat: ".0e" }, y: { label: `${page.metric}, validation`, grid: true }, color: { type: "identity" },
        marks: [
          ...dashed(points, look, { x: "rate", y: "y", strokeWidth: 1.6 }),
          Plot.dot(points, { x: "rate", y: "y", stroke: (each) => look.color(each.label), fill: (each) => (each.chosen ? look.color(each.label) : "var(--card)"), r: 4 }),
          labels(spread(ends, low, high, 280), look),
          Plot.tip(points, Plot.pointer({ x: "rate", y: "y", title: (each) => `${each.label}\nrate ${each.rate}\n${each.score.toPrecision(4)}`, fill: "var(--card)", stroke: "var(--line)" })),
        ],
      }));
    },

    metrics(figure, canvas, controls, page) {
      const names = Object.keys(page.metrics).filter((name) => page.metrics[name] !== page.metric && page.rows.some((row) => typeof row.metrics[name] === "number"));
      names.sort((a, b) => /forget/.test(b) - /forget/.test(a));
      if (!names.length) return null;
      fill(controls.x, names.map((name) => [name, page.metrics[name]]));
      const points = page.rows.filter((row) => row.score !== null && typeof row.metrics[controls.x.value] === "number").map((row) => ({ ...row, other: row.metrics[controls.x.value] }));
      return scatter(canvas, "One metric against another", points, "other", page.metrics[controls.x.value], page, looksOf(page.rows));
    },

    budgets(figure, canvas, controls, page) {
      fill(controls.group, page.groups.map((group, place) => [`${place}`, group.title]));
      const group = page.groups[Number(controls.group.value)];
      const settings = [...new Set(group.rows.flatMap((row) => Object.keys(row.settings)))].sort();
      fill(controls.x, [...COSTS, ...settings.map((name) => [`settings.${name}`, `Setting ${name}`]), ["place", "Rank"]]);
      const x = controls.x.value;
      const value = (row) => (x === "place" ? row.rank && (row.rank[0] + row.rank[1]) / 2 : x.startsWith("settings.") ? row.settings[x.slice(9)] : row[x]);
      const points = group.rows.map((row) => ({ ...row, at: value(row) ?? null })).filter((row) => row.at !== null && row.score !== null);
      if (!points.length) return null;
      const look = looksOf(group.rows);
      const extra = (placed) => dashed(placed.filter((row) => !row.reference).sort((a, b) => a.at - b.at), look, { x: "at", y: "y", strokeOpacity: 0.6 });
      const last = d3.rollup(points, (each) => d3.max(each, (row) => row.at), (each) => each.label); // a line has one name, at its end
      const isNamed = (row) => row.reference || row.at === last.get(row.label);
      return scatter(canvas, "Across budgets", points, "at", controls.x.selectedOptions[0].textContent, group, look, extra, x === "parameters", isNamed);
    },
  };

  function labels(placed, look) {
    return Plot.text(placed.length > MOST_ENDS ? [] : placed, { x: "x", y: "at", text: ({ text, label }) => text ?? (label.length > 18 ? `${label.slice(0, 17)}…` : label), dx: 8, textAnchor: "start", fill: (each) => look.color(each.label), fontSize: 11, clip: false });
  }

  function lines(canvas, found, title, look) {
    const points = found.flatMap((each) => each.points.map(([step, mean, low, high]) => ({ label: each.label, step, mean, low, high })));
    const stopped = found.flatMap((each) => each.stopped.map(([step, mean]) => ({ label: each.label, step, mean })));
    const all = [...points, ...stopped];
    if (!all.length) return null;
    const [low, high] = d3.extent(all.flatMap((each) => [each.mean, each.low ?? each.mean, each.high ?? each.mean])); // as drawn
    const last = d3.max(all, (each) => each.step);
    const ends = found.filter((each) => each.points.length).map((each) => ({ label: each.label, x: last, y: each.points.at(-1)[1] }));
    return Plot.plot(base(canvas, `${title} by optimizer step`, {
      marginRight: 120, x: { label: "Optimizer step", ticks: Math.max(2, Math.round(canvas.clientWidth / 110)) }, y: { label: title, grid: true }, color: { type: "identity" },
      marks: [
        Plot.areaY(points, { x: "step", y1: "low", y2: "high", z: "label", fill: (each) => look.color(each.label), fillOpacity: 0.12 }),
        ...dashed(points, look, { x: "step", y: "mean", strokeWidth: 1.7 }),
        Plot.dot(points.filter((each) => found.find((one) => one.label === each.label).points.length === 1), { x: "step", y: "mean", fill: (each) => look.color(each.label) }),
        Plot.dot(stopped, { x: "step", y: "mean", symbol: "times", stroke: (each) => look.color(each.label), r: 5 }),
        labels(spread(ends, low, high, 280), look),
        Plot.tip(points, Plot.pointer({ x: "step", y: "mean", title: (each) => `${each.label}\nstep ${each.step}\n${each.mean.toPrecision(4)}`, fill: "var(--card)", stroke: "var(--line)" })),
      ],
    }));
  }

  // An image of its own needs colours and fonts that do not come from the page.
  function standalone(svg) {
    const copy = svg.cloneNode(true);
    const pairs = [[svg, copy], ...Array.from(svg.querySelectorAll("*"), (each, place) => [each, copy.querySelectorAll("*")[place]])];
    for (const [from, to] of pairs) {
      const style = getComputedStyle(from);
      for (const name of ["fill", "stroke", "color", "font-family", "font-size", "text-anchor"]) to.setAttribute(name, style.getPropertyValue(name));
      to.removeAttribute("style");
    }
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    const ground = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [name, value] of [["width", "100%"], ["height", "100%"], ["fill", getComputedStyle(document.body).backgroundColor]]) ground.setAttribute(name, value);
    copy.prepend(ground);
    return new XMLSerializer().serializeToString(copy);
  }

  function download(blob, name) {
    const address = URL.createObjectURL(blob);
    element("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }

  function save(svg, kind, name) {
    const text = standalone(svg);
    if (kind === "svg") {
      download(new Blob([text], { type: "image/svg+xml" }), `${name}.svg`);
      return;
    }
    const image = new Image();
    image.onload = () => {
      const picture = element("canvas", { width: svg.clientWidth * 2, height: svg.clientHeight * 2 });
      picture.getContext("2d").drawImage(image, 0, 0, picture.width, picture.height);
      picture.toBlob((blob) => download(blob, `${name}.png`), "image/png");
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  }

  function start(figure, page) {
    const canvas = figure.querySelector(".canvas");
    const controls = Object.fromEntries(Array.from(figure.querySelectorAll("select"), (each) => [each.dataset.control, each]));
    const name = figure.dataset.figure;
    const redraw = () => {
      const made = draw[name](figure, canvas, controls, page);
      figure.hidden = made === null;
      if (made !== null) {
        canvas.replaceChildren(named(made));
      }
    };
    figure.addEventListener("change", redraw);
    for (const button of figure.querySelectorAll("[data-save]")) {
      button.setAttribute("aria-label", `Save this figure as ${button.textContent}`);
      button.addEventListener("click", () => save(canvas.querySelector("svg"), button.dataset.save, `${document.title.replace(/[^\w]+/g, "-")}-${name}`));
    }
    let width = 0;
    new ResizeObserver(() => {
      if (Math.abs(canvas.clientWidth - width) > 4) {
        width = canvas.clientWidth;
        redraw();
      }
    }).observe(canvas);
  }

  // Curves of one metric as an element, for pages that make their figures themselves.
  leaderboard.curvesOf = (curves, title) => {
    const found = Object.entries(curves).map(([label, points]) => ({ label, points: points.map(([step, value]) => [step, value, value, value]), stopped: [] }));
    const made = lines({ clientWidth: Math.min(900, document.getElementById("main").clientWidth - 40) }, found, title, looks(Object.keys(curves)));
    return named(made);
  };

  // A figure is one picture with one name; its parts have none.
  function named(made) {
    made.setAttribute("role", "img");
    for (const part of made.querySelectorAll("[aria-label], [aria-description]")) {
      part.removeAttribute("aria-label");
      part.removeAttribute("aria-description");
    }
    return made;
  }

  leaderboard.drawTrial = (curves, first) => {
    draw.trial = (figure, canvas, controls) => {
      const names = Object.keys(curves).sort((a, b) => first.includes(b) - first.includes(a) || a.localeCompare(b, "en"));
      fill(controls.metric, names.map((key) => [key, key]));
      const metric = controls.metric.value;
      const points = curves[metric].map(([step, value]) => [step, value, value, value]);
      return lines(canvas, [{ label: metric, points, stopped: [] }], metric, looks([metric]));
    };
    start(document.querySelector('[data-figure="trial"]'), null);
  };

  const page = leaderboard.data("data-figures") ?? leaderboard.data("data-budgets");
  for (const figure of document.querySelectorAll("[data-figure]")) {
    if (figure.dataset.figure !== "trial" && page) start(figure, page);
  }
})();

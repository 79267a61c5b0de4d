"""Draw the pictures of docs/analyses.md, and write what stands beside them, from a results folder with adapters.

    python benchmarks/analyses/pictures.py RESULTS [--model MODEL] [--docs FOLDER] [--workers N] [--only measure|draw]

What an analysis found is kept in RESULTS/analyses and not measured again: remove it to measure anew. With
``--only measure`` nothing is drawn, with ``--only draw`` neither adapters nor the base model are needed. The means
behind the pictures are printed; the page's numbers are among them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from page import section

from harness.planning.registry import build_registry
from harness.results.figure import figure
from harness.results.findings import About, Findings, read, table
from harness.results.store import Store

HERE = Path(__file__).parent
TASK = "continual/finance"
FIRST, AFTER = "## On a small model\n", "## Your own\n"  # the page's section, and what follows it


@dataclass(frozen=True)
class Picture:
    """What one picture shows.

    Attributes:
        analysis: Its name.
        needed: Whose trials the paper's statement is about; none for an analysis of the base model.
        methods: Whose are drawn where they are there, in the order of the legend.
    """

    analysis: str
    needed: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()


PICTURES = (
    Picture("spectrum", ("lora", "mora"), ("lora", "relora", "melora", "mora", "remora", "full")),
    Picture("subspace", ("lora", "milora", "pissa"), ("lora", "milora", "pissa", "mora", "full")),
    Picture("amplification", ("lora", "milora"), ("lora", "dora", "milora", "pissa", "mora", "full")),
    Picture("quantisation-error"),
    Picture("fast-svd"),
)


def trials(store: Store, picture: Picture) -> list[str]:
    """Return the id of one finished trial of each method that has one.

    Raises:
        SystemExit: One that is needed has none.
    """
    found = {}
    for record in store.records():
        trial = record.trial
        if record.state == "complete" and trial.purpose == "report" and trial.task == TASK:
            found.setdefault(trial.method, trial.id)
    if missing := [method for method in picture.needed if method not in found]:
        sys.exit(
            f"no finished trial of {', '.join(missing)} on {TASK}: run smollm2-finance.toml beside this file first"
        )
    return [found[method] for method in picture.methods if method in found]


def measure(results: Path, model: str, workers: int) -> None:
    """Run every analysis whose findings are not there: several trials at a time, then the base model alone."""

    def one(arguments: list[str]) -> None:
        command = [sys.executable, "-m", "harness", "analyse", *arguments, "--results", str(results)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    store = Store(str(results))
    todo = [
        [picture.analysis, trial]
        for picture in PICTURES
        for trial in trials(store, picture)
        if not (results / "analyses" / f"{picture.analysis}-{trial}.json").exists()
    ]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, todo))
    for picture in PICTURES:  # alone: one of them takes the time
        if not picture.methods and not kept(results, picture.analysis):
            one([picture.analysis, "--task", TASK, "--model", model])


def kept(results: Path, analysis: str) -> list[Findings]:
    """Return the findings of an analysis with its usual settings."""
    usual = asdict(build_registry(()).analysis(analysis).Config())
    found = (read(path.read_bytes()) for path in sorted((results / "analyses").glob(f"{analysis}-*.json")))
    return [each for each in found if dict(each.settings) == usual]


def of_picture(results: Path, picture: Picture) -> list[Findings]:
    """Return what a picture shows, the label of a trial's findings being its method.

    Raises:
        SystemExit: Findings that it needs are not there.
    """
    several, missing = kept(results, picture.analysis), []
    if picture.methods:
        found = {str(each.subject["label"]).rsplit("/", 2)[0].removeprefix(f"{TASK}/"): each for each in several}
        missing = [method for method in picture.needed if method not in found]
        several = [
            replace(found[method], subject={**found[method].subject, "label": method})
            for method in picture.methods
            if method in found
        ]
    if missing or not several:
        whose = f" on trials of {', '.join(missing)}" if missing else ""
        sys.exit(f"{results / 'analyses'} has no findings of {picture.analysis}{whose}: measure first")
    return several


def other_ranks(results: Path) -> list[Findings]:
    """Return the error of quantising at ranks that somebody looked at besides the usual one, in one iteration."""
    found = (read(path.read_bytes()) for path in sorted((results / "analyses").glob("quantisation-error-*.json")))
    usual = kept(results, "quantisation-error")[0].settings
    return [each for each in found if {**each.settings, "r": 0} == {**usual, "r": 0} and each.settings != usual]


def draw(results: Path, docs: Path) -> None:
    """Draw every picture, write the page's section, and print the means behind both."""
    registry, every = build_registry(()), {}
    for picture in PICTURES:
        about = About.of(registry.analysis(picture.analysis))  # as it is said today
        every[picture.analysis] = [replace(each, about=about) for each in of_picture(results, picture)]
    for name, several in every.items():
        print(f"\n## {name}\n\n{table(several)}")
        figure(several, docs / f"analysis-{name}.png")
    page = docs / "analyses.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(FIRST)
    _, last, after = rest.partition(AFTER)
    every["quantisation-error"] += other_ranks(results)
    recipe = tomllib.loads((HERE / "smollm2-finance.toml").read_text(encoding="utf-8"))["recipe"]
    page.write_text(f"{before}{section(every, recipe)}\n{last}{after}", encoding="utf-8", newline="\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct", help="the base model of the trials")
    parser.add_argument("--docs", type=Path, default=HERE.parents[1] / "docs")
    parser.add_argument("--workers", type=int, default=1, help="trials looked at at the same time")
    parser.add_argument("--only", choices=("measure", "draw"))
    chosen = parser.parse_args()
    if chosen.only != "draw":
        measure(chosen.results, chosen.model, chosen.workers)
    if chosen.only != "measure":
        draw(chosen.results, chosen.docs)


if __name__ == "__main__":
    main()

"""What would otherwise mislead a reader of a board, in sentences."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from harness.contract.looks import KEY
from harness.contract.record import Record
from harness.contract.trial import OWN
from harness_leaderboard.boards.model import Board, Row, canonical, is_finished, is_reference
from harness_leaderboard.boards.published import recipe_fields

LESS = 0.8  # of the memory of what trains no adapter: no rounding and no allocator makes so much of a difference
TOLERANCE = 0.01  # deviation from the budget up to which methods count as equal

# Environment keys that say how a run was asked for or scored, not what it ran on: they may differ without a warning ...
NOT_CONDITIONS = ("sweep", "search", "scoring", KEY)
# ... those that hardly matter where all steps are a GPU's ...
OF_THE_HOST = ("cpu", "cpu_count", "threads")
# ... and those that name places on somebody's machine, which are nobody else's business.
NOT_SHOWN = ("command", "results_root")


def distinct_values(records: Iterable[Record]) -> dict[str, dict[str, int]]:
    """Return each environment key, dotted, with its values and how many records hold each."""
    environments = [record.environment for record in records]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    distinct = {id(each): each for each in environments}  # those read through an index are shared by many records
    for place, count in Counter(map(id, environments)).items():
        for key, value in flatten(distinct[place]).items():
            if key not in NOT_SHOWN:
                counts[key][value] += count
    return {key: dict(sorted(counts[key].items(), key=lambda item: (-item[1], item[0]))) for key in sorted(counts)}


def board_notes(
    rows: Sequence[Row], differing: Sequence[str], reports: Sequence[Record], everything: Sequence[Record]
) -> list[str]:
    """Return what would otherwise mislead a reader."""
    notes = []
    for name in differing:
        values: dict[str, list[str]] = defaultdict(list)
        for each in reports:
            values[canonical(getattr(each.trial, name))].append(each.trial.method)
        notes.append(f"Not one comparison: the trials differ in {name}: {_who(values)}. Nothing here is ranked.")
    sizes = {row.label: row.first.trial.adapter_parameters for row in rows if not row.first.trial.is_matched}
    if sizes and (least := min(sizes.values())):
        listed = ", ".join(f"{label} {size / least:.2f}" for label, size in sizes.items())
        notes.append(
            "No matched comparison: every method has the size that its own settings give. Trained adapter parameters, "
            f"as multiples of the smallest ({least:,}): {listed}."
        )
    for row in rows:
        trial = row.first.trial
        if trial.final_parameters is not None:
            notes.append(
                f"{row.label} starts with {trial.adapter_parameters:,} adapter parameters and ends with "
                f"{trial.final_parameters:,}" + (": the budget is matched where it ends." if trial.is_matched else ".")
            )
        steps = [
            each.counts["checkpoint_step"] for each in row.records if each.counts.get("checkpoint_step") is not None
        ]
        if steps:
            notes.append(
                f"{row.label}: the checkpoint that was {_best(row)} on validation was scored, after "
                f"{', '.join(f'{step:,.0f}' for step in steps)} updates."
            )
    references = [each for each in everything if is_reference(each) and each.trial.purpose == "report"]
    for name in ("recipe", "model_revision", "data", "precision", "quantize"):
        usual = {canonical(getattr(each.trial, name)) for each in reports}
        odd = sorted({each.trial.method for each in references if canonical(getattr(each.trial, name)) not in usual})
        if usual and odd:
            notes.append(f"The reference {', '.join(odd)} differs from the ranked methods in {name}.")
    flats = {id(each.environment): flatten(each.environment) for each in everything}
    are_on_gpus = all(each.environment.get("device") == "cuda" for each in everything)
    for key, counts in distinct_values(everything).items():
        if are_on_gpus and key in OF_THE_HOST:
            continue
        if len(counts) > 1 and key.partition(".")[0] not in NOT_CONDITIONS:
            holders: dict[str, list[str]] = defaultdict(list)
            for each in everything:
                flat = flats[id(each.environment)]
                if key in flat:
                    holders[flat[key]].append(each.trial.method)
            notes.append(
                f"Mixed environment, {key}: {_who(holders)}. Times and memory are comparable only within one value."
            )
    silent = sum(not each.environment for each in everything)
    if silent:
        notes.append(f"{silent} of {len(everything)} records do not say on what hardware and versions they ran.")
    several = sorted(method for method, count in Counter(row.method for row in rows).items() if count > 1)
    if several:
        notes.append(
            f"{', '.join(several)}: several rows with different settings. Taking a method's best of them by this score "
            "is a choice made on the test data."
        )
    unreported = {each.trial.method for each in everything} - {
        each.trial.method for each in everything if each.trial.purpose == "report"
    }
    for method in sorted(unreported):
        notes.append(f"{method} has learning-rate trials but no reported result yet.")
    notes += _notes_on_effort(rows, everything)
    seed_sets = {tuple(each.trial.seed for each in row.records) for row in rows}
    if len(seed_sets) > 1:
        notes.append("The methods did not run the same seeds: each pair is compared on the seeds that both ran.")
    for row in rows:
        missing = [each for each in row.records if not is_finished(each)]
        if missing and row.seed_scores:
            listed = ", ".join(f"seed {each.trial.seed} {each.state.value.replace('_', ' ')}" for each in missing)
            notes.append(f"{row.label}: its score is of the {len(row.seed_scores)} seeds that finished; {listed}.")
    uneven = {row.label: row.budget_deviation_fraction for row in rows if row.budget_deviation_fraction is not None}
    if any(abs(each) > TOLERANCE for each in uneven.values()):
        listed = ", ".join(f"{label} {each:+.2%}" for label, each in uneven.items()).replace("%", " %")
        notes.append(f"The budget is not the same within 1 %; trained adapter parameters against it: {listed}.")
    besides = {row.label: max(int(each.counts.get("task_parameters") or 0) for each in row.records) for row in rows}
    if len(set(besides.values())) > 1:
        listed = ", ".join(f"{label} {count:,}" for label, count in besides.items())
        notes.append(f"Parameters trained besides the adapters, which no budget counts, differ: {listed}.")
    versions: dict[str, list[str]] = defaultdict(list)
    for each in reports:
        versions[each.trial.plugins.get("task", "not recorded")].append(each.trial.method)
    if len(versions) > 1:
        notes.append(f"Scored by different versions of the task: {_who(versions)}. Are its numbers still the same?")
    notes += [note for row in rows for note in _notes_on_search(row, everything)]
    return notes + _notes_on_memory(everything)


def _notes_on_memory(everything: Sequence[Record]) -> list[str]:
    """Return that memory was not measured alike, where what trains no adapter is said to take more than what does."""
    taken: dict[str, float] = {}
    bare: dict[str, float] = {}
    for each in everything:
        memory = each.cost.get("peak_memory_bytes")
        if memory is not None and each.trial.purpose == "report":
            kind = taken if each.trial.adapter_parameters else bare
            kind[each.trial.method] = max(memory, kind.get(each.trial.method, 0.0))
    if not taken or not bare:
        return []
    name, least = min(bare.items(), key=lambda item: item[1])
    below = sorted(method for method, memory in taken.items() if memory < LESS * least)
    if not below:
        return []
    return [
        f"Peak memory was not measured alike: {', '.join(below)} would take less than {name}, which trains no adapter. "
        "What other trials had left in a worker's memory was counted."
    ]


def _notes_on_effort(rows: Sequence[Row], everything: Sequence[Record]) -> list[str]:
    """Return who took how many learning-rate trials, where that is not the same for all, and why."""
    efforts = {row.label: row.tune_trials for row in rows}
    if len(set(efforts.values())) < 2:
        return []
    listed = ", ".join(
        f"{label} {effort}" for label, effort in sorted(efforts.items(), key=lambda item: (-item[1], item[0]))
    )
    asked = {canonical(each.environment.get("search")) for each in everything if each.trial.purpose == "tune"}
    plan = next((each.environment.get("search") for each in everything if each.trial.purpose == "tune"), None)
    if len(asked) == 1 and isinstance(plan, Mapping) and min(efforts.values()) and _is_followed(plan, rows, everything):
        rates, seeds = plan.get("rates"), plan.get("seeds")
        on = "a seed" if seeds == 1 else f"{seeds} seeds"
        halved = ", the worse half getting no more after 1, 2, 4, ... of them" if plan.get("halves") else ""
        return [
            f"Learning-rate trials: {listed}. All methods were searched by one rule: {rates} rates on {on}{halved}, "
            "and one more where the best lay on an edge, until it did not."
        ]
    if min(efforts.values()):
        return [f"Learning-rate trials: {listed}. The records do not say whether all were searched by one rule."]
    return [f"Tuning effort is not equal (learning-rate trials): {listed}."]


def _is_followed(plan: Mapping[str, Any], rows: Sequence[Row], everything: Sequence[Record]) -> bool:
    """Return whether the searches are as large as a plan says: a later run may have taken a part of them."""
    cells = {row.first.trial.cell for row in rows}
    seeds: dict[tuple[str, float, str], set[int]] = defaultdict(set)
    for each in everything:
        trial = each.trial
        if trial.purpose == "tune" and trial.cell in cells:
            seeds[trial.cell, trial.learning_rate, canonical(trial.config)].add(trial.seed)
    counts: dict[str, list[int]] = defaultdict(list)
    for (cell, *_), found in seeds.items():
        counts[cell].append(len(found))
    if plan.get("halves"):  # of one or two, one is left after the first seed
        return all(max(found) > 1 or len(found) < 3 for found in counts.values())
    return all(set(found) == {plan.get("seeds")} for found in counts.values())


def _notes_on_search(row: Row, everything: Sequence[Record]) -> list[str]:
    """Return what is odd about the learning rate of a row that was searched."""
    scores: dict[float, list[float]] = defaultdict(list)  # a rate without any, that diverged, bounds the others
    for each in everything:
        if each.trial.purpose == "tune" and each.trial.cell == row.first.trial.cell:
            scores[each.trial.learning_rate] += [each.score] if is_finished(each) and each.score is not None else []
    most = max(map(len, scores.values()), default=0)  # what diverged on a seed, or was stopped, comes after the others
    found = {rate: fmean(each) for rate, each in scores.items() if len(each) == most > 0}
    if sum(map(bool, scores.values())) < 2:
        return []
    best = (max if row.first.higher_is_better else min)(found.values())
    rates = [rate for rate, score in found.items() if score == best]
    notes, used = [], row.first.trial.learning_rate
    if used not in rates:
        notes.append(f"{row.label} is reported at rate {used:g}; its search found {_rates(rates)} best.")
    elif len(rates) == 1 and used in (min(scores), max(scores)):
        notes.append(f"{row.label}: its rate, {used:g}, is at the edge of those searched; a better one may lie beyond.")
    return notes


def _rates(rates: Sequence[float]) -> str:
    return " or ".join(f"{each:g}" for each in sorted(rates))


def notes_on_spelling(board: Board, boards: Iterable[Board]) -> list[str]:
    """Return which other boards have the same budget in other words: what ran under one is not compared on the other.

    A trial's identity holds its budget as it was written, so these are other trials, though they train the same.
    """
    size = board.budget_parameters
    others = [
        each.budget
        for each in boards
        if each.budget != board.budget and size is not None and each.budget_parameters == size and each.budget != OWN
    ]
    if not others or board.budget == OWN:
        return []
    return [
        f"The budget {', '.join(others)} asks for the same {size:,} parameters in other words, and has a board of its "
        "own: what ran with one of them is not compared with what ran with another. Write it in one way."
    ]


def notes_on_published(rows: Sequence[Row]) -> list[str]:
    """Return why published numbers are not ours to compare, and where the recipe is not the paper's."""
    notes = []
    differences = dict.fromkeys(text for row in rows for each in row.published for text in each.differences)
    if differences:
        notes.append(f"The published numbers and ours are not comparable: {'; '.join(differences)}.")
    caveats: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for caveat in dict.fromkeys(each.caveat for each in row.published if each.caveat):
            caveats[caveat].append(row.label)
    notes += [f"Published for {', '.join(labels)}: {caveat}." for caveat, labels in caveats.items()]
    recipes: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        fields = [each for each in recipe_fields(row.first) if each.differs] if row.published else []
        if fields:
            listed = ", ".join(f"{each.name} {setting_text(each.ours)} ({setting_text(each.paper)})" for each in fields)
            recipes[listed].append(row.label)
    for listed, labels in recipes.items():
        who = "" if len(recipes) == 1 else f" of {', '.join(labels)}"
        notes.append(f"Recipe{who}, ours with the paper's in brackets where they differ: {listed}.")
    return notes


def setting_text(value: Any) -> str:
    """Return a setting's value for people."""
    if isinstance(value, str):
        return value or "none"
    if isinstance(value, list | tuple):
        return " ".join(setting_text(each) for each in value) or "none"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.10g}"
    return "absent" if value is None else canonical(value)


def _who(values: Mapping[str, Sequence[str]]) -> str:
    parts = [f"{value} ({', '.join(sorted(set(methods)))})" for value, methods in sorted(values.items())]
    return "; ".join(parts)


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested mappings as dotted keys with readable values."""
    flat: dict[str, str] = {}
    for key, each in value.items():
        if isinstance(each, Mapping):
            flat.update(flatten(each, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = each if isinstance(each, str) else canonical(each)
    return flat


def _best(row: Row) -> str:
    """Return by what a row's checkpoint was chosen."""
    return "lowest in loss" if row.first.trial.recipe.get("checkpoint") == "best-loss" else "best"

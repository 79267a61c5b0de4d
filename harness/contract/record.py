"""A record: the JSON of one trial's end. Records are the truth; every other view is rebuilt from them.

Its text carries a digest over everything in it. One that was changed since is read as ``edited``, without its numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from math import isfinite
from typing import Any

from harness.contract.trial import Trial
from harness.errors import RecordError

SCHEMA_VERSION = 2
READABLE = (1, 2)  # records of schema 1 have no digest, no attempts and nothing resolved


class State(StrEnum):
    """How a trial ended. Two states say something about the method; the others only about the run."""

    COMPLETE = "complete"  # trained to the last step and scored
    DIVERGED = "diverged"  # the loss became NaN or infinite
    FAILED = "failed"  # an exception in the method, the task or the harness
    OUT_OF_MEMORY = "out_of_memory"  # did not fit even alone
    TIMED_OUT = "timed_out"  # ran longer than the limit for one trial
    LOST = "lost"  # its worker process died, and nothing says that memory was the reason
    INTERRUPTED = "interrupted"  # the run was stopped; run the command again to finish it
    EDITED = "edited"  # changed after it was written: nothing in it is believed. Never written, only read

    @property
    def is_final(self) -> bool:
        """Whether it is the method's result, which no other try could change."""
        return self in (State.COMPLETE, State.DIVERGED)


@dataclass(frozen=True, kw_only=True)
class Record:
    """The result of one trial.

    Attributes:
        trial: What was run.
        state: How it ended.
        metrics: Final value of each of the task's metrics; ``None`` where there is none.
        reasons: For each ``None`` in ``metrics`` and in ``cost``, why.
        history: ``[{"step": int, "metrics": {name: value}}, ...]`` in order of steps, every one of the first hundred
            and about a hundred more: ``train/loss``, ``train/gradient_norm`` (of all that trains, before clipping),
            ``train/learning_rate``, and the task's metrics where it evaluates during training.
        items: Per-item scores of the final evaluation, ``{metric: [value, ...]}``, in the data's order, for pairing.
        item_groups: Which items belong together, ``{metric: [number, ...]}``; no entry: every item is its own.
        main_metric: Name of the metric that ranks.
        higher_is_better: Direction of the main metric.
        metric_details: ``{name: {"title": str, "unit": str, "higher_is_better": bool, "help": str}}``, and ``chance``,
            what guessing scores, where the task says so.
        counts: ``adapter_parameters``, ``task_parameters`` (trained besides adapters), ``base_parameters``,
            ``final_parameters`` (adapter parameters left when training ends, where those are fewer),
            ``budget_deviation_fraction``; ``checkpoint_step``, where the best of several was chosen on validation.
        cost: ``prepare_seconds`` (model, data, initialisation), ``initialise_seconds`` (the method's part of it, the
            first time in the process: decompositions are kept), ``train_seconds`` (optimizer steps only; a pack's time
            is shared equally by its lanes), ``evaluate_seconds``, ``steps``, ``train_tokens``, ``padding_fraction`` (of
            what batches held besides), ``batch_forms`` (sizes to which batches were padded), ``pack_lanes``,
            ``compiled``, ``recomputes``, ``micro_batch_size`` (examples per forward pass); and from a few steps of the
            trial alone, without data preparation and evaluation: ``step_seconds_solo``, ``tokens_per_second_solo``,
            ``step_flops``, ``peak_memory_bytes``. ``None`` where not measured.
        environment: Versions, hardware, git commit, plugins; ``layers_without_adapter``, where there are any,
            says which layers of the model no adapter can work in, and why; ``ranks``, over how many processes the model
            was divided, if it was: times are those of all together, memory is the first one's; ``scoring``, what the
            task says of how it scored, if it says anything.
        error: ``{"type", "message", "traceback", "step"}`` unless complete; where another try may end otherwise, also
            ``conditions``, what this one depended on besides the trial.
        attempts: Earlier tries of the trial, oldest first: ``{"state", "error", "started_at", "finished_at"}``.
        started_at: ISO 8601, UTC.
        finished_at: ISO 8601, UTC.
        artifacts: ``{"adapter": file name beside the record}``.
        published: Numbers that the suite quotes for this task, method with these settings, and budget, to be shown
            beside ours: ``method``, ``budget`` (empty: a reference), ``metric``, ``value`` in ``unit``, the paper's
            ``model``, ``source``, maybe ``step``, ``confidence``, ``caveat``.
        paper_recipe: The recipe that ``published`` belongs to, as ``trial.recipe``: the task's at the paper scale, with
            what the suite sets there; empty where the task has no such scale.
        resolved: What was left to the harness until the data was read, and what it became, e.g. the number of steps
            that the epochs made: ``{"settings": {...}, "recipe": {...}}``.
        schema_version: Of this JSON.
    """

    trial: Trial
    state: State
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = field(default_factory=list)
    items: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    item_groups: Mapping[str, Sequence[int]] = field(default_factory=dict)
    main_metric: str
    higher_is_better: bool
    metric_details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    counts: Mapping[str, int | float | None] = field(default_factory=dict)
    cost: Mapping[str, float | int | None] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    attempts: Sequence[Mapping[str, Any]] = field(default_factory=list)
    started_at: str
    finished_at: str
    artifacts: Mapping[str, str] = field(default_factory=dict)
    published: Sequence[Mapping[str, Any]] = field(default_factory=list)
    paper_recipe: Mapping[str, Any] = field(default_factory=dict)
    resolved: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def trial_id(self) -> str:
        """Return the trial's id, which names the file."""
        return self.trial.id

    @property
    def settings(self) -> dict[str, Any]:
        """Return the method's settings as they were when training began."""
        return {**self.trial.settings, **self.resolved.get("settings", {})}

    @property
    def recipe(self) -> dict[str, Any]:
        """Return the recipe as it was when training began."""
        return {**self.trial.recipe_settings, **self.resolved.get("recipe", {})}

    @property
    def score(self) -> float | None:
        """Return the final main metric, or ``None``."""
        return self.metrics.get(self.main_metric)

    @property
    def learning_rate(self) -> float | None:
        """Return the rate that it trained at; ``None`` where there was nothing to train, at whatever rate."""
        trained = [self.counts.get(name) for name in ("adapter_parameters", "task_parameters")]
        return None if trained == [0, 0] else self.trial.learning_rate

    @property
    def is_bound(self) -> bool:
        """Whether a digest ties the content together; records of schema 1 have none."""
        return self.schema_version > 1

    @property
    def attempt(self) -> dict[str, Any]:
        """Return this try as a later one remembers it."""
        return {
            "state": self.state.value,
            "error": self.error,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types, with the digest."""
        body = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        content = {"trial_id": self.trial_id, **body, "trial": self.trial.to_json(), "state": self.state.value}
        if not self.is_bound:
            for later in ("attempts", "resolved"):
                content.pop(later)
            return content
        return {**content, "digest": digest(content)}

    def dumps(self) -> str:
        """Return the file's text. NaN and infinity are refused: a missing number is ``null`` with a reason."""
        return json.dumps(self.to_json(), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Rebuild a record. One whose digest does not match comes back as ``edited``, without its numbers.

        Raises:
            RecordError: not an object, another schema version, missing or unknown keys, a value of a wrong type, or an
                id that does not match the content.
        """
        if not isinstance(data, Mapping):
            raise RecordError(f"it holds {_shorten(data)}, not a record; a record is a JSON object")
        version = data.get("schema_version")
        if type(version) is not int or version not in READABLE:
            raise RecordError(
                f"record schema_version={_shorten(version)}; this harness reads {' and '.join(map(str, READABLE))}: "
                "install the version that wrote it"
            )
        name = _shorten(data.get("trial_id"))
        try:
            body = {key: value for key, value in data.items() if key not in ("trial_id", "digest")}
            record = cls(**{**body, "trial": Trial.from_json(body["trial"]), "state": State(body["state"])})
            trial_id = record.trial_id
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise RecordError(f"record {name} is not readable: {type(error).__name__}: {error}") from error
        if data.get("trial_id") != trial_id:
            raise RecordError(f"record {name} does not match its content (id {trial_id}): it was edited")
        for field_name, kind in FIELDS.items():
            if kind.fits(getattr(record, field_name)):
                continue
            for where, value, wanted in kind.misfits(getattr(record, field_name), field_name):
                raise RecordError(f"record {trial_id!r}: {where}={_shorten(value)} is not allowed; give {wanted}")
        content = {key: value for key, value in data.items() if key != "digest"}
        try:
            is_as_written = not record.is_bound or data.get("digest") == digest(content)
        except (ValueError, TypeError, RecursionError) as error:  # NaN in a detail, which no file of ours can hold
            raise RecordError(f"record {name} holds something that is not JSON: {error}") from error
        return record if is_as_written else record.without_numbers()

    def without_numbers(self) -> Record:
        """Return the record as one that was edited: whatever it claims is withheld, so that nothing averages it."""
        why = "its digest does not match its content: the file was changed after it was written"
        return dataclasses.replace(
            self,
            state=State.EDITED,
            metrics=dict.fromkeys(self.metrics),
            reasons={name: f"{State.EDITED}: {why}" for name in self.metrics},
            history=[],
            items={},
            item_groups={},
            artifacts={},
            error={"type": "Edited", "message": why, "traceback": "", "step": None},
        )


def digest(content: Mapping[str, Any]) -> str:
    """Return what binds a record: a hash over everything in it but the digest itself."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(canonical.encode(errors='surrogatepass')).hexdigest()}"


def loads(text: str | bytes) -> Any:
    """Return what JSON text holds; ``ValueError`` if none.

    NaN and infinity, which Python would let pass, are not JSON. Nor are values nested deeper than any record's.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True)
class Kind:
    """What a value of a record must be.

    Attributes:
        fits: Says whether it is. Of nearly every record all is, so this one is quick.
        misfits: Yields (where, value, what is wanted there) for all in a value, which stands at a place, that is not.
    """

    fits: Callable[[Any], bool]
    misfits: Callable[[Any, str], Iterator[tuple[str, Any, str]]]


def _one(fits: Callable[[Any], bool], wanted: str) -> Kind:
    def misfits(value: Any, where: str) -> Iterator[tuple[str, Any, str]]:
        if not fits(value):
            yield where, value, wanted

    return Kind(fits, misfits)


def _object(of: Kind) -> Kind:
    def fits(value: Any) -> bool:
        return isinstance(value, dict | Mapping) and all(map(of.fits, value.values()))

    def misfits(value: Any, where: str) -> Iterator[tuple[str, Any, str]]:
        if not isinstance(value, Mapping):
            yield where, value, "an object"
            return
        for name, each in value.items():
            yield from of.misfits(each, f"{where}.{name}")

    return Kind(fits, misfits)


def _list(of: Kind) -> Kind:
    def fits(value: Any) -> bool:
        return isinstance(value, list | tuple) and all(map(of.fits, value))

    def misfits(value: Any, where: str) -> Iterator[tuple[str, Any, str]]:
        if not isinstance(value, list | tuple):
            yield where, value, "a list"
            return
        for place, each in enumerate(value):
            yield from of.misfits(each, f"{where}[{place}]")

    return Kind(fits, misfits)


def _is_number(value: Any) -> bool:
    """Return whether it is finite or missing. True and false count: per-item scores may be either."""
    return isfinite(value) if isinstance(value, float) else value is None or isinstance(value, int)


def _is_time(value: Any) -> bool:
    try:
        return value == "" or bool(datetime.fromisoformat(value))
    except (TypeError, ValueError):
        return False


ANYTHING = _one(lambda value: True, "")
TEXT = _one(lambda value: isinstance(value, str), "text")
NUMBER = _one(_is_number, "a finite number or null")
STEP = _one(lambda value: type(value) is int, "a whole number")
TIME = _one(_is_time, "a time in ISO 8601")


METRICS = _object(NUMBER)


def _is_curve_point(value: Any) -> bool:
    return isinstance(value, dict | Mapping) and type(value.get("step")) is int and METRICS.fits(value.get("metrics"))


def _curve_misfits(value: Any, where: str) -> Iterator[tuple[str, Any, str]]:
    if not isinstance(value, Mapping) or not {"step", "metrics"} <= set(value):
        yield where, value, "an object with step and metrics"
        return
    yield from STEP.misfits(value["step"], f"{where}.step")
    yield from METRICS.misfits(value["metrics"], f"{where}.metrics")


CURVE_POINT = Kind(_is_curve_point, _curve_misfits)


FIELDS: Mapping[str, Kind] = {
    "metrics": METRICS,
    "reasons": _object(TEXT),
    "history": _list(CURVE_POINT),
    "items": _object(_list(NUMBER)),
    "item_groups": _object(_list(STEP)),
    "main_metric": TEXT,
    "higher_is_better": _one(lambda value: isinstance(value, bool), "true or false"),
    "metric_details": _object(_object(ANYTHING)),
    "counts": _object(NUMBER),
    "cost": _object(NUMBER),
    "environment": _object(ANYTHING),
    "error": _one(lambda value: value is None or isinstance(value, Mapping), "an object or null"),
    "attempts": _list(_object(ANYTHING)),
    "started_at": TIME,
    "finished_at": TIME,
    "artifacts": _object(TEXT),
    "published": _list(_object(ANYTHING)),
    "paper_recipe": _object(ANYTHING),
    "resolved": _object(_object(ANYTHING)),
}

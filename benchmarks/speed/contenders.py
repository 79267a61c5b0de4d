"""Who is timed: the harness, and what people use today. All steps are timed alike."""

from __future__ import annotations

import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from workloads import SyntheticTask, Workload, build_model, labels_of, plain_batches, texts

from harness import Recipe, TaskContext, Trial
from harness.engine.build import build_lane
from harness.engine.lane import Lane
from harness.engine.pack import Pack
from harness.engine.resident import Base
from harness.planning.budget import budget_parameters, solve
from harness.planning.registry import Registry, build_registry


@dataclass(frozen=True)
class Timing:
    """One contender's figures.

    Attributes:
        name: For tables.
        milliseconds: Median per step.
        spread: Smallest and largest of the windows' means.
        peak_bytes: Device memory; ``None`` on a CPU.
        start_seconds: Before the first timed step: building, warming up, compiling, capturing.
        lanes: Trials trained in one step.
    """

    name: str
    milliseconds: float
    spread: tuple[float, float]
    peak_bytes: int | None
    start_seconds: float
    lanes: int = 1

    def per_trial(self) -> float:
        """Return milliseconds per trial and step."""
        return self.milliseconds / self.lanes


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Stop what takes longer: a peer may compile for minutes, and those that come after it are to be timed too.

    Raises:
        TimeoutError: It took longer.
    """

    def stop(*_: object) -> None:
        raise TimeoutError(f"not at its end after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def measure(
    name: str, build: Callable[[], Callable[[], Any]], device: torch.device, warm: int, steps: int, lanes: int = 1
) -> Timing:
    """Time a step. Windows of steps between two waits for the device: host work that hides behind it costs nothing."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    step = build()
    for _ in range(warm):
        step()
    if on_gpu:
        torch.cuda.synchronize()
    start_seconds = time.perf_counter() - begin
    windows, size = [], max(1, steps // 5)
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(size):
            step()
        if on_gpu:
            torch.cuda.synchronize()
        windows.append((time.perf_counter() - begin) / size * 1e3)
    peak = torch.cuda.max_memory_allocated() if on_gpu else None
    return Timing(name, statistics.median(windows), (min(windows), max(windows)), peak, start_seconds, lanes)


# --- what people use today --------------------------------------------------------------------------------------------


def frozen(workload: Workload, device: torch.device, dtype: torch.dtype, compiled: bool = False) -> Callable[[], Any]:
    """Return a forward and backward pass through the frozen model with nothing trainable: the floor.

    The embeddings' output requires a gradient, so that the backward pass goes through every layer.
    """
    model = build_model(workload, device, dtype).requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(lambda _m, _i, output: output.requires_grad_())
    call = torch.compile(model) if compiled else model
    return _loop(call, plain_batches(workload, device), None)


def full(workload: Workload, device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    """Return full fine-tuning in a plain loop."""
    model = build_model(workload, device, dtype)
    return _loop(model, plain_batches(workload, device), torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True))


def peft_model(workload: Workload, device: torch.device, dtype: torch.dtype, **settings: Any) -> nn.Module:
    """Return a model with PEFT's adapters; the base in ``dtype``, adapters in float32 as PEFT makes them."""
    from peft import LoraConfig, TaskType, get_peft_model

    kind = TaskType.SEQ_CLS if workload.classifies else TaskType.CAUSAL_LM
    targets = list(workload.targets) or "all-linear"
    config = LoraConfig(task_type=kind, r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets, **settings)
    model: Any = get_peft_model(build_model(workload, device, dtype), config)
    model.config.use_cache = False  # in training a cache is of no use, and a compiler would compile anew for each layer
    adapted: nn.Module = model
    return adapted


def peft_loop(
    workload: Workload,
    device: torch.device,
    dtype: torch.dtype,
    compiled: str = "",
    liger: bool = False,
    autocast: bool = False,
    **settings: Any,
) -> Callable[[], Any]:
    """Return PEFT in a plain loop.

    Args:
        workload: Model and batches.
        device: Where.
        dtype: Of the base.
        compiled: ``torch.compile``'s mode, ``default`` or ``reduce-overhead`` (with CUDA graphs); ``blocks``: each of the
            model's repeated blocks by itself, for any length, which compiles in seconds; empty: not compiled.
        liger: Whether Liger Kernel's fused kernels take the place of the model's own.
        autocast: Whether the adapters compute in ``dtype``, too, as under the Trainer with ``bf16=True``.
        settings: Of PEFT's ``LoraConfig``.
    """
    model = peft_model(workload, device, dtype, **settings)
    if liger:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(model=model.get_base_model())  # type: ignore[operator]
    parameters = [p for p in model.parameters() if p.requires_grad]
    call: Any = model
    if compiled == "blocks":
        compile_blocks(model)
    elif compiled:
        call = torch.compile(model, mode=compiled)
    if autocast:
        call = torch.autocast(device.type, dtype)(call)
    batches = plain_batches(workload, device, 64 if workload.shortest else 8)
    return _loop(call, batches, torch.optim.AdamW(parameters, lr=1e-4, fused=True))


def compile_blocks(model: nn.Module) -> None:
    """Compile the repeated blocks of a language model where they stand: what is compiled once serves all of them."""
    for block in model.get_base_model().model.layers:  # type: ignore[operator]
        block.compile(dynamic=True)


def peft_trainer_seconds(
    workload: Workload, device: torch.device, dtype: torch.dtype, steps: int, folder: str, **settings: Any
) -> float:
    """Return the seconds that ``steps`` steps of PEFT under the Hugging Face Trainer take, after a warm-up run."""
    from transformers import Trainer, TrainingArguments

    model = peft_model(workload, device, dtype, **settings)
    rows = [
        {"input_ids": row, "labels": row[0] % 2 if workload.classifies else labels_of(workload, row)}
        for row in texts(workload, 256 if not workload.shortest else 4096, 0)
    ]
    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=workload.batch_size, max_steps=steps, report_to=[], save_strategy="no",
        logging_strategy="no", optim="adamw_torch_fused", bf16=dtype is torch.bfloat16, disable_tqdm=True, use_cpu=device.type == "cpu",
        remove_unused_columns=False,
    )  # fmt: skip

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in batch)
        gaps = [width - len(row["input_ids"]) for row in batch]
        columns = {
            "input_ids": [row["input_ids"] + [0] * gap for row, gap in zip(batch, gaps, strict=True)],
            "labels": [
                row["labels"] if workload.classifies else row["labels"] + [-100] * gap
                for row, gap in zip(batch, gaps, strict=True)
            ],
        }
        if workload.shortest:
            columns["attention_mask"] = [[1] * (width - gap) + [0] * gap for gap in gaps]
        return {key: torch.tensor(column) for key, column in columns.items()}

    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)  # type: ignore[arg-type]
    begin = time.perf_counter()
    trainer.train()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _loop(
    model: Any, batches: list[dict[str, torch.Tensor]], optimizer: torch.optim.Optimizer | None
) -> Callable[[], Any]:
    state = {"step": 0}

    def step() -> None:
        batch = batches[state["step"] % len(batches)]
        state["step"] += 1
        loss = model(**batch).loss
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


# --- ours -------------------------------------------------------------------------------------------------------------


def build_lanes(
    registry: Registry, base: Base, workload: Workload, names: list[str], budget: str = "lora:r=8", steps: int = 100_000
) -> list[Lane]:
    """Return one lane per name; the same name again gets another seed and learning rate."""
    lanes = []
    data: dict[int, Any] = {}
    for number, name in enumerate(names):
        kind = registry.method(name)
        recipe = Recipe(steps=steps, batch_size=workload.batch_size, schedule="constant", clip_norm=0.0)
        config, settings, count, asked = kind.Config(), {}, 0, None
        if not kind.traits.reference:
            layers = {
                n: s for n, s in base.layers.items() if not workload.targets or n.rsplit(".", 1)[-1] in workload.targets
            }
            asked = budget_parameters(budget, layers, base.parameters, registry)
            solution = solve(kind, config, asked, layers)
            config, settings, count = solution.config, solution.layer_settings, solution.parameters
        trial = Trial(
            task="synthetic", scale="smoke", recipe=asdict(recipe), model="synthetic", model_revision="0", method=name,
            config=asdict(config), layer_settings=settings, budget=budget, budget_parameters=asked, adapter_parameters=count,
            learning_rate=1e-4 * (1 + number), seed=number % 4, precision="bfloat16", targets=workload.targets,
        )  # fmt: skip
        context = TaskContext(tokenizer=_Tokenizer(), recipe=recipe, seed=trial.seed)
        rows = data.setdefault(trial.seed, base.task.load(context))
        methods = {layer: kind(replace(config, **changes)) for layer, changes in settings.items()}
        lanes.append(build_lane(base, trial, kind(config), methods, context, rows))
    return lanes


class _Tokenizer:
    pad_token_id = 0


def harness(
    workload: Workload,
    device: torch.device,
    dtype: torch.dtype,
    names: list[str],
    compiled: bool = False,
    budget: str = "lora:r=8",
    recomputes: bool = False,
) -> Callable[[], Any]:
    """Return a pack's step, data handling included."""
    precision = "bfloat16" if dtype is torch.bfloat16 else "float32"
    model = build_model(workload, device, dtype).requires_grad_(False)
    base = Base(model, SyntheticTask(workload), precision, recomputes=recomputes)
    return Pack(base, build_lanes(build_registry(), base, workload, names, budget), compiled).step


def harness_workers(workload: Workload, name: str, steps: int) -> Timing:
    """Time float32 trials as ``harness run`` trains them on two cores: two processes at once, a thread each."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    with ProcessPoolExecutor(2, context, _share, (barrier,)) as pool:
        timings = list(pool.map(_one_worker, [workload] * 2, [name] * 2, [steps] * 2))
    milliseconds = statistics.mean(each.milliseconds for each in timings)
    spread = (min(each.spread[0] for each in timings), max(each.spread[1] for each in timings))
    return Timing(timings[0].name, milliseconds, spread, None, max(each.start_seconds for each in timings), lanes=2)


def _share(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _one_worker(workload: Workload, name: str, steps: int) -> Timing:
    torch.set_num_threads(1)
    cpu = torch.device("cpu")

    def build() -> Callable[[], Any]:
        step = harness(workload, cpu, torch.float32, [name])
        step()
        _barrier.wait()  # both at once, or each would have the machine to itself for a while
        return step

    return measure(f"harness {name}, two workers", build, cpu, 3, steps)

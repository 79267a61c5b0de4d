"""A whole sweep against what people do today: one PEFT trial after another, loading, training and scoring included.

    python benchmarks/speed/whole.py peers benchmarks/results/smollm2-commonsense.toml --data-dir data --json peers.json
    python benchmarks/speed/whole.py compare peers.json results --seconds 900 --steps 600 --validation-items 800

``peers`` times the parts of one PEFT LoRA trial on the suite's own model, texts and prompts, from a folder that holds both:
loading, some answers, some steps; under the Hugging Face Trainer, and in a loop with fused optimizer, plain and with each
block compiled, and texts sorted for answering. ``compare`` extrapolates them to the trials of a sweep that
``harness run`` made, and divides by the sweep's wall-clock on one GPU. Left out of the peers' time, in their favour:
WikiText, the search's bookkeeping, start-up of Python, and that methods other than LoRA are slower in PEFT.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from contenders import compile_blocks, within

from harness import TaskContext, read_results
from harness.planning.registry import build_registry
from harness.planning.suite import read_suite

R, ALPHA = 8, 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def seconds_of(work: Callable[[], Any]) -> float:
    """Return how long some work takes, the device's part included."""
    begin = time.perf_counter()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


class Peer:
    """PEFT's LoRA on the suite's model and data."""

    def __init__(self, suite_path: Path, data_dir: Path) -> None:
        from transformers import AutoTokenizer

        suite = read_suite(suite_path)
        task = build_registry().task(suite.tasks[0])()
        changes = {key: tuple(value) if isinstance(value, list) else value for key, value in suite.recipe.items()}
        self.recipe: Any = replace(task.recipes[suite.scale], **changes)
        self.name = suite.model
        self.tokenizer = AutoTokenizer.from_pretrained(self.name)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        data = task.load(TaskContext(tokenizer=self.tokenizer, recipe=self.recipe, seed=0, data_dir=data_dir))
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(data.train), generator=generator).tolist()  # type: ignore[arg-type]
        self.rows = [data.train[row] for row in order]  # type: ignore[index]
        questions = data.splits["test"].questions
        self.prompts = [list(each.prompt) for asked in questions.values() for each in asked]

    def load(self) -> Any:
        """Return the model on the GPU with adapters on every linear layer."""
        from peft import LoraConfig, TaskType, get_peft_model
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.name, dtype=torch.bfloat16).to(DEVICE)
        return get_peft_model(
            model, LoraConfig(task_type=TaskType.CAUSAL_LM, r=R, lora_alpha=ALPHA, target_modules="all-linear")
        )

    def collate(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Return a padded batch."""
        width = max(len(row.input_ids) for row in rows)
        gaps = [width - len(row.input_ids) for row in rows]
        pad = self.tokenizer.pad_token_id
        return {
            "input_ids": torch.tensor(
                [[*map(int, row.input_ids)] + [pad] * gap for row, gap in zip(rows, gaps, strict=True)]
            ),
            "labels": torch.tensor(
                [[*map(int, row.labels)] + [-100] * gap for row, gap in zip(rows, gaps, strict=True)]
            ),
            "attention_mask": torch.tensor([[1] * (width - gap) + [0] * gap for gap in gaps]),
        }

    def trainer_seconds(self, model: Any, steps: int) -> float:
        """Return the time of some steps under the Trainer."""
        from transformers import Trainer, TrainingArguments

        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder, per_device_train_batch_size=self.recipe.batch_size, max_steps=steps, report_to=[],
                save_strategy="no", logging_strategy="no", optim="adamw_torch_fused", bf16=DEVICE == "cuda", use_cpu=DEVICE == "cpu", disable_tqdm=True,
                remove_unused_columns=False, dataloader_num_workers=0,
            )  # fmt: skip
            trainer = Trainer(model=model, args=arguments, train_dataset=self.rows, data_collator=self.collate)  # type: ignore[arg-type]
            return seconds_of(trainer.train)

    def loop(self, model: Any, compiled: bool) -> Callable[[int], None]:
        """Return a plain training loop."""
        if compiled:
            compile_blocks(model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
        place = 0

        def run(steps: int) -> None:
            nonlocal place
            for _ in range(steps):
                batch = self.collate([self.rows[(place + n) % len(self.rows)] for n in range(self.recipe.batch_size)])
                place += self.recipe.batch_size
                inputs = {key: value.to(DEVICE, non_blocking=True) for key, value in batch.items()}
                model(**inputs, use_cache=False).loss.backward()  # a cache would have each layer compiled anew
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return run

    @torch.inference_mode()
    def answer(self, model: Any, count: int, batch_size: int) -> None:
        """Generate answers to some prompts, sorted by length, as a careful script does it."""
        spread = self.prompts[:: max(1, len(self.prompts) // count)][:count]
        for start in range(0, len(spread), batch_size):
            prompts = sorted(spread, key=len)[start : start + batch_size]
            width = max(map(len, prompts))
            ids = [[self.tokenizer.pad_token_id] * (width - len(each)) + each for each in prompts]
            mask = [[0] * (width - len(each)) + [1] * len(each) for each in prompts]
            model.generate(
                input_ids=torch.tensor(ids, device=DEVICE), attention_mask=torch.tensor(mask, device=DEVICE),
                max_new_tokens=self.recipe.max_new_tokens, do_sample=False, pad_token_id=self.tokenizer.pad_token_id,
            )  # fmt: skip


def peers(options: argparse.Namespace) -> dict[str, Any]:
    """Time the parts of a trial."""
    peer = Peer(options.suite, options.data_dir)
    peer.load()  # libraries and the file cache
    models: list[Any] = []
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE, "torch": torch.__version__, "batch_size": peer.recipe.batch_size,
        "test_items": len(peer.prompts), "load_seconds": seconds_of(lambda: models.append(peer.load())), "forms": {},
    }  # fmt: skip
    model = models.pop()
    peer.trainer_seconds(model, 5)
    found["forms"]["trainer"] = {"step_seconds": peer.trainer_seconds(model, options.steps) / options.steps}
    print(json.dumps(found), flush=True)
    model.eval()
    peer.answer(model, 64, 64)
    for batch_size in (64, 256):
        found[f"item_seconds_{batch_size}"] = (
            seconds_of(lambda size=batch_size: peer.answer(model, options.items, size)) / options.items  # type: ignore[misc]
        )
    print(json.dumps(found), flush=True)
    for name, compiled in (("loop", False), ("compiled loop", True)):
        try:
            with within(options.limit_seconds):
                found["forms"][name] = looped(peer, peer.load(), compiled, options.steps)
        except Exception as error:  # noqa: BLE001 - the other forms are timed
            print(f"{name} does not run: {type(error).__name__}: {str(error).splitlines()[0][:120]}", flush=True)
        print(json.dumps(found), flush=True)
    return found


def looped(peer: Peer, model: Any, compiled: bool, steps: int) -> dict[str, float]:
    """Time a plain loop: a step, and what comes before the first one of a trial."""
    loop = peer.loop(model, compiled)
    start = seconds_of(lambda: loop(20))
    step = seconds_of(lambda: loop(steps)) / steps
    if compiled:  # as a second trial finds it: what was compiled is in the cache
        torch._dynamo.reset()
        again = peer.loop(peer.load(), True)
        start = seconds_of(lambda: again(20))
    return {"step_seconds": step, "start_seconds": max(0.0, start - 20 * step)}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Extrapolate the peers' parts to a sweep's trials."""
    found = json.loads(options.peers.read_text())
    table = read_results(options.root)
    done = table[table["state"].isin(["complete", "diverged"])]
    trials = Counter(done["purpose"])
    item = min(found["item_seconds_64"], found["item_seconds_256"])
    report: dict[str, Any] = {
        "trials": dict(trials),
        "steps": options.steps,
        "harness_seconds": options.seconds,
        "peers": {},
    }
    for name, form in found["forms"].items():
        train = found["load_seconds"] + form.get("start_seconds", 0.0) + options.steps * form["step_seconds"]
        score = (options.test_items or found["test_items"]) * item
        searched = options.validation_items * item
        tests = sum(count for purpose, count in trials.items() if purpose != "tune")
        total = trials.total() * train + tests * score + (trials.total() - tests) * searched
        report["peers"][name] = {"seconds": total, "times_faster": total / options.seconds}
        print(f"{name:14s} {total:9.0f} s, {total / options.seconds:5.1f} x {options.seconds:.0f} s")
    return report


def main() -> None:
    """Time peers, or compare them with a sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("peers")
    first.add_argument("suite", type=Path)
    first.add_argument("--data-dir", type=Path, required=True)
    first.add_argument("--steps", type=int, default=60)
    first.add_argument("--items", type=int, default=1024)
    first.add_argument("--limit-seconds", type=int, default=300, help="for one form of the loop, compiling included")
    first.set_defaults(work=peers)
    second = commands.add_parser("compare")
    second.add_argument("peers", type=Path)
    second.add_argument("root", type=Path)
    second.add_argument("--seconds", type=float, required=True, help="the sweep's wall-clock on one GPU")
    second.add_argument("--steps", type=int, required=True, help="updates of a trial")
    second.add_argument(
        "--validation-items", type=int, required=True, help="questions that a searched rate is scored on"
    )
    second.set_defaults(work=compare)
    second.add_argument("--test-items", type=int, default=0, help="scored at the end of a trial; 0: as in the suite")
    for each in (first, second):
        each.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = options.work(options)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

"""The loop ends every lane where it should end, scores it, and no lane's end changes another's course."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from harness.contract.task import Evaluation, Example, ModelKind
from harness.engine.evaluation import training_loss
from harness.engine.layers import repeated_blocks
from harness.engine.pack import Pack
from harness.engine.training import evaluating
from harness.errors import HarnessError, TrialDivergedError


def test_full_fine_tuning_matches_a_plain_loop(kit):
    base = kit.make_base()
    lane = kit.make_lane(base, "full", learning_rate=1e-3, clip_norm=0.0)
    plain = kit.language_model().requires_grad_(True)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)
    expected = []
    again = kit.make_lane(kit.make_base(), "full")
    for step in range(12):
        losses = []
        for row in again.rows():
            ids = torch.from_numpy(row.ids)[None]
            logits = plain(input_ids=ids).logits[0, 1:-1]  # the first two tokens of a toy example carry no loss
            losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 2:], reduction="none"))
        loss = torch.cat(losses).mean()
        expected.append(float(loss.detach()))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - step / 12)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        again.advance()
    recorder = kit.run(base, [lane])
    assert recorder.losses[lane.trial.id] == pytest.approx(expected, rel=1e-6)


def test_a_lane_that_ends_earlier_changes_nothing_for_the_others(kit):
    lengths = [12, 5, 9]
    solo = [kit.run(base := kit.make_base(), [kit.make_lane(base, "lora", seed=n, steps=n)]) for n in lengths]
    base = kit.make_base()
    packed = kit.run(base, [kit.make_lane(base, "lora", seed=n, steps=n) for n in lengths])
    kit.assert_same_as_solo(packed, solo)
    assert [lane.done for lane in packed.finished_lanes] == sorted(lengths)


def test_a_diverged_lane_leaves_and_the_rest_go_on(kit):
    solo = kit.run(base := kit.make_base(), [kit.make_lane(base, "lora", seed=1)])
    base = kit.make_base()
    bad = kit.make_lane(base, "lora", learning_rate=1e30, clip_norm=0.0)
    packed = kit.run(base, [bad, kit.make_lane(base, "lora", seed=1)])
    kit.assert_same_as_solo(packed, [solo])
    assert isinstance(bad.error, TrialDivergedError)
    assert "step" in str(bad.error)
    assert bad.done < 12


def test_out_of_memory_halves_the_pack_and_loses_nothing(kit, monkeypatch):
    settings = [("lora", 1e-2, 0), ("dora", 1e-2, 1), ("relora", 3e-3, 2)]
    solo = [kit.run(base := kit.make_base(), [kit.make_lane(base, *each)]) for each in settings]
    base = kit.make_base()
    original = Pack._gradients

    def small_device(self, batches):
        losses = original(self, batches)  # the failure comes after gradients were written
        if len(self.lanes) > 1 and self.lanes[0].done == 4:
            raise torch.OutOfMemoryError("out of memory, for this test")
        return losses

    monkeypatch.setattr(Pack, "_gradients", small_device)
    packed = kit.run(base, [kit.make_lane(base, *each) for each in settings])
    kit.assert_same_as_solo(packed, solo)
    assert all(lane.error is None for lane in packed.finished_lanes)


@pytest.mark.parametrize("where", ["optimizer", "method"])
def test_a_step_that_runs_out_of_memory_half_done_is_not_repeated(kit, monkeypatch, where):
    """Repeated, it would be the first lane's second update from the same rows; gone on from, its merge left out."""

    def no_memory(*_, **__):
        raise torch.OutOfMemoryError("out of memory, for this test")

    def fail(lane):
        owner, name = (lane.optimizer, "step") if where == "optimizer" else (lane.method, "after_step")
        monkeypatch.setattr(owner, name, no_memory)

    base = kit.make_base()
    lanes = [kit.make_lane(base, "relora", seed=seed) for seed in (0, 1)]
    fail(lanes[1])
    with pytest.raises(HarnessError, match=r"half done.*out of memory, for this test"):
        kit.run(base, lanes)
    assert all(not slot.parts for slot in base.slots.values())
    alone = kit.make_lane(base, "relora")
    fail(alone)
    assert kit.run(base, [alone]).finished_lanes == [alone]
    assert isinstance(alone.error, torch.OutOfMemoryError), "alone, it is that trial's result"


def test_a_lane_that_does_not_fit_alone_says_so(kit, monkeypatch):
    base = kit.make_base()

    def no_memory(self, batches):
        raise torch.OutOfMemoryError("out of memory, for this test")

    monkeypatch.setattr(Pack, "_gradients", no_memory)
    packed = kit.run(base, [kit.make_lane(base, "lora"), kit.make_lane(base, "mora")])
    assert [type(lane.error) for lane in packed.finished_lanes] == [torch.OutOfMemoryError] * 2
    assert all(lane.recomputes and lane.rows_at_once == 1 for lane in packed.finished_lanes), "all was tried"


@pytest.mark.parametrize("fits", [1, 2])
@pytest.mark.parametrize("name", ["lora", "full"])
def test_short_of_memory_a_trial_goes_on_with_less_of_it_and_the_same_result(kit, name, fits, monkeypatch, caplog):
    """First with activations computed again, then with smaller forward passes."""
    expected = kit.run(base := kit.make_base(), [kit.make_lane(base, name, batch_size=4)])
    base = kit.make_base()
    original, checkpointed = Pack._gradients, []

    def small_device(self, batches):
        rows = max(len(batch.input_ids) for batch in batches)
        if rows > fits and self.lanes[0].done == 4:
            raise torch.OutOfMemoryError("out of memory, for this test")
        checkpointed.append("forward" in vars(repeated_blocks(self.model)[0]))
        return original(self, batches)

    monkeypatch.setattr(Pack, "_gradients", small_device)
    lane = kit.make_lane(base, name, batch_size=4)
    found = kit.run(base, [lane])
    kit.assert_same_as_solo(found, [expected])
    assert lane.error is None
    assert (lane.recomputes, lane.rows_at_once) == (True, fits)
    assert checkpointed == [False] * 4 + [True] * 8
    assert [record.message.split(";")[1] for record in caplog.records] == [
        " goes on with activations computed again",
        *(f" goes on with {size} examples per forward pass" for size in (2, 1)[: 3 - fits]),
    ]
    fits = 3
    kit.run(base, [kit.make_lane(base, "lora")])
    assert not checkpointed[-1], "the next trial on this base keeps its activations"


def test_what_ran_out_of_memory_is_gone_before_the_next_try(kit, monkeypatch):
    """Otherwise it would hold on to memory that the next try needs."""
    base, packs, alive = kit.make_base(), [], []
    original = Pack._gradients

    def small_device(self, batches):
        packs.append(weakref.ref(self))
        alive.append(sum(pack() is not None for pack in {id(each()): each for each in packs}.values()))
        if len(self.lanes) > 1:
            raise torch.OutOfMemoryError("out of memory, for this test")
        return original(self, batches)

    monkeypatch.setattr(Pack, "_gradients", small_device)
    kit.run(base, [kit.make_lane(base, "lora", seed=seed) for seed in range(4)])
    assert len(alive) > 12
    assert max(alive) == 1


@pytest.mark.gpu
def test_what_ran_out_of_memory_leaves_nothing_allocated_on_a_gpu(kit, gpu, monkeypatch):
    original, taken, ballast = Pack.step, [], 1
    base = kit.make_base(device=gpu)

    def small_device(self):
        if len(self.lanes) > 1 and self.lanes[0].done == 4:
            self.ballast = torch.empty(ballast, dtype=torch.uint8, device=gpu)
            raise torch.OutOfMemoryError("out of memory, for this test")
        if len(self.lanes) == 1 and self.lanes[0].done == 4 and self._replay is None:
            taken.append(torch.cuda.memory_allocated(gpu))
        return original(self)

    monkeypatch.setattr(Pack, "step", small_device)
    for size in (1, 1, 2**30):
        ballast = size
        kit.run(base, [kit.make_lane(base, "lora", seed=seed) for seed in range(2)])
    assert taken[4] - taken[2] < 2**27, "a gibibyte less than if it were still held"


def test_lanes_of_a_model_whose_layers_see_more_than_rows_train_one_by_one(kit):
    """DeBERTa gives its query and key layers relative positions too, once for all rows."""
    settings = [("lora", 1e-2, 0), ("mora", 3e-3, 1)]
    solo = [kit.run(base := kit.make_classifier("shared positions"), [kit.make_lane(base, *each)]) for each in settings]
    base = kit.make_classifier("shared positions")
    names = {name.rsplit(".", 1)[-1] for name in set(base.slots) - base.rowwise}
    assert names == {"query_proj", "key_proj"}
    packed = kit.run(base, [kit.make_lane(base, *each) for each in settings])
    kit.assert_same_as_solo(packed, solo)
    assert [lane.pack_lanes for lane in packed.finished_lanes] == [1, 1]


@pytest.mark.parametrize(
    ("dropout", "together"), [((0.0, 0.0, 0.0), [3, 3, 3]), ((0.1, 0.1, 0.1), [1, 1, 1]), ((0.0, 0.1, 0.0), [2, 1, 2])]
)
def test_lanes_with_dropout_train_one_by_one_where_layers_see_rows_and_tokens_as_one(kit, dropout, together):
    """So do some of OPT's. Which elements are dropped there would depend on how far other lanes' texts are padded."""
    config = OPTConfig(
        vocab_size=40, hidden_size=24, ffn_dim=36, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=24,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip

    def make_base():
        torch.manual_seed(0)
        return kit.make_base(model=OPTForCausalLM(config).requires_grad_(False))

    def make_lane(base, seed):
        return kit.make_lane(base, "lora", seed=seed, changes={"dropout": dropout[seed]})

    solo = [kit.run(base := make_base(), [make_lane(base, seed)]) for seed in range(3)]
    base = make_base()
    lanes = [make_lane(base, seed) for seed in range(3)]
    kit.assert_same_as_solo(kit.run(base, lanes), solo)
    assert [lane.pack_lanes for lane in lanes] == together


def test_nothing_is_compiled_unless_asked_for(kit, method):
    """Neither training nor a method's calibration: a machine may have no C++ compiler, and every form takes seconds."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    kit.run(base := kit.make_base(), [kit.make_lane(base, method, steps=3)])
    assert not torch._dynamo.utils.counters["frames"]


class Scored:
    """Scores a model by what it is asked to score: which lane, at which step, on which split."""

    def __init__(self, kit, monkeypatch, fails=lambda context: False):
        self.calls = []

        def evaluate(task, model, context, split):
            self.calls.append((context.seed, split))
            if fails(context):
                raise RuntimeError("scoring failed on purpose")
            return Evaluation({"loss": float(len(self.calls))})

        def load(task, context, load=kit.ToyTask.load):
            return replace(load(task, context), splits={"validation": "validation", "test": "test"})

        monkeypatch.setattr(kit.ToyTask, "evaluate", evaluate)
        monkeypatch.setattr(kit.ToyTask, "load", load)


def test_validation_is_scored_where_the_recipe_says_and_test_once_at_the_end(kit, monkeypatch):
    scored = Scored(kit, monkeypatch)
    lane = kit.make_lane(base := kit.make_base(), "lora", evaluate_at=(4, 8, 12))
    kit.run(base, [lane])
    assert [split for _, split in scored.calls] == ["validation", "validation", "test"]
    assert {each["step"]: each["metrics"]["loss"] for each in lane.history if "loss" in each["metrics"]} == {
        4: 1.0, 8: 2.0
    }, "a curve is of one split"  # fmt: skip
    assert lane.evaluation.metrics == {"loss": 3.0}
    assert [each["step"] for each in lane.history] == list(range(1, 13)), "and every loss is there"


def test_a_trial_that_only_chooses_a_learning_rate_never_sees_test(kit, monkeypatch):
    scored = Scored(kit, monkeypatch)
    base = kit.make_base()
    kit.run(base, [kit.make_lane(base, "lora", seed=0, purpose="tune"), kit.make_lane(base, "lora", seed=1)])
    assert sorted(scored.calls) == [(0, "validation"), (1, "test")]


def test_a_failing_score_is_that_lanes_result_alone(kit, monkeypatch):
    Scored(kit, monkeypatch, fails=lambda context: context.seed == 0)
    base = kit.make_base()
    bad, good = lanes = [kit.make_lane(base, "lora", seed=seed) for seed in (0, 1)]
    recorder = kit.run(base, lanes)
    assert recorder.finished_lanes == lanes
    assert "on purpose" in str(bad.error)
    assert bad.evaluation is None
    assert good.error is None
    assert good.evaluation is not None
    assert all(not slot.parts for slot in base.slots.values())


def test_what_a_failing_score_held_is_gone_before_the_next_lane_is_scored(kit, monkeypatch):
    held, alive = [], []

    def evaluate(task, model, context, split):
        alive.append([each() is not None for each in held])
        batch = torch.zeros(3)
        held.append(weakref.ref(batch))
        raise torch.OutOfMemoryError("out of memory, for this test")

    monkeypatch.setattr(kit.ToyTask, "evaluate", evaluate)
    base = kit.make_base()
    kit.run(base, [kit.make_lane(base, "lora", seed=seed) for seed in range(3)])
    assert alive == [[], [False], [False, False]]


def test_tokens_are_counted_without_padding(kit):
    base = kit.make_base()
    lanes = [kit.make_lane(base, "lora", seed=seed) for seed in (0, 1)]
    expected = []
    for seed in (0, 1):
        again = kit.make_lane(kit.make_base(), "lora", seed=seed)
        expected.append(0)
        for _ in range(12):
            expected[-1] += sum(len(row.ids) for row in again.rows())
            again.advance()
    kit.run(base, lanes)
    assert [lane.train_tokens for lane in lanes] == expected


def test_a_lane_is_evaluated_without_gradients_and_leaves_no_trace_even_of_a_failure(kit):
    base = kit.make_base()
    lane = kit.make_lane(base, "lora")
    with evaluating(base, lane) as model:
        assert not model(input_ids=torch.arange(3, 9)[None]).logits.requires_grad
        assert not any(module.training for module in lane.trained().values())
    with pytest.raises(IndexError), evaluating(base, lane) as model:
        model(input_ids=torch.tensor([[40]]))  # the model knows 40 tokens
    assert torch.is_grad_enabled()
    assert all(not slot.parts for slot in base.slots.values())


def test_scoring_that_runs_out_of_memory_in_a_pack_is_said(kit, monkeypatch, caplog):
    scored = Scored(kit, monkeypatch)
    plain, seen = kit.ToyTask.evaluate, []

    def evaluate(task, model, context, split):
        seen.append(context.seed)
        if len(seen) == 2:
            raise torch.OutOfMemoryError("out of memory, for this test")
        return plain(task, model, context, split)

    monkeypatch.setattr(kit.ToyTask, "evaluate", evaluate)
    base = kit.make_base()
    recorder = kit.run(base, [kit.make_lane(base, "lora", seed=seed, evaluate_at=(4, 8)) for seed in (0, 1)])
    assert [lane.error for lane in recorder.finished_lanes] == [None, None]
    assert [record.getMessage() for record in caplog.records] == [
        "toy/lora/lr0.01/s1: out of memory while scoring step 4"
    ]
    points = {lane.trial.seed: [each["step"] for each in lane.history if "loss" in each["metrics"]]
              for lane in recorder.finished_lanes}  # fmt: skip
    assert points == {0: [4, 8], 1: [8]}
    assert [split for _, split in scored.calls].count("test") == 2


# --- which update's weights are scored --------------------------------------------------------------------------------


def scores_by_step(kit, monkeypatch, scores):
    """Let validation after each update have a made-up score, and test show which update's weights are scored."""

    def evaluate(task, model, context, split):
        rows = "validation" if split is not context_splits["test"] else "test"
        seen.append((rows, fingerprint(model)))
        return Evaluation({"loss": next(made) if rows == "validation" else 0.5})

    made, seen, context_splits = iter(scores), [], {}
    plain = kit.ToyTask.load

    def load(task, context):
        data = plain(task, context)
        context_splits.update(data.splits)
        return data

    def fingerprint(model):
        return float(model(input_ids=torch.arange(3, 8)[None]).logits.square().sum())

    monkeypatch.setattr(kit.ToyTask, "load", load)
    monkeypatch.setattr(kit.ToyTask, "evaluate", evaluate)
    return seen


@pytest.mark.parametrize("name", ["lora", "full"])
@pytest.mark.parametrize(("scores", "best"), [((3.0, 1.0, 2.0, 1.0), 1), ((3.0, 2.0, 2.0, 1.0), 3), ((9.0,) * 4, 0)])
def test_the_best_checkpoint_on_validation_is_what_test_scores_and_what_is_kept(kit, monkeypatch, name, scores, best):
    seen = scores_by_step(kit, monkeypatch, scores)
    base = kit.make_base()
    lane = kit.make_lane(base, name, evaluate_at=(2, 4, 6), steps=8, checkpoint="best")
    kit.run(base, [lane])
    assert [split for split, _ in seen] == ["validation"] * 4 + ["test"]
    assert seen[4][1] == seen[best][1]  # the same function as at that evaluation
    assert len({value for _, value in seen[:4]}) == 4
    assert lane.best.step == 2 * (best + 1)
    assert lane.evaluation.metrics == {"loss": 0.5}
    assert [each["metrics"].get("loss") for each in lane.history if each["step"] % 2 == 0] == list(scores)
    for key, value in lane.state().items():
        assert torch.equal(value, lane.best.state[key])


@pytest.mark.parametrize("name", ["lora", "full"])
def test_the_checkpoint_may_be_chosen_by_the_loss_of_the_validation_rows(kit, monkeypatch, name):
    seen = scores_by_step(kit, monkeypatch, (1.0, 2.0, 3.0, 4.0))  # what ranks would choose the first
    rows = [Example([5, 7, 9, 11], [-100, 7, 9, 11]), Example([6, 4, 3], [-100, -100, 3])]
    monkeypatch.setattr(kit.ToyTask, "validation_examples", lambda task, split: rows)
    losses, real = iter((3.0, 2.0, 0.5, 1.0)), []

    def loss(model, kind, examples, *rest):
        assert examples is rows
        now[0] += 10.0
        real.append(training_loss(model, kind, examples, *rest))
        return next(losses)

    now = [0.0]
    monkeypatch.setattr("harness.engine.training.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("harness.engine.training.training_loss", loss)
    base = kit.make_base()
    lane = kit.make_lane(base, name, evaluate_at=(2, 4, 6), steps=8, checkpoint="best-loss")
    kit.run(base, [lane])
    assert lane.best.step == 6
    assert seen[4] == ("test", seen[2][1])
    noted = [each["metrics"]["validation/loss"] for each in lane.history if "validation/loss" in each["metrics"]]
    assert noted == [3.0, 2.0, 0.5, 1.0]
    assert (lane.evaluate_seconds, lane.train_seconds) == (40.0, 0.0), "it is scoring, not training"
    assert len(set(real)) == 4


@pytest.mark.parametrize("kind", ["language", "classification"])
def test_the_loss_of_validation_rows_is_that_of_training_without_its_batches(kit, kind):
    if kind == "language":
        model = kit.make_base().model
        rows = [Example([5, 7, 9, 11], [-100, 7, 9, 11]), Example([6, 4, 3], [-100, -100, 3])]
        losses = [
            torch.nn.functional.cross_entropy(
                model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1], torch.tensor(row.labels[1:]),
                ignore_index=-100, reduction="sum",
            )
            for row in rows
        ]  # fmt: skip
        expected, model_kind = float(sum(losses)) / 4, ModelKind.CAUSAL_LM
    else:
        model = kit.make_classifier("encoder").model
        rows = [Example([5, 7, 9], 1), Example([6, 4, 3, 8], 0), Example([6, 4], 1)]
        losses = [
            torch.nn.functional.cross_entropy(
                model(input_ids=torch.tensor([row.input_ids])).logits, torch.tensor([row.labels])
            )
            for row in rows
        ]
        expected, model_kind = float(sum(losses)) / 3, ModelKind.CLASSIFICATION
    assert training_loss(model, model_kind, rows, 0, 2) == pytest.approx(expected, rel=1e-6)


def test_a_trial_that_only_chooses_is_scored_on_validation_at_its_best(kit, monkeypatch):
    seen = scores_by_step(kit, monkeypatch, (3.0, 1.0, 2.0, 1.0))
    base = kit.make_base()
    lane = kit.make_lane(base, "lora", evaluate_at=(2, 4), steps=6, checkpoint="best", purpose="tune")
    kit.run(base, [lane])
    assert [split for split, _ in seen] == ["validation"] * 4
    assert seen[3][1] == seen[1][1]
    assert lane.evaluation.metrics == {"loss": 1.0}


def test_in_a_pack_every_lane_goes_back_to_its_own_best(kit, monkeypatch):
    scores = {0: iter((1.0, 2.0, 3.0)), 1: iter((2.0, 1.0, 3.0)), 2: iter((3.0, 2.0, 1.0))}

    def evaluate(task, model, context, split):
        return Evaluation({"loss": next(scores[context.seed], 0.5)})

    monkeypatch.setattr(kit.ToyTask, "evaluate", evaluate)
    base = kit.make_base()
    lanes = [
        kit.make_lane(base, "lora", seed=seed, evaluate_at=(2, 4), steps=6, checkpoint="best") for seed in range(3)
    ]
    kit.run(base, lanes)
    assert [lane.best.step for lane in lanes] == [2, 4, 6]
    for lane, steps in zip(lanes, (2, 4, 6), strict=True):
        scores[lane.trial.seed] = iter(())
        alone = kit.make_lane(base, "lora", seed=lane.trial.seed, steps=6)
        alone.multipliers = alone.multipliers[:steps]
        kit.run(base, [alone])
        for key, value in lane.state().items():
            torch.testing.assert_close(value, alone.state()[key], rtol=1e-9, atol=1e-12)


def test_where_no_evaluation_has_a_score_the_last_update_counts(kit, monkeypatch):
    scores_by_step(kit, monkeypatch, (float("nan"), float("nan")))
    base = kit.make_base()
    lane = kit.make_lane(base, "lora", evaluate_at=(2,), steps=4, checkpoint="best")
    kit.run(base, [lane])
    assert (lane.best, lane.evaluation.metrics) == (None, {"loss": 0.5})


# --- what is kept of every step ---------------------------------------------------------------------------------------


def test_the_history_has_every_early_step_and_about_a_hundred_more(kit, monkeypatch):
    monkeypatch.setattr("harness.engine.training.EVERY_STEP", 7)
    monkeypatch.setattr("harness.engine.training._interval", lambda steps: 5)
    base = kit.make_base()
    lane = kit.make_lane(base, "lora", steps=23, evaluate_at=(18,), clip_norm=0.0)
    clipped = kit.make_lane(base, "lora", steps=23, clip_norm=1e-3)
    for each in (lane, clipped):
        kit.run(base, [each])
    assert [each["step"] for each in lane.history] == [1, 2, 3, 4, 5, 6, 7, 10, 15, 18, 20, 23]
    norms = [each["metrics"]["train/gradient_norm"] for each in clipped.history]
    assert norms[0] == pytest.approx(lane.history[0]["metrics"]["train/gradient_norm"], rel=1e-6)  # before clipping
    assert min(norms) > 1e-3


def test_the_gradient_norm_is_that_of_a_plain_loop(kit):
    base = kit.make_base()
    lane = kit.make_lane(base, "full", steps=1, batch_size=10)
    kit.run(base, [lane])
    model = kit.language_model().requires_grad_(True)
    total = 0.0
    for example in lane.data.train:
        total += model(input_ids=torch.tensor([example.input_ids]), labels=torch.tensor([example.labels])).loss * sum(
            label != -100 for label in example.labels[1:]
        )
    count = sum(label != -100 for example in lane.data.train for label in example.labels[1:])
    (total / count).backward()
    expected = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert lane.history[0]["metrics"]["train/gradient_norm"] == pytest.approx(float(expected), rel=1e-6)

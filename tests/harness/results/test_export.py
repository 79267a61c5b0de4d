"""An exported trial computes what the trial computed, for programs that know nothing of harness."""

from __future__ import annotations

import errno
import json
import signal
import sys
from dataclasses import asdict, replace

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import save
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from harness import cli
from harness.bases import resolve
from harness.contract.record import Record, State
from harness.contract.task import TaskContext
from harness.contract.trial import Trial
from harness.engine.build import build_lane
from harness.engine.model import choose_model, load_model, load_tokenizer
from harness.engine.resident import Base
from harness.engine.training import evaluating, train
from harness.errors import DataError, RecordError, UsageError
from harness.planning.budget import budget_parameters, solve
from harness.planning.registry import build_registry
from harness.results.export import export_merged, export_peft, factorise, read_trained, whole_or_nothing
from harness.results.store import Store
from harness.results.vllm import vllm_verdict
from harness_plugins.methods.dora import DoRAAdapter

REGISTRY = build_registry()
IDS = torch.arange(2, 26).reshape(2, 12)


class Silent:
    """Watches a training and says nothing."""

    def progress(self, lane, step, metrics):
        pass

    def finished(self, lane):
        assert lane.error is None, lane.error


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a tiny LLaMA and of a tiny GPT-2, whose linear layers have transposed weights and biases."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("nano"))
    llama = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    gpt2 = GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=24, n_layer=2, n_head=2)
    folders = {}
    for name, kind, config in (("llama", LlamaForCausalLM, llama), ("gpt2", GPT2LMHeadModel, gpt2)):
        torch.manual_seed(0)
        folders[name] = tmp_path_factory.mktemp(name)
        kind(config).save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture
def finish(tmp_path, models):
    """Return a function that trains a trial for a few steps: its record, the store, its logits."""

    def run(method, model="llama", precision="float32", **settings):
        task = REGISTRY.task("uuid")()
        recipe = replace(task.recipes["smoke"], steps=8, batch_size=2, pairs=4, evaluate_at=(), warmup_steps=0)
        choice = choose_model(str(models[model]), None, task, recipe)
        frozen, fresh = load_model(choice, task, recipe, precision, torch.device("cpu"))
        base = Base(frozen, task, precision, fresh)
        kind = REGISTRY.method(method)
        config, layers, count = kind.Config(**settings), {}, 0
        if not kind.traits.reference:
            budget = budget_parameters("lora:r=2", base.layers, base.parameters, REGISTRY)
            solution = solve(kind, config, budget, base.layers, 0.2)
            config, layers, count = solution.config, solution.layer_settings, solution.parameters
        trial = Trial(
            task="uuid", scale="smoke", recipe=asdict(recipe), model=choice.name, model_revision=choice.revision,
            method=method, config=asdict(config), layer_settings=layers, budget="lora:r=2" if count else "",
            budget_parameters=count or None, adapter_parameters=count, learning_rate=2e-2, seed=3, precision=precision,
        )  # fmt: skip
        context = TaskContext(
            tokenizer=load_tokenizer(choice, task, recipe), recipe=recipe, seed=trial.seed, adapter_parameters=1
        )
        own = {name: kind(replace(config, **changes)) for name, changes in layers.items()}
        lane = build_lane(base, trial, kind(config), own, context, task.load(context))
        train(base, [lane], Silent())
        with evaluating(base, lane) as adapted:
            expected = adapted(input_ids=IDS).logits.float()
        before = base.model(input_ids=IDS).logits.float()
        assert (expected - before).abs().max() > 0.05  # training changed something worth exporting
        store = Store(str(tmp_path / "results"))
        store.prepare()
        name = store.write_artifact(f"adapters/{trial.id}.safetensors", save(lane.state()))
        record = Record(
            trial=trial, state=State.COMPLETE, main_metric="character_accuracy", higher_is_better=True,
            started_at="", finished_at="", artifacts={"adapter": name},
        )  # fmt: skip
        store.write(record)
        return record, store, expected

    return run


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


def load_peft(record, folder):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(record.trial.model), folder)


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "dora", "pissa", "melora", "relora", "mora", "full"])
def test_the_merged_model_computes_what_the_adapted_one_did(finish, tmp_path, method, model):
    record, store, expected = finish(method, model)
    export_merged(read_trained(REGISTRY, store, record), tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert merged.config.use_cache
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("abc")["input_ids"]


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "pissa", "melora", "relora"])
def test_a_low_rank_update_is_an_exact_peft_checkpoint(finish, tmp_path, method, model):
    record, store, expected = finish(method, model)
    said = export_peft(read_trained(REGISTRY, store, record), tmp_path / "out")
    torch.testing.assert_close(logits(load_peft(record, tmp_path / "out")), expected, rtol=1e-4, atol=1e-4)
    # LoRA's rank, PiSSA's twice (trained minus starting pair), MELoRA's per mini, one of ReLoRA's per cycle of four.
    most = {"lora": 2, "pissa": 4, "melora": 4, "relora": 8}[method]
    assert f"rank {most};" in said or method in ("melora", "relora")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert max([config["r"], *config["rank_pattern"].values()]) <= most
    assert record.trial_id in (tmp_path / "out" / "README.md").read_text()
    assert vllm_verdict(tmp_path / "out") == "vLLM serves this adapter with --enable-lora"


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_what_peft_computes_itself_is_exported_as_that(finish, tmp_path, model):
    record, store, expected = finish("dora", model)
    said = export_peft(read_trained(REGISTRY, store, record), tmp_path / "out")
    assert said.endswith("as the method computes it")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["use_dora"] is True
    assert max([config["r"], *config["rank_pattern"].values()]) <= 2
    loaded = load_peft(record, tmp_path / "out")
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)
    assert any("magnitude" in name for name in loaded.state_dict())
    assert "DoRA" in vllm_verdict(tmp_path / "out")


@pytest.fixture
def no_form(monkeypatch):
    """DoRA as a method whose update PEFT has no form for."""
    monkeypatch.setattr(DoRAAdapter, "peft_form", lambda self: None)


@pytest.mark.usefixtures("no_form")
def test_an_update_of_high_rank_is_refused_and_names_the_way_out(finish, tmp_path):
    record, store, _ = finish("dora")
    with pytest.raises(UsageError, match=r"rank above 12, half of full rank.*--format merged, or --rank N"):
        export_peft(read_trained(REGISTRY, store, record), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_form")
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_an_update_of_high_rank_is_exact_at_full_rank(finish, tmp_path, model):
    record, store, expected = finish("dora", model)
    export_peft(read_trained(REGISTRY, store, record), tmp_path / "out", rank=24)
    torch.testing.assert_close(logits(load_peft(record, tmp_path / "out")), expected, rtol=1e-4, atol=1e-4)


def test_layers_of_different_rank_and_a_module_that_trained_whole(finish, tmp_path, monkeypatch):
    monkeypatch.setattr(REGISTRY.task("uuid"), "trains", ("lm_head", "norm"))
    record, store, expected = finish("lora")
    trial = replace(record.trial, layer_settings={"model.layers.0.mlp.up_proj": {"r": 1, "alpha": 8.0}})
    state = read_trained(REGISTRY, store, record).state
    for part, rows in (("a", slice(0, 1)), ("b", (slice(None), slice(0, 1)))):
        state[f"model.layers.0.mlp.up_proj.{part}"] = state[f"model.layers.0.mlp.up_proj.{part}"][rows].contiguous()
    name = store.write_artifact("adapters/other.safetensors", save(state))
    record = replace(record, trial=trial, artifacts={"adapter": name})
    export_peft(read_trained(REGISTRY, store, record), tmp_path / "peft")
    export_merged(read_trained(REGISTRY, store, record), tmp_path / "merged")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == {"model.layers.0.mlp.up_proj": 1}
    assert config["modules_to_save"] == ["model.norm", "lm_head"]
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(logits(load_peft(record, tmp_path / "peft")), merged, rtol=1e-4, atol=1e-4)
    assert (merged - expected).abs().max() > 1e-3  # the layer that was cut counts


def test_half_precision_weights_keep_small_updates(finish, tmp_path):
    record, store, expected = finish("lora", precision="bfloat16")
    export_merged(read_trained(REGISTRY, store, record), tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.dtype == torch.float32
    torch.testing.assert_close(logits(merged), expected, rtol=0.05, atol=0.05)  # bfloat16 activations: 3 digits


def test_full_fine_tuning_has_no_peft_form(finish, tmp_path):
    record, store, _ = finish("full")
    with pytest.raises(UsageError, match=r"trains the weights themselves.*--format merged"):
        export_peft(read_trained(REGISTRY, store, record), tmp_path / "out")


def test_other_weights_under_the_same_name_are_refused(finish, models, tmp_path):
    record, store, _ = finish("lora")
    changed = replace(record, trial=replace(record.trial, model_revision="0" * 16))
    with pytest.raises(DataError, match=r"trained on 0{16}"):
        read_trained(REGISTRY, store, changed)


def test_what_did_not_finish_or_is_lost_is_refused(finish):
    record, store, _ = finish("lora")
    with pytest.raises(RecordError, match=r"ended as diverged and left nothing to export"):
        read_trained(REGISTRY, store, replace(record, state=State.DIVERGED))
    with pytest.raises(RecordError, match=r"'adapters/gone' which is not in|'adapters/gone', which is not in"):
        read_trained(REGISTRY, store, replace(record, artifacts={"adapter": "adapters/gone"}))


def test_a_file_that_does_not_fit_is_refused(finish, tmp_path):
    record, store, _ = finish("lora")
    bigger = replace(record, trial=replace(record.trial, config={**record.trial.config, "r": 5}))
    with pytest.raises(RecordError, match="does not fit the method and the model of today"):
        export_merged(read_trained(REGISTRY, store, bigger), tmp_path / "out")


def test_factors_of_a_known_matrix():
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(90, 50, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(70, 50, generator=generator)).Q
    values = torch.zeros(50)
    values[:3] = torch.tensor([3.0, 2.0, 1.0])
    matrix = left * values @ right.T
    found = factorise(matrix)
    assert found.rank == 3
    assert found.residual < 1e-6
    torch.testing.assert_close(found.b @ found.a, matrix, rtol=1e-5, atol=1e-6)
    cut = factorise(matrix, 1)  # what is left out has length sqrt(2² + 1²) of sqrt(3² + 2² + 1²)
    assert (cut.rank, cut.residual) == (1, pytest.approx((5 / 14) ** 0.5, rel=1e-5))
    assert factorise(left * torch.ones(50) @ right.T) is None  # rank 50 of at most 35
    assert factorise(torch.zeros(4, 6)).rank == 1


def test_the_command_exports_and_says_what(finish, tmp_path, capsys, monkeypatch):
    record, store, _ = finish("melora")

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return stop.value.code or 0, capsys.readouterr()

    start = ("export", record.trial_id[:6], "--results", store.root, "-o")
    code, said = command(*start, tmp_path / "lora", "--format", "peft", "--rank", 1)
    assert code == 0
    assert "layers, rank 1; largest part of an update that is missing:" in said.err
    assert "PeftModel.from_pretrained" in said.out
    assert command(*start, tmp_path / "merged")[0] == 0
    for weights, beside in (("lora/adapter_model", "lora/adapter_config"), ("merged/model", "merged/config")):
        modes = {(tmp_path / name).stat().st_mode for name in (f"{weights}.safetensors", f"{beside}.json")}
        assert len(modes) == 1, "whoever may read the settings may read the weights"
    (tmp_path / "file").write_text("")
    code, said = command(*start, tmp_path / "file" / "x")
    assert (code, "cannot write" in said.err) == (2, True)
    code, said = command(*start, tmp_path / "merged")
    assert (code, "is there and not empty" in said.err) == (2, True)
    code, said = command(*start, tmp_path / "other", "--rank", 4)
    assert (code, "--rank 4 cuts the update of --format peft" in said.err) == (2, True)


@pytest.mark.parametrize("whole", ["lm_head", "transformer.wte"])
def test_a_head_that_trained_apart_from_the_embedding_it_was_tied_to_is_exported_apart(
    finish, tmp_path, monkeypatch, whole
):
    monkeypatch.setattr(REGISTRY.task("uuid"), "trains", (whole,))
    record, store, expected = finish("lora", "gpt2")
    export_merged(read_trained(REGISTRY, store, record), tmp_path / "out")
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "cannot write .*new.*No space left on device; name another"),
        (SafetensorError("I/O error: No space left on device"), "cannot write .*new.*No space left on device; name"),
    ],
)
def test_a_full_disk_is_said_and_leaves_a_folder_that_may_be_used_again(tmp_path, error, said):
    folder = tmp_path / "new"

    def write():
        with whole_or_nothing(folder):
            (folder / "deep").mkdir(parents=True)
            (folder / "deep" / "model.safetensors").write_text("the first half")
            (folder / "config.json").write_text("{}")
            raise error

    for _ in range(2):
        with pytest.raises(UsageError, match=said):
            write()
        assert list(folder.iterdir()) == []
    (folder / "kept.txt").write_text("somebody's")
    with pytest.raises(UsageError, match="not empty"):
        write()
    assert (folder / "kept.txt").read_text() == "somebody's"

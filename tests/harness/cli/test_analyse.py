"""``harness analyse`` as a user types it, on trials that were really trained."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from harness import cli


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return a result root with a trial of LoRA and one of full fine-tuning."""
    from click.testing import CliRunner

    root = tmp_path_factory.mktemp("results")
    arguments = [
        "run", "--seeds", "1", "--methods", "lora,full", "--task", "uuid", "--steps", "2", "--workers", "1",
        "--no-mlflow", "--results", str(root),
    ]  # fmt: skip
    done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return root


def ids(results):
    records = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    return {record["trial"]["method"]: record["trial_id"] for record in records}


def invoke(*arguments):
    from click.testing import CliRunner

    return CliRunner().invoke(cli.app, [*map(str, arguments)], catch_exceptions=False)


def test_the_spectrum_of_trained_trials(results, tmp_path):
    both = ids(results)
    done = invoke(
        "analyse", "spectrum:threshold=0", *both.values(), "--results", results, "--figure", tmp_path / "f.svg"
    )
    assert done.exit_code == 0, done.output
    lora, full = (re.search(rf"uuid/{m}/\S+ +q_proj +\d+ +(\d+)", done.output) for m in ("lora", "full"))
    assert int(lora[1]) >= 8
    assert int(full[1]) > 100, "full fine-tuning changes every direction"
    assert "The paper says" in done.output
    assert (tmp_path / "f.svg").stat().st_size > 1000
    assert len(list((results / "analyses").glob("spectrum-*.json"))) == 2


def test_json_has_every_layer_and_is_the_adapters_own_product(results):
    trial = ids(results)["lora"]
    done = invoke("analyse", "spectrum", trial, "--results", results, "--json")
    (found,) = json.loads(done.stdout)
    tensors = load_file(results / "adapters" / f"{trial}.safetensors")
    layer = found["layers"][0]
    a, b = (tensors[f"{layer['layer']}.{name}"].double() for name in ("a", "b"))
    scale = 16 / a.shape[0]
    assert layer["values"]["largest"] == pytest.approx(float(torch.linalg.svdvals(scale * b @ a)[0]), rel=1e-4)


def test_an_export_is_told_as_json(results, tmp_path):
    trial = ids(results)["lora"]
    done = invoke("export", trial, "--results", results, "-o", tmp_path / "out", "--format", "auto", "--json")
    told = json.loads(done.stdout)
    assert (told["trial_id"], told["format"], told["folder"]) == (trial, "peft", str(tmp_path / "out"))
    assert "PeftModel.from_pretrained" in told["code"]
    assert any("vLLM" in note for note in told["notes"])


def test_a_base_model(results):
    done = invoke("analyse", "quantisation-error:r=4", "--task", "uuid", "--results", results)
    assert done.exit_code == 0, done.output
    assert "q_proj" in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["spectrun"], "did you mean spectrum"),
        (["spectrum"], "name some"),
        (["fast-svd"], "name trials, or give --task"),
        (["spectrum:thresold=1", "x"], "thresold"),
        (["spectrum", "nothing"], "0 records"),
        (["spectrum", "0", "--model", "nano"], "--model nano: trials are looked at on the model that they trained"),
    ],
)
def test_mistakes_are_named(results, arguments, said):
    from harness.errors import HarnessError

    with pytest.raises(HarnessError, match=said):
        invoke("analyse", *arguments, "--results", results)

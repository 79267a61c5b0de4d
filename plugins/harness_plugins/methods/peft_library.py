"""The methods of the library PEFT, run by its own code: ``--methods peft:vera,peft:oft``.

Each is attached to the model as PEFT attaches it, with PEFT's own defaults but for two things: its size is the
budget's, and a scale that PEFT states as a numerator over the rank follows the rank, so that another rank is not
another scale. Its checkpoint is PEFT's. PEFT is imported only when one of them is planned or run.

Left out: what cannot be counted without weights (AdaMSS, FRoD, SHiRA), what needs to be told its steps or tasks
(AdaLoRA, Poly, multi-task prompts), what fails while decoding (prefix tuning, cartridges), and Lily, whose routing
looks ahead in the text, so that a language model sees the tokens that it is to predict.

What is not here: methods written for this project, which train many at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import nn

from harness import ConfigError, Method, MethodConfig, MethodTraits, UsageError, adapted_layers, hookimpl, setting

FAMILY = "peft"
REFERENCE = "https://huggingface.co/docs/peft/package_reference"
INSTALL = "it is run by the library PEFT, which is not installed: pip install 'peft-harness[peft]'"


class Tuner(NamedTuple):
    """A method of PEFT.

    Attributes:
        title: How its paper writes it.
        paper: The number of the paper on arXiv; empty where PEFT's documentation names none there.
        knob: The field of PEFT's config that the budget sets, and its default; empty: the size is fixed.
        fields: Other fields that may be set, with PEFT's defaults.
        scale: A field that follows the knob, and by what factor, so that the ratio is that of PEFT's defaults.
        rate: Where its paper puts the learning rate, as a multiple of LoRA's.
        merges: Whether PEFT can merge it.
        starts_apart: Whether the model is another one before the first step.
        check: Settings for tiny layers.
    """

    title: str
    paper: str
    knob: tuple[str, int] | None = ("r", 8)
    fields: Mapping[str, Any] = {}
    scale: tuple[str, float] | None = None
    rate: float = 1.0
    merges: bool = True
    starts_apart: bool = False
    check: Mapping[str, Any] = {}


TUNERS: Mapping[str, Tuner] = {
    "beft": Tuner("BEFT", "2509.15974", None, merges=False, rate=10.0),
    "boft": Tuner("BOFT", "2311.06243", None, {"boft_block_size": 4, "boft_n_butterfly_factor": 1}),
    "c3a": Tuner("C3A", "2407.19342", None, {"block_size": 256}, check={"block_size": 8}, rate=10.0, starts_apart=True),
    "deft": Tuner("DEFT", "", fields={"decomposition_method": "relu"}),
    "delora": Tuner("DeLoRA", "2503.18225", fields={"delora_lambda": 15}),
    "fourierft": Tuner(
        "FourierFT", "2405.03003", ("n_frequency", 1000), {"scaling": 150.0},
        starts_apart=True, check={"n_frequency": 50},
    ),
    "glora": Tuner("GLoRA", "2306.07967"),
    "gralora": Tuner("GraLoRA", "2505.20355", ("r", 32), {"gralora_k": 2}, ("alpha", 2.0), check={"r": 4}),
    "hira": Tuner("HiRA", "", ("r", 32), check={"r": 4}),
    "hra": Tuner("HRA", "2405.17484"),
    "ia3": Tuner("(IA)3", "2205.05638", None, rate=10.0),
    "ln_tuning": Tuner("LayerNorm tuning", "2312.11420", None),
    "loha": Tuner("LoHa", "2108.06098", scale=("alpha", 1.0)),
    "lokr": Tuner("LoKr", "2309.14859", fields={"decompose_factor": -1, "decompose_both": False}, scale=("alpha", 1.0)),
    "lora": Tuner("LoRA", "2106.09685", fields={"use_rslora": False, "use_dora": False}, scale=("lora_alpha", 1.0)),
    "miss": Tuner("MiSS", "2409.15371", ("r", 64), check={"r": 4}),
    "oft": Tuner("OFT", "2306.07280", ("oft_block_size", 32), {"coft": False}, check={"oft_block_size": 4}),
    "p_tuning": Tuner("P-tuning", "2103.10385", ("num_virtual_tokens", 20), rate=10.0, merges=False, starts_apart=True),
    "peanut": Tuner("PEANuT", "2410.01870", ("r", 32), {"depth": 0, "scaling": 1.0}, check={"r": 4}),
    "prompt_tuning": Tuner(
        "Prompt tuning", "2104.08691", ("num_virtual_tokens", 20), rate=10.0, merges=False, starts_apart=True
    ),
    "psoft": Tuner("PSOFT", "", ("r", 32), scale=("psoft_alpha", 1.0), check={"r": 4}),
    "pvera": Tuner("PVeRA", "2512.07703", ("r", 256), {"d_initial": 0.1}, rate=10.0),
    "randlora": Tuner("RandLoRA", "2502.00987", None, {"r": 32, "randlora_alpha": 640}),
    "road": Tuner("RoAd", "2409.00119", None, {"variant": "road_1", "group_size": 64}, check={"group_size": 8}),
    "tinylora": Tuner("TinyLoRA", "2602.04118", ("u", 64), {"r": 2}, rate=10.0),
    "unilora": Tuner("Uni-LoRA", "2506.00799", ("theta_d_length", 256), {"r": 4}, rate=10.0, starts_apart=True),
    "vblora": Tuner(
        "VB-LoRA", "2405.15179", ("num_vectors", 256), {"r": 4, "vector_length": 256, "topk": 2}, rate=10.0,
        check={"vector_length": 8, "num_vectors": 16}, starts_apart=True,
    ),
    "vera": Tuner("VeRA", "2310.11454", ("r", 256), {"d_initial": 0.1}, rate=10.0),
    "waveft": Tuner("WaveFT", "2505.12532", ("n_frequency", 2592), {"scaling": 25.0}, check={"n_frequency": 50}),
}  # fmt: skip
PROMPTS = ("p_tuning", "prompt_tuning")
OWN_LAYERS = ("ln_tuning",)  # PEFT knows of many models which layers these act on; of others, all norms
MOST_OF_POSITIONS = 4  # a prompt may take every fourth of the model's positions


class PeftMethod(Method):
    """A method of PEFT; the classes below are made from ``TUNERS``."""

    tuner: ClassVar[Tuner]
    member: ClassVar[str]

    def attach(self, model: nn.Module, generator: torch.Generator) -> nn.Module | None:
        """Let PEFT attach its method."""
        peft = _peft(self.name)
        with _seeded(generator), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that PEFT adjusts: what comes of it is counted
            try:
                wrapped = peft.get_peft_model(model, self._peft_config(peft, model))
            except (ValueError, TypeError, NotImplementedError) as error:
                raise ConfigError(f"{self.name}: PEFT refuses: {' '.join(str(error).split())}") from error
        kept = model if self.member not in PROMPTS else wrapped
        # Past nn.Module, to which it would be a part of itself.
        kept.__dict__["_peft"] = wrapped
        kept.__dict__["_peft_trains"] = [name for name, p in wrapped.named_parameters() if p.requires_grad]
        if kept is model:
            return None
        _cut_prompt(wrapped)
        return cast(nn.Module, wrapped)

    def export_attached(self, model: Any, folder: Path) -> str:
        """Write PEFT's own checkpoint."""
        wrapped: Any = model.__dict__["_peft"]
        config = wrapped.peft_config["default"]
        base = Path(str(config.base_model_name_or_path or ""))
        if base.is_dir():
            config.base_model_name_or_path = str(base.resolve())
        trained = {name for name, p in wrapped.named_parameters() if p.requires_grad}
        heads = _modules_of(trained - set(model.__dict__["_peft_trains"]))
        wrapped.save_pretrained(folder, save_embedding_layers=False)
        if heads:
            _add_heads(folder, wrapped, heads)
        return f"PEFT's own checkpoint of {self.tuner.title}"

    def _peft_config(self, peft: Any, model: Any) -> Any:
        kinds = {str(kind.value).lower(): config for kind, config in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
        if self.member not in kinds:
            raise ConfigError(f"{self.name}: PEFT {peft.__version__} has no such method; install a newer one")
        given = {name: getattr(self.config, name) for name in self.config.__dataclass_fields__}
        if self.tuner.scale and self.tuner.knob:
            field, factor = self.tuner.scale
            given[field] = given[self.tuner.knob[0]] * factor if given[field] == "auto" else given[field]
        if self.member in PROMPTS:
            _check_prompt(self.name, given["num_virtual_tokens"], model)
            given["task_type"] = "CAUSAL_LM"
        elif self.member not in OWN_LAYERS:
            given["target_modules"] = list(adapted_layers(model))
        elif model.config.model_type not in peft.utils.constants.TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING:
            given["target_modules"] = [name for name, each in model.named_modules() if "Norm" in type(each).__name__]
        if self.member == "ia3":  # every output is scaled; PEFT scales the input of layers named here
            given["feedforward_modules"] = []
        if self.member == "oft":
            given["r"] = 0  # the number of blocks follows from their size
        return kinds[self.member](**given)


class MergeablePeftMethod(PeftMethod):
    """A method of PEFT that PEFT can merge into the weights."""

    def merge_attached(self, model: Any) -> nn.Module:
        """Let PEFT merge it."""
        wrapped: Any = model.__dict__["_peft"]
        try:
            return cast(nn.Module, wrapped.merge_and_unload())
        except (ValueError, NotImplementedError) as error:
            raise UsageError(f"{self.name}: PEFT cannot merge it: {error}; use --format own") from error


def _peft(name: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError(f"{name}: {INSTALL}") from error
    return peft


@contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """Let what draws from the global stream draw from the trial's seed, and leave that stream alone."""
    with torch.random.fork_rng():
        torch.manual_seed(generator.initial_seed())
        yield


def _check_prompt(name: str, tokens: int, model: Any) -> None:
    if model.get_output_embeddings() is None:
        raise ConfigError(f"{name}: only before the texts of a language model, and this is none")
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and tokens * MOST_OF_POSITIONS > positions:
        raise ConfigError(
            f"{name}: num_virtual_tokens={tokens} is more than {positions // MOST_OF_POSITIONS}, a quarter of the "
            f"model's {positions} positions"
        )


def _cut_prompt(wrapped: Any) -> None:
    """Keep the prompt from the output head, which is to see one hidden state per token of the text.

    And count positions without padding, which PEFT does not where a prompt stands before it.
    """
    tokens = wrapped.peft_config["default"].num_virtual_tokens
    body = wrapped.base_model.base_model

    def count(module: nn.Module, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask, seen = given.get("attention_mask"), given.get("input_ids")
        seen = given["inputs_embeds"] if seen is None else seen
        if mask is not None and mask.ndim == 2:
            given["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -seen.shape[1] :]
        return args, given

    def cut(module: nn.Module, args: Any, given: Mapping[str, Any], output: Any) -> Any:
        if given.get("input_ids") is None and output.last_hidden_state.shape[1] > tokens:  # embeddings: with a prompt
            output.last_hidden_state = output.last_hidden_state[:, tokens:]
        return output

    body.register_forward_pre_hook(count, with_kwargs=True)
    body.register_forward_hook(cut, with_kwargs=True)


def _modules_of(names: set[str]) -> list[str]:
    """Return the names, in the plain model, of the modules that hold these parameters."""
    return sorted({name.rpartition(".")[0].removeprefix("base_model.model.") for name in names})


def _add_heads(folder: Path, wrapped: Any, heads: list[str]) -> None:
    """Put modules that trained whole into the checkpoint, as PEFT does with ``modules_to_save``."""
    import json

    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    for head in heads:
        for key, value in wrapped.base_model.model.get_submodule(head).state_dict().items():
            tensors[f"base_model.model.{head}.{key}"] = value.detach().clone().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"modules_to_save": heads, "task_type": "SEQ_CLS"}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _config(tuner: Tuner) -> type[MethodConfig]:
    """Return the settings of a method of PEFT."""
    fields: list[tuple[str, Any, Any]] = []
    for name, default in (*((tuner.knob,) if tuner.knob else ()), *tuner.fields.items()):
        least = 1 if tuner.knob and name == tuner.knob[0] else None
        fields.append((name, type(default), setting(default, f"PEFT's {name}", minimum=least)))
    if tuner.scale and tuner.knob:
        name, factor = tuner.scale
        said = f"PEFT's {name}; auto: {tuner.knob[0]} x {factor:g}, the ratio of PEFT's defaults"
        fields.append((name, Any, setting("auto", said, kind=float)))
    return make_dataclass("Config", fields, bases=(MethodConfig,), frozen=True)


def _method(member: str, tuner: Tuner) -> type[Method]:
    """Return the class of a method of PEFT."""
    base = MergeablePeftMethod if tuner.merges else PeftMethod
    traits = MethodTraits(
        in_all=False, budget_knob=tuner.knob[0] if tuner.knob else None, mergeable=tuner.merges,
        identity_at_init=not tuner.starts_apart, learning_rate_factor=tuner.rate, check_config=tuner.check,
    )  # fmt: skip
    members = {
        "__doc__": f"{tuner.title}, run by the library PEFT.", "__module__": __name__, "name": f"{FAMILY}:{member}",
        "title": f"{tuner.title} (PEFT)",
        "paper": f"https://arxiv.org/abs/{tuner.paper}" if tuner.paper else f"{REFERENCE}/{member}",
        "formula": "counted on the model", "Config": _config(tuner), "traits": traits, "tuner": tuner, "member": member,
    }  # fmt: skip
    return type(f"Peft{member.title().replace('_', '')}", (base,), members)


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register every method of PEFT that can be counted and trained, whether PEFT is installed or not."""
    return [_method(member, tuner) for member, tuner in TUNERS.items()]

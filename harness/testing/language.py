"""A language model of ``transformers`` as small as it can be, for methods that attach to a whole model.

It is called as every model is: token numbers and a mask in, logits out, and decoded with a cache. Its texts repeat few
of their tokens often, so that whatever reaches the output can fit them a little.

What is not here: linear layers alone, for adapters (``problem``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

VOCABULARY, TEXTS, TOKENS = 64, 8, 12
Batch = tuple[Tensor, Tensor]  # token numbers, (B, T), and what each position must predict, (B, T)


class LanguageProblem:
    """A frozen tiny LLaMA, and texts.

    Attributes:
        model: The frozen model.
        batches: Token numbers and the next ones, (B, T) each; two of them, always the same.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(20240229)
        self.model: Any = _build().to(dtype).requires_grad_(False).eval()
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.ndim > 1:
                    values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.copy_(values * parameter.shape[1] ** -0.5)
        often = 1.0 / torch.arange(1, VOCABULARY + 1).double().square()
        self.batches: list[Batch] = []
        for _ in range(2):
            texts = torch.multinomial(often.expand(TEXTS, -1), TOKENS + 1, replacement=True, generator=generator)
            self.batches.append((texts[:, :-1], texts[:, 1:]))

    def loss(self, batch: Batch, adapters: Mapping[str, nn.Module] | None = None) -> Tensor:
        """Return the mean cross-entropy on one batch."""
        tokens, following = batch
        return cross_entropy(self.logits(tokens).flatten(0, 1), following.flatten())

    def output(self, adapters: Mapping[str, nn.Module] | None = None) -> Tensor:
        """Return the logits of the first batch, (B, T, V)."""
        return self.logits(self.batches[0][0])

    def linears(self) -> Iterator[tuple[str, nn.Linear]]:
        """Yield the path and module of every linear layer but the output head."""
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear) and module is not self.model.lm_head:
                yield name, module

    def logits(self, tokens: Tensor, **more: Any) -> Tensor:
        """Return the logits of texts, (B, T, V)."""
        given = {"attention_mask": torch.ones_like(tokens), "use_cache": False, **more}
        return cast(Tensor, self.model(input_ids=tokens, **given).logits)


def small_config() -> Any:
    """Return the configuration of the tiny LLaMA."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCABULARY, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=None,
        use_cache=False, tie_word_embeddings=False,
    )  # fmt: skip


def on_meta() -> Any:
    """Return the tiny LLaMA without its weights."""
    with torch.device("meta"):
        return _build()


def _build() -> Any:
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):  # it draws weights, which are drawn anew
        return LlamaForCausalLM(small_config())

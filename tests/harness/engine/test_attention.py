"""Attention over keys that heads share."""

from __future__ import annotations

import pytest
import torch

from harness.engine.attention import attention


@pytest.mark.parametrize("masked", [True, False])
def test_one_new_token_sees_through_shared_keys_what_it_sees_through_copies(masked):
    """Decoding with grouped heads: keys and values are not copied for each head, and the output is the same."""
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 3, True
    query, key, value = (torch.randn(2, heads, n, 8) for heads, n in ((6, 1), (2, 5), (2, 5)))
    mask = torch.tensor([[False, True, True, True, True], [True, True, True, True, False]]) if masked else None
    found, _ = attention(module, query, key, value, None if mask is None else mask[:, None, None], scaling=0.3)
    scores = 0.3 * query @ key.repeat_interleave(3, 1).mT
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    expected = (scores.softmax(-1) @ value.repeat_interleave(3, 1)).transpose(1, 2)
    torch.testing.assert_close(found, expected)

"""NF4 under the names that methods and analyses here use: a matrix in 4 bits a value, as QLoRA defines it.

The harness keeps whole bases in it (``--quantize nf4``); methods use it to quantise matrices of their own. The blocks'
largest values stay in float32 here (no double quantisation), as in PiSSA's and LoftQ's comparisons.
"""

from __future__ import annotations

from harness import NF4, dequantise_nf4, nf4_levels, quantise_nf4

__all__ = ["BLOCK", "NF4", "dequantise", "levels", "quantise"]

BLOCK = 64  # values that share one scale
levels, quantise, dequantise = nf4_levels, quantise_nf4, dequantise_nf4

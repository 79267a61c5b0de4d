"""QPiSSA: PiSSA whose residual is kept in 4 bits.

    R <- W,   repeat:   B A <- top-r SVD of R,   Q <- nf4(W - B A),   R <- W - Q,
    y = Q x + s B A x,   B = U_r (S_r / s)^(1/2),   A = (S_r / s)^(1/2) V_r^T,   s = alpha / r.

One iteration is the paper's definition: the principal part is trained in full precision, and what is quantised is the
residual, whose values are smaller and closer to normal. The authors' tool iterates, five times in their scripts.

Source: Meng, Wang, Zhang, "PiSSA", NeurIPS 2024, arXiv:2404.02948, section 4. ``loftq`` quantises first.
"""

from __future__ import annotations

from torch import Tensor

from harness import Method, hookimpl
from harness_plugins.methods.loftq import LoftQ, rounded, top_factors


class QPiSSA(LoftQ):
    """PiSSA with a quantised residual."""

    name = "qpissa"
    title = "QPiSSA"
    paper = "https://arxiv.org/abs/2404.02948"
    citation = "Meng, Wang, Zhang: PiSSA: Principal Singular Values and Singular Vectors Adaptation, NeurIPS 2024"

    def start(self, weight: Tensor, r: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the matrix to be quantised (O, I), and the factors b (O, R) and a (R, I), for a weight (O, I)."""
        rest = weight
        for _ in range(self.config.iterations):
            b, a = top_factors(rest, r, scale)
            base = weight - scale * b @ a
            rest = weight - rounded(base)
        return base, b, a


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register QPiSSA."""
    return [QPiSSA]

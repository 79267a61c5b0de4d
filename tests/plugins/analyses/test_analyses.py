"""Every analysis on matrices whose answer is known."""

from __future__ import annotations

import math

import numpy
import pytest
import torch

from harness import LayerChange
from harness.planning.registry import build_registry
from harness_plugins.analyses.amplification import Amplification, AmplificationConfig
from harness_plugins.analyses.fast_svd import FastSvd, FastSvdConfig
from harness_plugins.analyses.quantisation_error import QuantisationConfig, QuantisationError, percentiles
from harness_plugins.analyses.spectrum import Spectrum, SpectrumConfig
from harness_plugins.analyses.subspace import Subspace, SubspaceConfig
from harness_plugins.nf4 import dequantise, quantise


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(rows, columns, seed=0):
    return torch.linalg.qr(draw(rows, columns, seed=seed)).Q


def with_spectrum(values, rows=40, columns=30, seed=0):
    values = torch.tensor(values, dtype=torch.float64)
    left, right = orthonormal(rows, len(values), seed), orthonormal(columns, len(values), seed + 1)
    return left @ torch.diag(values) @ right.T


def look(analysis, weight, update=None):
    found = analysis.look(LayerChange("layer", weight, update), torch.Generator().manual_seed(0))
    assert set(found.values) == set(analysis.columns)
    assert set(found.curves) == set(analysis.curves)
    return found


def test_every_registered_analysis_is_looked_at_here():
    assert set(build_registry().analyses) == {"amplification", "fast-svd", "quantisation-error", "spectrum", "subspace"}


def test_spectrum_of_equal_values():
    found = look(Spectrum(), draw(40, 30), with_spectrum([0.5] * 6))
    assert found.values["large"] == 6
    assert found.values["effective_rank"] == pytest.approx(6, rel=1e-6)
    assert found.values["stable_rank"] == pytest.approx(6, rel=1e-6)
    assert found.values["frobenius_norm"] == pytest.approx(0.5 * math.sqrt(6))


def test_spectrum_of_unequal_values_and_a_threshold_of_ones_own():
    update = with_spectrum([4.0, 2.0, 1.0, 0.05])
    found = look(Spectrum(SpectrumConfig(threshold=1.5)), draw(40, 30), update)
    assert found.values["large"] == 2
    assert look(Spectrum(), draw(40, 30), update).values["large"] == 3
    shares = [each / 7.05 for each in (4.0, 2.0, 1.0, 0.05)]
    assert found.values["effective_rank"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-6)
    assert found.values["stable_rank"] == pytest.approx((16 + 4 + 1 + 0.0025) / 16)
    assert found.curves["singular_values"][:4] == pytest.approx([4.0, 2.0, 1.0, 0.05])


@pytest.mark.parametrize("kind", [Spectrum, Subspace, Amplification])
def test_of_no_change_what_has_no_meaning_is_none(kind):
    found = look(kind(), draw(40, 30), torch.zeros(40, 30, dtype=torch.float64))
    assert None in found.values.values()
    assert not [each for each in found.values.values() if each is not None and not math.isfinite(each)]


@pytest.mark.parametrize("which", ["top", "bottom"])
def test_a_change_within_the_weights_own_directions_is_found_there(which):
    weight = draw(40, 30)
    u, _, vh = torch.linalg.svd(weight, full_matrices=False)
    chosen = slice(0, 3) if which == "top" else slice(-3, None)
    update = u[:, chosen] @ torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)) @ vh[chosen]
    found = look(Subspace(SubspaceConfig(directions=8, of_weight=5)), weight, update).values
    other = "bottom" if which == "top" else "top"
    for side in ("left", "right"):
        assert found[f"{side}_{which}"] == pytest.approx(1)
        assert found[f"{side}_{other}"] == pytest.approx(0, abs=1e-12)


def test_a_random_change_lies_everywhere_as_chance_has_it():
    """Of i directions in N dimensions, j random ones hold j / N in the mean (over min(i, j) = i)."""
    found = look(Subspace(SubspaceConfig(directions=4, of_weight=50)), draw(200, 200), draw(200, 200, seed=9)).values
    assert sum(found.values()) / len(found) == pytest.approx(50 / 200, abs=0.05)


def test_amplification_of_a_change_that_strengthens_what_is_there_and_of_one_that_is_new():
    weight = with_spectrum([8.0, 4.0, 2.0], seed=0)
    u, _, vh = torch.linalg.svd(weight, full_matrices=False)
    one = u[:, :1] @ vh[:1]
    found = look(Amplification(AmplificationConfig(directions=1)), weight, 0.5 * one).values
    assert found["amplification"] == pytest.approx(0.5 / 8)
    assert found["projected_norm"] == pytest.approx(8)
    third = u[:, 2:3] @ vh[2:3]
    assert look(Amplification(AmplificationConfig(directions=1)), weight, 0.5 * third).values["amplification"] == (
        pytest.approx(0.5 / 2)
    )
    assert found["weight_norm"] == pytest.approx(math.sqrt(64 + 16 + 4))


def test_what_decomposing_first_gains_follows_from_the_spectrum():
    """The error is proportional to the size of what is quantised: for QPiSSA the residual, without its top r values."""
    values = [each**-0.7 for each in range(1, 257)]
    weight = with_spectrum(values, 256, 256)
    found = look(QuantisationError(QuantisationConfig(r=4)), weight).values
    rounded = dequantise(quantise(weight), (256, 256), torch.float64)
    assert found["error"] == pytest.approx(float(torch.linalg.svdvals(weight - rounded).sum()))
    energy = [each**2 for each in values]
    assert found["qpissa_reduction"] == pytest.approx(1 - math.sqrt(sum(energy[4:]) / sum(energy)), abs=0.03)


def test_quantising_first_gains_the_top_of_the_errors_own_spectrum():
    """The error of a Gaussian matrix is noise, whose singular values follow the quarter circle: up to 2 deviations.

    Their mean is 8 / (3 pi), so the top 4 of 256 hold about 4 * 2 / (256 * 0.85) = 3.6 %.
    """
    found = look(QuantisationError(QuantisationConfig(r=4)), draw(256, 256)).values
    assert found["loftq_reduction"] == pytest.approx(4 * 2 / (256 * 8 / (3 * math.pi)), abs=0.004)
    # The top 4 of 256 have 4 * 4 / 256 of a Gaussian matrix' energy: little to gain from decomposing first.
    assert found["qpissa_reduction"] == pytest.approx(1 - math.sqrt(1 - 16 / 256), abs=0.01)
    assert found["weight_kurtosis"] == pytest.approx(0, abs=0.1)
    assert found["weight_deviation"] == pytest.approx(1, abs=0.02)


def test_fast_svd_is_exact_on_a_low_rank_matrix_and_better_with_more_iterations_on_a_slow_spectrum():
    low = look(FastSvd(FastSvdConfig(r=3, niter=1)), with_spectrum([3.0, 2.0, 1.0]).float()).values
    assert low["relative_error"] == pytest.approx(0, abs=1e-5)
    slow = with_spectrum([0.9**each for each in range(30)]).float()
    errors = [look(FastSvd(FastSvdConfig(r=5, niter=n)), slow).values["relative_error"] for n in (1, 4, 16)]
    assert errors[0] > errors[1] > errors[2]
    assert low["fast_seconds"] > 0


def test_fast_svd_shows_error_and_seconds_after_every_iteration():
    slow = with_spectrum([0.9**each for each in range(30)]).float()
    found = look(FastSvd(FastSvdConfig(r=5, niter=6)), slow)
    assert found.curves["errors"] == sorted(found.curves["errors"], reverse=True)
    assert len(found.curves["seconds"]) == 6
    assert found.curves["errors"][-1] == found.values["relative_error"]
    three = look(FastSvd(FastSvdConfig(r=5, niter=3)), slow)
    assert three.values["relative_error"] == found.curves["errors"][2]  # all begin with the same vectors


def test_percentiles_are_numpys():
    matrix = draw(13, 7)
    expected = numpy.percentile(matrix.numpy(), range(1, 100))
    assert percentiles(matrix) == pytest.approx(expected, abs=1e-12)

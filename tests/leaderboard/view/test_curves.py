"""Curves of training: what is drawn of them, and the areas below them."""

from __future__ import annotations

import pytest

from harness_leaderboard.boards.build import build_boards
from harness_leaderboard.view.curves import board_curves, mean_height
from harness_leaderboard.view.details import details
from harness_leaderboard.view.figures import figures


def history(loss, norm, steps):
    return [{"step": step, "metrics": {"train/loss": loss(step), "train/gradient_norm": norm}} for step in steps]


def test_the_mean_height_is_the_area_between_points_by_hand():
    assert mean_height([]) is None
    assert mean_height([(7, 3.0, 3.0, 3.0)]) == 3.0
    # From 1 to 3 a mean of 3 over two updates, from 3 to 13 a mean of 1 over ten.
    assert mean_height([(1, 4.0, 0, 9), (3, 2.0, 0, 9), (13, 0.0, 0, 9)]) == pytest.approx((2 * 3 + 10 * 1) / 12)


def test_a_board_has_the_areas_of_loss_and_gradient_norm_early_and_overall(make_record):
    steps = [*range(1, 101), *range(110, 301, 10)]
    records = [
        make_record("lora", seed, 0.5, history=history(lambda step: 4.0 if step <= 100 else 1.0, 2.0 + seed, steps))
        for seed in (0, 1)
    ]
    records.append(make_record("mora", 0, 0.5, history=[{"step": 1, "metrics": {"train/loss": 3.0}}]))
    (board,) = build_boards(records)
    curves = board_curves(board)
    ((_, (grid,)),) = [each for each in details(board, curves) if each[0] == "Convergence"]
    cells = {row[0].text: [cell.text for cell in row[1:]] for row in grid.rows}
    overall = (99 * 4 + 10 * 2.5 + 190 * 1) / 299  # flat, a slope over ten updates, flat
    assert cells["lora"] == ["4", f"{overall:.4g}", "2.5", "2.5"]
    assert cells["mora"] == ["3", "3", "—", "—"]


def test_the_curves_of_a_board_say_which_is_the_loss_and_which_the_gradient(make_record):
    (board,) = build_boards([make_record("lora", 0, 0.5, history=history(lambda _: 1.0, 2.0, [1, 2]))])
    drawn = figures(board, board_curves(board))["curves"]
    assert {each["metric"]: each["title"] for each in drawn} == {
        "train/loss": "Training loss", "train/gradient_norm": "Gradient norm in training"
    }  # fmt: skip

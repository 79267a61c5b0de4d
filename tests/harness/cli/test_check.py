"""``harness check`` runs the conformance kit on a method."""

from __future__ import annotations


def test_check_runs_the_kit_and_exits_with_the_outcome(trouble, command):
    good = command("check", "rslora")
    assert (good.code, good.out.splitlines()[-1]) == (0, "rslora: all checks passed")
    bad = command("check", "miscounting")
    assert bad.code == 1
    assert "failed" in bad.out


def test_an_unknown_method_exits_with_2(command):
    done = command("check", "lorra")
    assert "no method is called 'lorra'" in done.err
    assert done.code == 2

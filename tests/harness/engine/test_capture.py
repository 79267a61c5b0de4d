from __future__ import annotations

import pytest
import torch

from harness.engine.capture import capture


@pytest.mark.gpu
def test_replays_do_the_work_again_on_what_the_inputs_hold_then(gpu):
    x = torch.ones(3, device=gpu)
    graph, y = capture(lambda: 2 * x, torch.cuda.Stream(gpu))
    x.fill_(5)
    torch.cuda.synchronize(gpu)
    graph.replay()
    torch.cuda.synchronize(gpu)
    assert y.tolist() == [10, 10, 10]


@pytest.mark.gpu
def test_work_that_launches_nothing_on_the_stream_is_an_error(gpu):
    with pytest.raises(UserWarning, match="empty"):
        capture(lambda: None, torch.cuda.Stream(gpu))


@pytest.mark.gpu
def test_work_that_waits_for_the_device_is_an_error(gpu):
    x = torch.ones(3, device=gpu)
    with pytest.raises(RuntimeError):
        capture(lambda: x.sum().item(), torch.cuda.Stream(gpu))

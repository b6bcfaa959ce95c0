"""The refresh schedule: the published decisions, to the integer."""

from __future__ import annotations

import pytest
import torch

from frugalore.subspace import RefreshSchedule

GROUP = {"update_proj_gap": 200, "cos_threshold": 0.4, "gamma_proj": 2, "queue_size": 5, "stagger": False}


def _published(similarities, calls, gap=200, threshold=0.4, gamma=2, size=5):
    """The published rule, as the formulas of its code say it; similarities by number of refresh."""
    refreshes, queue = [], []
    for call in range(calls):
        if not refreshes or call % gap == 0:
            if refreshes:
                if len(queue) == size:
                    queue.pop(0)
                queue.append(similarities(len(refreshes)))
                if len(queue) == size and sum(queue) / size >= threshold:
                    gap = int(gap * gamma)
            refreshes.append(call)
    return refreshes, gap


def _ours(similarities, calls, group):
    schedule = RefreshSchedule()
    state = schedule.initial_state(group, 0)
    refreshes = []
    for call in range(calls):
        if schedule.due(state, group):
            schedule.refreshed(state, group, torch.tensor(similarities(len(refreshes))))
            refreshes.append(call)
        state["calls"] += 1
    return refreshes, state["gap"]


def test_a_stable_subspace_is_refreshed_as_published():
    refreshes, gap = _ours(lambda i: 1.0, 15000, GROUP)
    assert refreshes == [0, 200, 400, 600, 800, 1000, 1200, 1600, 3200, 6400, 12800]
    assert gap == 12800


@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_of_similarities(seed):
    values = torch.rand(2000, generator=torch.Generator().manual_seed(seed)).tolist()
    group = {**GROUP, "update_proj_gap": 7, "gamma_proj": 1.5, "queue_size": 1 + seed, "cos_threshold": 0.55}
    ours = _ours(lambda i: values[i], 1500, group)
    # float32 similarities: compare with what float32 holds
    held = [float(torch.tensor(v)) for v in values]
    assert ours == _published(lambda i: held[i], 1500, 7, 0.55, 1.5, 1 + seed)


def test_a_fixed_gap_never_grows():
    refreshes, gap = _ours(lambda i: 1.0, 100, {**GROUP, "update_proj_gap": 10, "cos_threshold": None})
    assert refreshes == list(range(0, 100, 10)) and gap == 10


def test_a_refresh_that_failed_is_tried_again_and_not_counted():
    schedule = RefreshSchedule()
    state = schedule.initial_state(GROUP, 0)
    for value in (float("nan"), float("nan"), 1.0):
        assert schedule.due(state, GROUP)
        schedule.refreshed(state, GROUP, torch.tensor(value))
        state["calls"] += 1
    assert state["refreshes"] == 1 and not schedule.due(state, GROUP)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("update_proj_gap", 0),
        ("update_proj_gap", 1.5),
        ("queue_size", 0),
        ("gamma_proj", 0.5),
        ("cos_threshold", float("nan")),
    ],
)
def test_bad_options(option, value):
    with pytest.raises(ValueError, match=option):
        RefreshSchedule().check_options({**GROUP, option: value})

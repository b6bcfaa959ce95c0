"""FusedQGaLore: bad options, parameters, gradients and states are named, and nothing is written."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import frugalore
from qgalore_helpers import OPTIONS, equal, loss_of, make_model, make_optimizer, snapshot, train


class TestBadInput:
    def _groups(self, **options):
        return frugalore.param_groups(make_model(), ["attn", "mlp"], **{**OPTIONS, **options})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rank": 0}, "rank: a positive integer expected, got 0"),
            ({"rank": -3}, "rank: a positive integer expected, got -3"),
            ({"rank": 4.0}, "rank: a positive integer expected, got 4.0"),
            ({"rank": None}, "rank: a positive integer expected, got None"),
            ({"scale": "1"}, "scale: a finite number expected, got '1'"),
            ({"quant_group_size": 256.0}, "quant_group_size: a positive even number"),
            ({"scale": float("nan")}, "scale: a finite number expected, got nan"),
            ({"update_proj_gap": 0}, "update_proj_gap: a positive integer"),
            ({"quant_group_size": 3}, "quant_group_size: a positive even number"),
            ({"quant_n_bit": 8}, "quant_n_bit: 4 expected"),
            ({"similarity": "x"}, "similarity: one of overlap, first_vector expected"),
            ({"proj_type": "svd"}, "proj_type: one of std, reverse_std, left, right, full expected"),
        ],
    )
    def test_group_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            frugalore.FusedQGaLore(self._groups(**options))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lr": -1.0}, "lr: zero or more"),
            ({"lr": float("nan")}, "lr: zero or more"),
            ({"lr": torch.tensor(float("nan"))}, "lr: zero or more expected, got nan"),
            ({"betas": (0.9, 1.0)}, "betas: two numbers in"),
            ({"betas": 0.9}, "betas: two numbers in"),
            ({"eps": None}, "eps: zero or more expected, got None"),
            ({"eps": -1e-8}, "eps: zero or more"),
            ({"weight_decay": float("inf")}, "weight_decay: zero or more"),
            ({"state_bits": 7}, "state_bits: 4, 8 or 32"),
            ({"rounding": "up"}, "rounding: 'stochastic' or 'nearest'"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            frugalore.FusedQGaLore(self._groups(), **options)

    def test_a_misspelt_option_is_noticed(self):
        with pytest.warns(UserWarning, match="update_gap: no option of a group with rank; ignored"):
            frugalore.FusedQGaLore(self._groups(update_gap=50))
        with pytest.warns(UserWarning, match="scale: no option of a group without rank; ignored"):
            frugalore.FusedQGaLore([{"params": [nn.Parameter(torch.ones(3))], "scale": 0.5}])

    def test_a_large_rank_is_clipped_with_a_warning(self):
        model = make_model()
        with pytest.warns(
            UserWarning, match=r"attn.weight: rank 1000 is larger than the short side of \(96, 64\)"
        ):
            optimizer = make_optimizer(model, rank=1000)
        train(model, optimizer, range(2))
        assert optimizer.state[model.attn.weight]["exp_avg"].shape == (96, 64)

    def test_a_warning_points_at_the_callers_line(self):
        with pytest.warns(UserWarning) as caught:
            frugalore.FusedQGaLore(self._groups(rank=1000, update_gap=50))
        assert [Path(warning.filename) for warning in caught] == [Path(__file__)] * 2

    def test_no_module_matches(self):
        with pytest.raises(ValueError, match=r"matches no nn\.Linear"):
            frugalore.param_groups(make_model(), ["nothing_like_this"])

    def test_wrong_parameters(self):
        with pytest.raises(
            TypeError, match=r"dtype float32, bfloat16 or float16 expected, got torch\.float64"
        ):
            frugalore.FusedQGaLore([nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))])
        with pytest.raises(ValueError, match=r"two dimensions or more expected .*, got shape \(4,\)"):
            frugalore.FusedQGaLore([{"params": [nn.Parameter(torch.zeros(4))], "rank": 2}])
        with pytest.raises(ValueError, match=r"two dimensions or more expected .*, got shape \(0, 4\)"):
            frugalore.FusedQGaLore([{"params": [nn.Parameter(torch.zeros(0, 4))], "rank": 2}])
        twice = nn.Parameter(torch.zeros(4, 4))
        with (
            pytest.warns(UserWarning, match="duplicate parameters"),
            pytest.raises(ValueError, match="a parameter is twice in one group"),
        ):
            frugalore.FusedQGaLore([twice, twice])
        with pytest.raises(ValueError, match="a contiguous parameter expected, got strides"):
            frugalore.FusedQGaLore([nn.Parameter(torch.zeros(6, 4).t())])

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("lr", float("nan"), "param group 1: lr: zero or more expected, got nan"),
            ("lr", "0.1", "param group 1: lr: a number or a tensor expected, got '0.1'"),
            ("lr", torch.ones(2), "param group 1: lr: a tensor of one element expected"),
            ("betas", (0.9, 1.0), "param group 1: betas: two numbers in"),
            ("weight_decay", float("nan"), "param group 1: weight_decay: zero or more"),
            ("scale", float("nan"), "param group 1: scale: a finite number"),
            ("seed", 2**64, "param group 1: seed: a 64-bit integer"),
            ("rank", 8, "attn.weight: rank was 16 when it joined the optimizer and cannot change, got 8"),
            ("update_proj_gap", 7, "update_proj_gap was 3 .* got 7"),
            ("quant", False, "quant was True .* got False"),
            ("quant_group_size", 128, "quant_group_size was 256 .* got 128"),
            ("similarity", "first_vector", "similarity was 'overlap' .* got 'first_vector'"),
            ("state_bits", 32, "state_bits was 8 .* got 32"),
        ],
    )
    def test_options_that_go_wrong_are_stopped_before_anything_is_written(self, option, value, message):
        model = make_model()
        optimizer = make_optimizer(model)
        train(model, optimizer, range(2))
        loss_of(model, 5).backward()
        before = snapshot(model)
        optimizer.param_groups[1][option] = value
        with pytest.raises((TypeError, ValueError), match=message):
            optimizer.step()
        assert equal(before, snapshot(model))

    def test_a_parameter_that_turns_non_contiguous_stops_the_step_before_it_writes(self):
        first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4, 6))
        optimizer = frugalore.FusedQGaLore([{"params": [first]}, {"params": [second], "rank": 2}])
        second.data = torch.ones(6, 4).t()
        first.grad, second.grad = torch.ones(3), torch.ones(4, 6)
        with pytest.raises(ValueError, match=r"parameter 1: a contiguous parameter expected, got strides"):
            optimizer.step()
        assert torch.equal(first, torch.ones(3))

    def test_foreign_and_corrupt_states_change_nothing(self):
        model = make_model()
        optimizer = make_optimizer(model, seed=1)
        train(model, optimizer, range(3))
        good = copy.deepcopy(optimizer.state_dict())
        foreign = torch.optim.AdamW(model.embed.parameters()).state_dict()
        cut = copy.deepcopy(good)
        key = max(cut["state"])
        name = "basis" if "basis" in cut["state"][key] else "exp_avg"
        cut["state"][key][name] = cut["state"][key][name][:-1]
        other_rank = copy.deepcopy(good)
        other_rank["param_groups"][1]["rank"] = 8
        missing = copy.deepcopy(good)
        del missing["state"][key]["progress"]
        nan_scale = copy.deepcopy(good)
        nan_scale["state"][next(k for k, v in good["state"].items() if "basis" in v)]["basis_scale"][0] = (
            float("nan")
        )
        without_betas = copy.deepcopy(good)
        del without_betas["param_groups"][0]["betas"]
        bad_lr = copy.deepcopy(good)
        bad_lr["param_groups"][1]["lr"] = float("nan")
        no_gap = copy.deepcopy(good)
        next(entry for entry in no_gap["state"].values() if "gap" in entry)["gap"] = 0
        for bad, message in [
            (foreign, "param groups expected"),
            (cut, "expected, got"),
            (other_rank, "expected, got"),
            (missing, "state .* expected, got"),
            (without_betas, "param group 0: the state has no betas"),
            (bad_lr, "param group 1 of the state: lr: zero or more expected, got nan"),
            (nan_scale, "weight: basis_scale has a NaN or infinite element"),
            ({"state": {0: 5}, "param_groups": []}, "a dict of states and a list of param groups"),
            ({"state": {}, "param_groups": [{}, {}]}, "a dict of states and a list of param groups"),
            (no_gap, "weight: gap as a positive integer expected, got 0"),
            ({"a": 1}, "the keys 'state' and 'param_groups' expected"),
        ]:
            with pytest.raises(ValueError, match=message):
                optimizer.load_state_dict(bad)
        now = optimizer.state_dict()
        assert now["param_groups"] == good["param_groups"]
        for index, entry in good["state"].items():
            for field, value in entry.items():
                same = now["state"][index][field]
                assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same

"""FusedQGaLore: training, checkpoints, bad input."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import frugalore
from frugalore.reference import qgalore as reference

OPTIONS = {"rank": 16, "update_proj_gap": 3, "scale": 0.5}


def _model(dtype=torch.float32, quantized=True, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential()
    model.add_module("embed", nn.Embedding(50, 64))
    model.add_module("attn", nn.Linear(64, 96))
    model.add_module("act", nn.Tanh())
    model.add_module("mlp", nn.Linear(96, 64, bias=False))
    model.add_module("norm", nn.LayerNorm(64))
    model.add_module("head", nn.Linear(64, 50))
    model = model.to(dtype)
    return frugalore.quantize_(model, target_modules=["attn", "mlp"]) if quantized else model


def _optimizer(model, lr=2e-2, **options):
    group_options = {
        **OPTIONS,
        **{k: options.pop(k) for k in list(options) if k in ("rank", "similarity", "cos_threshold")},
    }
    return frugalore.FusedQGaLore(
        frugalore.param_groups(model, ["attn", "mlp"], **group_options), lr=lr, **options
    )


def _batch(step, device="cpu"):
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 50, (32,), generator=generator)
    return tokens.to(device), ((tokens * 7 + 3) % 50).to(device)


def _loss(model, step, device="cpu"):
    tokens, target = _batch(step, device)
    return nn.functional.cross_entropy(model(tokens).float(), target)


def _train(model, optimizer, steps, device="cpu"):
    losses = []
    for step in steps:
        loss = _loss(model, step, device)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def _equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quantized", [True, False])
def test_it_trains_every_parameter(dtype, quantized, device):
    model = _model(dtype, quantized).to(device)
    before = _snapshot(model)
    optimizer = _optimizer(model, seed=1)
    losses = _train(model, optimizer, range(60), device)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    after = _snapshot(model)
    for name in before:
        if not name.endswith((".scale", ".zero")):
            assert not torch.equal(before[name], after[name]), name
    counted = optimizer.statistics()
    assert counted["attn.weight"]["applied"] == 60 and counted["attn.weight"]["refreshes"] >= 5
    assert {entry["skipped"] for entry in counted.values()} == {0}


def test_steps_equal_the_reference():
    """Three steps of the whole optimizer on one INT8 weight, against the plain-torch step with its basis."""
    model = _model()
    weight = model.attn.weight
    optimizer = _optimizer(model, lr=1e-2, rank=48, cos_threshold=None, seed=11, weight_decay=0.1)
    expected = [weight.codes.clone(), weight.scale.clone(), weight.zero.clone()]
    spec = None
    for step in range(3):
        optimizer.zero_grad()
        _loss(model, step).backward()
        optimizer.step()
        state = optimizer.state[weight]
        if spec is None:
            basis = (state["basis"], state["basis_scale"], state["basis_zero"])
            moments = [
                torch.zeros_like(state[name])
                for name in ("exp_avg", "exp_avg_absmax", "exp_avg_sq", "exp_avg_sq_absmax")
            ]
            spec = reference.QGaLoreState(basis, *moments)
        reference.qgalore_step_(
            *expected,
            weight.grad,
            spec,
            lr=1e-2,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=0.1,
            alpha=0.5,
            seed=11,
            tensor_id=state["tensor_id"],
        )
        difference = (weight.codes.int() - expected[0].int()).abs()
        assert difference.max() <= 1 and (difference > 0).float().mean() < 2e-3
    assert torch.equal(state["exp_avg"], spec.exp_avg) and torch.equal(state["exp_avg_sq"], spec.exp_avg_sq)
    assert torch.allclose(weight.scale, expected[1], rtol=1e-5)


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("similarity", ["overlap", "first_vector"])
def test_resume_is_exact_through_weights_only(quantized, similarity, device):
    options = {"seed": 4, "similarity": similarity}
    straight = _model(quantized=quantized).to(device)
    optimizer = _optimizer(straight, **options)
    _train(straight, optimizer, range(5), device)
    file = io.BytesIO()
    torch.save({"model": straight.state_dict(), "optimizer": optimizer.state_dict()}, file)
    rest = _train(straight, optimizer, range(5, 14), device)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = _model(quantized=quantized, seed=99).to(device)
    torch.manual_seed(1234)
    again = _optimizer(resumed, similarity=similarity)  # another seed: the state brings its own
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    assert _train(resumed, again, range(5, 14), device) == rest
    assert _equal(_snapshot(straight), _snapshot(resumed))
    assert optimizer.statistics() == again.statistics()


def test_the_seed_comes_from_torch(device):
    def run():
        model = _model().to(device)
        torch.manual_seed(7)
        _train(model, _optimizer(model), range(4), device)
        return _snapshot(model)

    assert _equal(run(), run())


def test_state_is_small_and_in_8_bits():
    linear = nn.Linear(1024, 1024, bias=False)
    optimizer = frugalore.FusedQGaLore([{"params": linear.parameters(), "rank": 128}])
    linear(torch.randn(4, 1024)).sum().backward()
    optimizer.step()
    size = optimizer.state_bytes()
    low = 1024 * 128
    assert size["moments"] == 2 * (low + 4 * low // 256)
    assert size["basis"] == low // 2 + (low // 256) * 5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("quantized", [True, False])
def test_a_non_finite_gradient_poisons_nothing(bad, quantized, device):
    model = _model(quantized=quantized).to(device)
    optimizer = _optimizer(model, weight_decay=0.1, seed=0)
    for step in range(8):
        optimizer.zero_grad()
        _loss(model, step, device).backward()
        poisoned = step in (0, 2, 3)  # the first call, and one that is due for a refresh
        before = model.mlp.weight.clone()
        if poisoned:
            model.mlp.weight.grad[3, 5] = bad
            model.norm.weight.grad[2] = bad
        optimizer.step()
        if poisoned:
            assert torch.equal(
                before.dequantize() if quantized else before,
                model.mlp.weight.dequantize() if quantized else model.mlp.weight,
            )
    counted = optimizer.statistics()
    assert (counted["mlp.weight"]["applied"], counted["mlp.weight"]["skipped"]) == (5, 3)
    assert counted["norm.weight"]["skipped"] == 3
    for value in model.state_dict().values():
        assert value.isfinite().all()
    for state in optimizer.state.values():
        for value in state.values():
            assert not isinstance(value, torch.Tensor) or value.isfinite().all()


def _captured(grad, basis):
    """The share of the gradient's energy in the span of the basis."""
    rows = torch.linalg.qr(basis.t()).Q.t()
    return float((grad @ rows.t()).square().sum() / grad.square().sum())


def _bases(grads, **options):
    """The dense basis after each step on a sequence of gradients ``[64, 48]``."""
    weight = nn.Parameter(torch.zeros(grads[0].shape))
    group = {"params": [weight], "rank": 8, "quant": False, "cos_threshold": None, **options}
    optimizer = frugalore.FusedQGaLore([group], seed=0)
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
        yield optimizer.state[weight]["basis"].clone()


@pytest.mark.parametrize("first", [0.0, float("nan")])
def test_a_gradient_without_directions_does_not_choose_the_basis(first, generator):
    grad = torch.randn(64, 4, generator=generator) @ torch.randn(4, 48, generator=generator)
    grad[:, :12] = 0  # unit vectors, the basis of a zero matrix, see nothing here
    grads = [torch.full((64, 48), first)] * 2 + [grad] * 3 + [torch.full((64, 48), first)] + [grad]
    bases = list(_bases(grads, update_proj_gap=5))
    for basis in bases[2:]:  # the one at the failed refresh of call 5 as well
        assert _captured(grad, basis) > 0.9999


def test_a_refresh_finds_what_the_old_basis_is_blind_to(generator):
    blocks = []
    for rows, columns in ((slice(0, 32), slice(0, 24)), (slice(32, 64), slice(24, 48))):
        block = torch.zeros(64, 48)
        left, right = torch.randn(32, 6, generator=generator), torch.randn(6, 24, generator=generator)
        block[rows, columns] = left @ right
        blocks.append(block)
    *_, basis = _bases([blocks[0], blocks[0], blocks[1]], update_proj_gap=1)
    assert _captured(blocks[1], basis) > 0.9999


def test_a_parameter_without_gradient_is_left_alone(device):
    model = _model().to(device)
    optimizer = _optimizer(model)
    for step in range(3):
        optimizer.zero_grad()
        _loss(model, step, device).backward()
        before = model.attn.weight.codes.clone()
        model.attn.weight.grad = None
        optimizer.step()
        assert torch.equal(before, model.attn.weight.codes)
    assert "attn.weight" not in optimizer.statistics()


def test_lr_may_be_a_tensor_and_a_scheduler(device):
    def run(lr):
        model = _model().to(device)
        optimizer = _optimizer(model, lr=lr, seed=3)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        for step in range(5):
            _train(model, optimizer, [step], device)
            scheduler.step()
        return _snapshot(model)

    assert _equal(run(0.02), run(torch.tensor(0.02, dtype=torch.float64, device=device)))


def test_zero_lr_changes_nothing(device):
    model = _model().to(device)
    before = _snapshot(model)
    _train(model, _optimizer(model, lr=0.0, weight_decay=0.1), range(4), device)
    assert _equal(before, _snapshot(model))


def test_a_model_that_is_one_linear_layer():
    groups = frugalore.param_groups(nn.Linear(4, 6), "all-linear", rank=2)
    assert [name for name, _ in groups[0]["params"]] == ["bias"]
    assert [name for name, _ in groups[1]["params"]] == ["weight"]


def test_two_models_in_one_optimizer_keep_their_statistics_apart():
    models = nn.Linear(4, 6), nn.Linear(4, 6)
    optimizer = frugalore.FusedQGaLore([{"params": list(m.named_parameters())} for m in models])
    sum(m(torch.ones(1, 4)).sum() for m in models).backward()
    optimizer.step()
    assert list(optimizer.statistics()) == ["weight", "bias", "weight (group 1)", "bias (group 1)"]


def test_closure():
    model = _model()
    optimizer = _optimizer(model)

    def closure():
        optimizer.zero_grad()
        loss = _loss(model, 0)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0


def test_int8_weights_outside_of_a_rank_group_train_whole(device):
    model = _model().to(device)
    optimizer = frugalore.FusedQGaLore(model.named_parameters(), lr=1e-2, seed=0)
    losses = _train(model, optimizer, range(40), device)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_state_is_plain():
    model = _model()
    optimizer = _optimizer(model)
    _train(model, optimizer, range(2))
    for entry in optimizer.state_dict()["state"].values():
        for value in entry.values():
            assert isinstance(value, (torch.Tensor, int, float, bool, list))


def test_a_state_can_be_loaded_again_and_into_a_copy():
    model = _model()
    optimizer = _optimizer(model)
    _train(model, optimizer, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    optimizer.load_state_dict(saved)
    copy.deepcopy(optimizer).load_state_dict(saved)


def test_hooks_of_loading_see_and_change_the_state():
    model = _model()
    optimizer = _optimizer(model)
    _train(model, optimizer, range(2))
    other = _optimizer(_model())

    def rename(_, state_dict):
        return {"state": state_dict["old"], "param_groups": state_dict["param_groups"]}

    loaded = []
    other.register_load_state_dict_pre_hook(rename)
    other.register_load_state_dict_post_hook(lambda o: loaded.append(len(o.state)))
    saved = optimizer.state_dict()
    for _ in range(2):
        other.load_state_dict({"old": saved["state"], "state": None, "param_groups": saved["param_groups"]})
    assert loaded == [len(optimizer.state)] * 2
    assert other.statistics() == optimizer.statistics()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copied_optimizer_goes_on_as_the_original(copied, device):
    model = _model().to(device)
    optimizer = _optimizer(model, seed=1)
    _train(model, optimizer, range(4), device)
    other, other_optimizer = copied((model, optimizer))
    assert _train(model, optimizer, range(4, 9), device) == _train(
        other, other_optimizer, range(4, 9), device
    )
    assert _equal(_snapshot(model), _snapshot(other))
    assert optimizer.statistics() == other_optimizer.statistics()


class TestBadInput:
    def _groups(self, **options):
        return frugalore.param_groups(_model(), ["attn", "mlp"], **{**OPTIONS, **options})

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
            ({"similarity": "x"}, "similarity: 'overlap' or 'first_vector'"),
            ({"proj_type": "full"}, "proj_type: 'std'"),
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
            ({"state_bits": 7}, "state_bits: 8 or 32"),
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
        model = _model()
        with pytest.warns(
            UserWarning, match=r"attn.weight: rank 1000 is larger than the short side of \(96, 64\)"
        ):
            optimizer = _optimizer(model, rank=1000)
        _train(model, optimizer, range(2))
        assert optimizer.state[model.attn.weight]["exp_avg"].shape == (96, 64)

    def test_a_warning_points_at_the_callers_line(self):
        with pytest.warns(UserWarning) as caught:
            frugalore.FusedQGaLore(self._groups(rank=1000, update_gap=50))
        assert [Path(warning.filename) for warning in caught] == [Path(__file__)] * 2

    def test_no_module_matches(self):
        with pytest.raises(ValueError, match=r"matches no nn\.Linear"):
            frugalore.param_groups(_model(), ["nothing_like_this"])

    def test_wrong_parameters(self):
        with pytest.raises(
            TypeError, match=r"dtype float32, bfloat16 or float16 expected, got torch\.float64"
        ):
            frugalore.FusedQGaLore([nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))])
        with pytest.raises(ValueError, match=r"a matrix expected in a group with rank, got shape \(4,\)"):
            frugalore.FusedQGaLore([{"params": [nn.Parameter(torch.zeros(4))], "rank": 2}])
        with pytest.raises(ValueError, match=r"a matrix expected in a group with rank, got shape \(0, 4\)"):
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
        model = _model()
        optimizer = _optimizer(model)
        _train(model, optimizer, range(2))
        _loss(model, 5).backward()
        before = _snapshot(model)
        optimizer.param_groups[1][option] = value
        with pytest.raises((TypeError, ValueError), match=message):
            optimizer.step()
        assert _equal(before, _snapshot(model))

    def test_a_parameter_that_turns_non_contiguous_stops_the_step_before_it_writes(self):
        first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4, 6))
        optimizer = frugalore.FusedQGaLore([{"params": [first]}, {"params": [second], "rank": 2}])
        second.data = torch.ones(6, 4).t()
        first.grad, second.grad = torch.ones(3), torch.ones(4, 6)
        with pytest.raises(ValueError, match=r"parameter 1: a contiguous parameter expected, got strides"):
            optimizer.step()
        assert torch.equal(first, torch.ones(3))

    def test_foreign_and_corrupt_states_change_nothing(self):
        model = _model()
        optimizer = _optimizer(model, seed=1)
        _train(model, optimizer, range(3))
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

"""FusedQGaLore: training, checkpoints, bad input."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import frugalore
from frugalore.reference import qgalore as reference
from qgalore_helpers import equal, loss_of, make_model, make_optimizer, snapshot, train


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quantized", [True, False])
def test_it_trains_every_parameter(dtype, quantized, device):
    model = make_model(dtype, quantized).to(device)
    before = snapshot(model)
    optimizer = make_optimizer(model, seed=1)
    losses = train(model, optimizer, range(60), device)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    after = snapshot(model)
    for name in before:
        if not name.endswith((".scale", ".zero")) and before[name].dtype != torch.int64:  # The format record.
            assert not torch.equal(before[name], after[name]), name
    counted = optimizer.statistics()
    assert counted["attn.weight"]["applied"] == 60 and counted["attn.weight"]["refreshes"] >= 5
    assert {entry["skipped"] for entry in counted.values()} == {0}


def test_steps_equal_the_reference():
    """Three steps of the whole optimizer on one INT8 weight, against the plain-torch step with its basis."""
    model = make_model()
    weight = model.attn.weight
    optimizer = make_optimizer(
        model, lr=1e-2, rank=48, cos_threshold=None, stagger=False, seed=11, weight_decay=0.1
    )
    expected = [weight.codes.clone(), weight.scale.clone(), weight.zero.clone()]
    spec = None
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, step).backward()
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
    straight = make_model(quantized=quantized).to(device)
    optimizer = make_optimizer(straight, **options)
    train(straight, optimizer, range(5), device)
    file = io.BytesIO()
    torch.save({"model": straight.state_dict(), "optimizer": optimizer.state_dict()}, file)
    rest = train(straight, optimizer, range(5, 14), device)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = make_model(quantized=quantized, seed=99).to(device)
    torch.manual_seed(1234)
    again = make_optimizer(resumed, similarity=similarity)  # another seed: the state brings its own
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    assert train(resumed, again, range(5, 14), device) == rest
    assert equal(snapshot(straight), snapshot(resumed))
    assert optimizer.statistics() == again.statistics()


def test_the_seed_comes_from_torch(device):
    def run():
        model = make_model().to(device)
        torch.manual_seed(7)
        train(model, make_optimizer(model), range(4), device)
        return snapshot(model)

    assert equal(run(), run())


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
    model = make_model(quantized=quantized).to(device)
    optimizer = make_optimizer(model, weight_decay=0.1, seed=0)
    for step in range(8):
        optimizer.zero_grad()
        loss_of(model, step, device).backward()
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
    model = make_model().to(device)
    optimizer = make_optimizer(model)
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, step, device).backward()
        before = model.attn.weight.codes.clone()
        model.attn.weight.grad = None
        optimizer.step()
        assert torch.equal(before, model.attn.weight.codes)
    assert "attn.weight" not in optimizer.statistics()


def test_lr_may_be_a_tensor_and_a_scheduler(device):
    def run(lr):
        model = make_model().to(device)
        optimizer = make_optimizer(model, lr=lr, seed=3)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        for step in range(5):
            train(model, optimizer, [step], device)
            scheduler.step()
        return snapshot(model)

    assert equal(run(0.02), run(torch.tensor(0.02, dtype=torch.float64, device=device)))


def test_zero_lr_changes_nothing(device):
    model = make_model().to(device)
    before = snapshot(model)
    train(model, make_optimizer(model, lr=0.0, weight_decay=0.1), range(4), device)
    assert equal(before, snapshot(model))


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
    model = make_model()
    optimizer = make_optimizer(model)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0


def test_int8_weights_outside_of_a_rank_group_train_whole(device):
    model = make_model().to(device)
    optimizer = frugalore.FusedQGaLore(model.named_parameters(), lr=1e-2, seed=0)
    losses = train(model, optimizer, range(40), device)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_state_is_plain():
    model = make_model()
    optimizer = make_optimizer(model)
    train(model, optimizer, range(2))
    for entry in optimizer.state_dict()["state"].values():
        for value in entry.values():
            assert isinstance(value, (torch.Tensor, int, float, bool, list))


def test_a_state_can_be_loaded_again_and_into_a_copy():
    model = make_model()
    optimizer = make_optimizer(model)
    train(model, optimizer, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    optimizer.load_state_dict(saved)
    copy.deepcopy(optimizer).load_state_dict(saved)


def test_hooks_of_loading_see_and_change_the_state():
    model = make_model()
    optimizer = make_optimizer(model)
    train(model, optimizer, range(2))
    other = make_optimizer(make_model())

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
    model = make_model().to(device)
    optimizer = make_optimizer(model, seed=1)
    train(model, optimizer, range(4), device)
    other, other_optimizer = copied((model, optimizer))
    assert train(model, optimizer, range(4, 9), device) == train(other, other_optimizer, range(4, 9), device)
    assert equal(snapshot(model), snapshot(other))
    assert optimizer.statistics() == other_optimizer.statistics()

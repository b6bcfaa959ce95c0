"""The specification of FRUGAL: cases worked by hand, what it must coincide with, and what a switch does."""

from __future__ import annotations

import math

import pytest
import torch

from frugal_oracle import badam_trajectory, randk_elements, spec_trajectory, whole_tensors
from frugalore.reference import galore
from frugalore.reference.frugal import AdamW, Frugal, Lion, Sgdm, whole
from frugalore.reference.frugal_subspaces import Basis, Columns, Elements, Nothing, Rows, Whole
from frugalore.reference.selection import randk_slots
from frugalore.subspace.turn import Turn

F64 = torch.float64
SHAPE = (7, 12)


def random(*shape, seed=0):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def basis(rank, length, seed=0):
    return torch.linalg.qr(random(length, rank, seed=seed)).Q.t()


def subspaces(seed=0):
    """One of each kind."""
    order = torch.randperm(84, generator=torch.Generator().manual_seed(seed)).tolist()
    return {
        "columns": Columns([i % 12 for i in (seed, seed + 3, seed + 4)]),
        "rows": Rows([i % 7 for i in (seed + 1, seed + 5)]),
        "randk": Elements(order[:20]),
        "left": Basis(left=basis(3, 7, seed)),
        "right": Basis(right=basis(4, 12, seed)),
        "both": Basis(basis(3, 7, seed), basis(4, 12, seed)),
        "whole": Whole(),
    }


KINDS = list(subspaces())
RULES = {"adamw": AdamW(), "sgdm": Sgdm(0.9), "lion": Lion()}


def run(spec, grads):
    for grad in grads:
        spec.step(grad)
    return spec


# ---- worked by hand -----------------------------------------------------------------------------------


def test_two_columns_of_which_one_is_inside():
    spec = Frugal(
        torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=F64),
        AdamW((0.5, 0.75), eps=0.0),
        lr=0.1,
        weight_decay=0.5,
        proj_params_lr_scale=0.5,
        inactive_lr_scale=0.2,
    )
    spec.switch(Columns([1]))
    spec.step(torch.tensor([[3.0, 4.0], [-5.0, 0.0]], dtype=F64) + torch.tensor([[0.0, 0.0], [0.0, -2.0]]))
    # decay to 0.95 w; inside: -0.1 * 0.5 * sign; outside: -0.1 * 0.5 * 0.2 * sign
    expected = torch.tensor([[0.95 - 0.01, 0.95 - 0.05], [1.9 + 0.01, 1.9 + 0.05]], dtype=F64)
    torch.testing.assert_close(spec.weight, expected, atol=1e-15, rtol=0)
    torch.testing.assert_close(spec.state["exp_avg"], torch.tensor([[2.0], [-1.0]], dtype=F64))
    torch.testing.assert_close(spec.state["exp_avg_sq"], torch.tensor([[4.0], [1.0]], dtype=F64))
    spec.step(torch.tensor([[0.0, 2.0], [0.0, 0.0]], dtype=F64))
    # m = 2, -0.5; v = 4, 0.75; corrections 0.75 and 0.4375
    direction = torch.tensor([2 / 0.75 / math.sqrt(4 / 0.4375), -0.5 / 0.75 / math.sqrt(0.75 / 0.4375)])
    after = 0.95 * expected
    after[:, 1] -= 0.05 * direction
    torch.testing.assert_close(spec.weight, after, atol=1e-7, rtol=0)
    assert spec.t == 2


def test_a_projected_gradient_and_the_sign_of_the_rest():
    # The subspace is the direction (3, 4) / 5 of the columns.
    spec = Frugal(torch.zeros(1, 2, dtype=F64), Sgdm(0.0), lr=1.0, inactive_lr_scale=0.125)
    spec.switch(Basis(right=torch.tensor([[0.6, 0.8]], dtype=F64)))
    spec.step(torch.tensor([[5.0, 0.0]], dtype=F64))
    # R = 3, back: (1.8, 2.4), rest: (3.2, -2.4)
    expected = torch.tensor([[-1.8 - 0.125, -2.4 + 0.125]], dtype=F64)
    torch.testing.assert_close(spec.weight, expected, atol=1e-15, rtol=0)


def test_momentum_begins_with_the_gradient_and_again_after_a_reset():
    spec = Frugal(torch.zeros(1, 2, dtype=F64), Sgdm(0.5, dampening=0.25), lr=1.0)
    gradient = torch.tensor([[8.0, 0.0]], dtype=F64)
    for _ in range(2):
        spec.switch(Whole())
        before = float(spec.weight[0, 0])
        spec.step(gradient)
        assert float(spec.weight[0, 0]) == before - 8.0
        spec.step(gradient)
        assert float(spec.weight[0, 0]) == before - 8.0 - (4.0 + 6.0)
    assert not bool(spec.weight[0, 1])


def test_lion_by_hand():
    spec = Frugal(torch.zeros(1, 1, dtype=F64), Lion((0.5, 0.75)), lr=0.5)
    spec.switch(Whole())
    for gradient, moment, weight in [(4.0, 1.0, -0.5), (-0.5, 0.625, -1.0), (-4.0, -0.53125, -0.5)]:
        spec.step(torch.tensor([[gradient]], dtype=F64))
        assert float(spec.state["exp_avg"]) == moment and float(spec.weight) == weight


# ---- what it coincides with ---------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("nothing", [Nothing(), Columns([]), Rows([]), Elements([])], ids=repr)
def test_density_0_is_sign_sgd(nothing, rule):
    weight = random(*SHAPE)
    expected = weight.clone()
    spec = Frugal(weight, rule, lr=0.01, weight_decay=0.1, inactive_lr_scale=0.5)
    spec.switch(nothing)
    for step in range(6):
        grad = random(*SHAPE, seed=step)
        spec.step(grad)
        expected = expected * (1 - 0.01 * 0.1) - 0.005 * grad.sign()
    torch.testing.assert_close(spec.weight, expected, atol=1e-15, rtol=0)


@pytest.mark.parametrize("outside", ["sign_sgd", "sgd", "no"])
@pytest.mark.parametrize(
    "everything",
    [Whole(), Columns(range(12)), Rows(range(7)), Elements(range(84))],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("rule", RULES)
def test_density_1_is_the_rule_alone(everything, outside, rule):
    """AdamW and SGD are torch's; Lion is sign descent by its own interpolation."""
    spec = Frugal(random(*SHAPE), RULES[rule], lr=0.01, weight_decay=0.0, inactive_update_rule=outside)
    param = torch.nn.Parameter(spec.weight.clone())
    if rule == "adamw":
        spec.weight_decay = 0.1
        theirs = torch.optim.AdamW([param], lr=0.01, weight_decay=0.1)
    elif rule == "sgdm":
        theirs = torch.optim.SGD([param], lr=0.01, momentum=0.9)
    else:
        theirs, m = None, torch.zeros(SHAPE, dtype=F64)
    spec.switch(everything)
    for step in range(12):
        grad = random(*SHAPE, seed=step)
        spec.step(grad)
        if theirs is not None:
            param.grad = grad
            theirs.step()
        else:
            param.data -= 0.01 * torch.sign(0.9 * m + (1 - 0.9) * grad)
            m = 0.99 * m + (1 - 0.99) * grad
    torch.testing.assert_close(spec.weight, param.detach(), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("dampening", "nesterov"), [(0.0, True), (0.3, False)])
def test_the_variants_of_momentum_are_torchs(dampening, nesterov):
    spec = whole(random(*SHAPE), rule=Sgdm(0.8, dampening, nesterov), lr=0.1)
    param = torch.nn.Parameter(spec.weight.clone())
    theirs = torch.optim.SGD([param], lr=0.1, momentum=0.8, dampening=dampening, nesterov=nesterov)
    for step in range(5):
        param.grad = random(*SHAPE, seed=step)
        spec.step(param.grad)
        theirs.step()
    torch.testing.assert_close(spec.weight, param.detach(), atol=1e-12, rtol=0)


def test_a_basis_kept_and_nothing_outside_is_galore():
    """GaLore adds its raw eps elsewhere and decays after the step: without both the two are one."""
    spec = Frugal(
        random(*SHAPE),
        AdamW(eps=0.0),
        lr=0.01,
        inactive_update_rule="no",
        proj_params_lr_scale=0.25,
        moments_at_refresh="keep",
    )
    weight = spec.weight.clone()
    moments = torch.zeros(2, 3, 12, dtype=F64)
    for step in range(12):
        if step % 4 == 0:
            left = basis(3, 7, seed=step)
            spec.switch(Basis(left=left))
        grad = random(*SHAPE, seed=step)
        spec.step(grad)
        galore.galore_adamw_step_(
            *(weight, grad, *moments), step=step + 1, lr=0.01, eps=0.0, scale=0.25, left=left
        )
    torch.testing.assert_close(spec.weight, weight, atol=1e-12, rtol=0)


def test_badam_is_adamw_on_one_block_and_nothing_on_the_others():
    shapes = [(4, 3), (3,), (5, 2), (2,)]
    weights = [random(*shape, seed=i) for i, shape in enumerate(shapes)]
    grads = [[random(*shape, seed=10 * step + i) for i, shape in enumerate(shapes)] for step in range(9)]
    trajectory = badam_trajectory(
        weights, grads, [[0, 1], [2, 3]], switch_every=3, mode="descending", lr=0.01, weight_decay=0.1
    )
    params = [torch.nn.Parameter(w.clone()) for w in weights]
    for period, block in enumerate([(2, 3), (0, 1), (2, 3)]):
        theirs = torch.optim.AdamW([params[i] for i in block], lr=0.01, weight_decay=0.1)
        for step in range(3 * period, 3 * period + 3):
            for i in block:
                params[i].grad = grads[step][i]
            theirs.step()
            for i, snapshot in enumerate(trajectory[step]):
                torch.testing.assert_close(snapshot.weight, params[i].detach(), atol=1e-12, rtol=0)
                assert (snapshot.t > 0) == (i in block) == bool(snapshot.state)


# ---- the split ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_inside_and_outside_are_the_gradient_and_orthogonal(kind):
    subspace, grad = subspaces()[kind], random(*SHAPE)
    r = subspace.inside(grad)
    assert tuple(r.shape) == subspace.shape_of_state(SHAPE)
    inside, outside = subspace.back(r, SHAPE), subspace.outside(grad, r)
    torch.testing.assert_close(inside + outside, grad, atol=1e-14, rtol=0)
    assert abs(float((inside * outside).sum())) < 1e-12
    torch.testing.assert_close(subspace.inside(inside), r, atol=1e-14, rtol=0)


def test_the_elements_of_randk_lie_where_their_slots_say():
    options = {"density": 0.3, "seed": 5, "tensor_id": 2, "period": 7}
    slots = randk_slots(5, 300, **options)
    grad = random(5, 300)
    r = randk_elements((5, 300), **options).inside(grad)
    assert r.numel() == int((slots >= 0).sum()) == 450
    assert torch.equal(r[slots[slots >= 0]], grad[slots >= 0])


# ---- properties ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_switch", ["reset", "keep", "rotate"])
def test_the_first_update_is_a_sign_in_the_subspace(kind, at_switch):
    """With "reset" after every switch, else after the first: m̂ / sqrt(v̂) = R / |R|."""
    spec = Frugal(random(*SHAPE), AdamW(eps=0.0), lr=0.1, moments_at_refresh=at_switch)
    spec.proj_params_lr_scale, spec.inactive_update_rule = 0.5, "no"
    for period in range(3):
        subspace = subspaces(period)[kind]
        spec.switch(subspace)
        before, grad = spec.weight.clone(), random(*SHAPE, seed=period)
        spec.step(grad)
        sign = -0.05 * subspace.back(subspace.inside(grad).sign(), SHAPE)
        first = period == 0 or at_switch == "reset"
        assert torch.allclose(spec.weight - before, sign, atol=1e-14) == first
        assert spec.t == (1 if first else 3 * period + 1)
        run(spec, [random(*SHAPE, seed=50 + period)] * 2)


@pytest.mark.parametrize("kind", [*KINDS, "nothing"])
def test_the_outside_does_not_see_the_scale_of_a_gradient(kind):
    subspace = (subspaces() | {"nothing": Nothing()})[kind]
    weights = []
    for scale in (1.0, 2.0**-10):
        spec = Frugal(random(*SHAPE), Sgdm(0.0), lr=0.1)
        spec.switch(subspace)
        spec.rule = lambda r, state, t: torch.zeros_like(r)
        spec.step(random(*SHAPE, seed=3) * scale)
        weights.append(spec.weight)
    assert torch.equal(*weights)


def test_a_zero_gradient_only_decays():
    spec = Frugal(random(*SHAPE), lr=0.1, weight_decay=0.5, proj_params_lr_scale=3.0)
    start = spec.weight.clone()
    spec.switch(Columns([0, 4]))
    run(spec, [torch.zeros(SHAPE, dtype=F64)] * 3)
    torch.testing.assert_close(spec.weight, start * (1 - 0.05) ** 3, atol=1e-15, rtol=0)


def test_a_missing_gradient_does_nothing():
    spec = Frugal(random(*SHAPE), lr=0.1, weight_decay=0.5)
    spec.switch(Columns([0, 4]))
    spec.step(random(*SHAPE))
    before = spec.weight.clone(), {name: value.clone() for name, value in spec.state.items()}
    spec.step(None)
    assert torch.equal(spec.weight, before[0]) and spec.t == 1
    assert all(torch.equal(spec.state[name], value) for name, value in before[1].items())


def test_nan_stays_where_it_is_and_has_no_sign():
    spec = Frugal(random(*SHAPE), lr=0.1)
    spec.switch(Columns([0, 4]))
    grad = random(*SHAPE)
    grad[2, 0] = grad[3, 1] = torch.nan
    before = spec.weight.clone()
    spec.step(grad)
    assert spec.weight.isnan().nonzero().tolist() == [[2, 0]]
    assert float(spec.weight[3, 1]) == float(before[3, 1])


# ---- switches -----------------------------------------------------------------------------------------


def test_rotate_keeps_the_state_of_coordinates_that_stay_inside():
    spec = Frugal(random(*SHAPE), moments_at_refresh="rotate")
    spec.switch(Columns([1, 3, 8]))
    run(spec, [random(*SHAPE, seed=step) for step in range(4)])
    old = {name: value.clone() for name, value in spec.state.items()}
    spec.switch(Columns([3, 5, 8, 9]))
    for name, value in old.items():
        assert torch.equal(spec.state[name][:, [0, 2]], value[:, [1, 2]])
        assert not bool(spec.state[name][:, [1, 3]].any())
    assert spec.t == 4


@pytest.mark.parametrize("kind", ["left", "right", "both"])
def test_rotate_turns_a_basis_as_the_library_does(kind):
    old, new = subspaces(1)[kind], subspaces(2)[kind]
    spec = Frugal(random(*SHAPE), moments_at_refresh="rotate")
    spec.switch(old)
    run(spec, [random(*SHAPE, seed=step) for step in range(4)])
    m, v = spec.state["exp_avg"].clone(), spec.state["exp_avg_sq"].clone()
    spec.switch(new)
    turn = Turn(
        *(None if a is None else b @ a.t() for a, b in ((old.left, new.left), (old.right, new.right))),
        usable=torch.tensor(True),
    )
    torch.testing.assert_close(spec.state["exp_avg"], turn.first_moment(m), atol=1e-15, rtol=0)
    torch.testing.assert_close(spec.state["exp_avg_sq"], turn.second_moment(v), atol=1e-15, rtol=0)
    lifted = old.back(m, SHAPE)
    torch.testing.assert_close(spec.state["exp_avg"], new.inside(lifted), atol=1e-14, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_switch", ["keep", "rotate"])
def test_a_switch_to_the_same_subspace_changes_nothing(kind, at_switch):
    subspace = subspaces()[kind]
    spec = Frugal(random(*SHAPE), moments_at_refresh=at_switch)
    spec.switch(subspace)
    run(spec, [random(*SHAPE, seed=step) for step in range(3)])
    before = {name: value.clone() for name, value in spec.state.items()}
    spec.switch(subspace)
    for name, value in before.items():
        torch.testing.assert_close(spec.state[name], value, atol=1e-14, rtol=0)
    assert spec.t == 3


@pytest.mark.parametrize("at_switch", ["reset", "keep", "rotate"])
def test_a_block_that_was_inactive_begins_anew(at_switch):
    weights = [random(3, 4, seed=i) for i in range(3)]
    grads = [[random(3, 4, seed=10 * step + i) for i in range(3)] for step in range(8)]
    periods = [whole_tensors(active, 3) for active in ([0, 1], [1, 2], [0, 1], [0, 1])]
    after = spec_trajectory(weights, grads, periods, update_gap=2, moments_at_refresh=at_switch)
    stays = at_switch != "reset"
    assert [[s.t for s in of_step] for of_step in after] == [
        *([1, 1, 0], [2, 2, 0]),
        *([0, 3 if stays else 1, 1], [0, 4 if stays else 2, 2]),
        *([1, 5 if stays else 1, 0], [2, 6 if stays else 2, 0]),
        *([3 if stays else 1, 7 if stays else 1, 0], [4 if stays else 2, 8 if stays else 2, 0]),
    ]
    assert all((s.t == 0) == (not s.state) for of_step in after for s in of_step)


@pytest.mark.parametrize("at_switch", ["reset", "keep", "rotate"])
def test_a_switch_may_wait_for_the_first_gradient(at_switch):
    weights = [random(3, 4, seed=i) for i in range(2)]
    grads = [[random(3, 4, seed=10 * step + i) for i in range(2)] for step in range(9)]
    grads[3][1] = grads[4][1] = grads[6][0] = None

    def columns(period):
        return [Columns([period, period + 1]), Columns([0, 1 + period])]

    options = {"update_gap": 3, "moments_at_refresh": at_switch}
    eager, waiting = (
        spec_trajectory(weights, grads, columns, at_first_gradient=wait, **options) for wait in (False, True)
    )
    for ours, others in zip(eager, waiting, strict=True):
        assert all(torch.equal(a.weight, b.weight) for a, b in zip(ours, others, strict=True))
    assert (waiting[3][1].t, waiting[5][1].t) == ((3, 1) if at_switch == "reset" else (3, 4))
    assert torch.equal(waiting[4][1].state["exp_avg"], waiting[2][1].state["exp_avg"])


def test_the_learning_rate_may_change_between_steps():
    weights, grads = [random(3, 4)], [[random(3, 4, seed=step)] for step in range(3)]
    rates = [0.1, 0.0, 0.2]
    after = spec_trajectory(weights, grads, lambda period: [Nothing()], update_gap=2, lr=rates)
    expected = weights[0] - sum(lr * grad.sign() for lr, (grad,) in zip(rates, grads, strict=True))
    torch.testing.assert_close(after[-1][0].weight, expected, atol=1e-15, rtol=0)
    assert torch.equal(after[0][0].weight, after[1][0].weight)


@pytest.mark.parametrize("options", [{"inactive_update_rule": "same"}, {"moments_at_refresh": "forget"}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match="no such option"):
        Frugal(random(2, 2), **options)

"""split_step_: one rule inside a selection, another outside."""

from __future__ import annotations

import math

import pytest
import torch

from frugalore import ops
from frugalore.ops import Selection
from frugalore.reference import selection as selections
from frugalore.reference import split as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
F32, BF16, F16 = DTYPES
DTYPE_PAIRS = [(F32, F32), (F32, BF16), (BF16, BF16), (BF16, F32), (F16, F16)]
KINDS = ["none", "all", "columns", "rows", "randk"]
# A scalar, a vector, one column, odd sizes, several segments, three dimensions, nothing, no columns.
SHAPES = [(), (3,), (700,), (5, 1), (17, 61), (3, 1300), (2, 3, 130), (0,), (0, 4), (4, 0), (9, 256)]
RULES = [
    ("adamw", {"betas": (0.9, 0.99), "eps": 1e-6}),
    ("adamw", {"eps_mode": "raw"}),
    ("sgdm", {"momentum": 0.9}),
    ("sgdm", {"momentum": 0.9, "nesterov": True}),
    ("sgdm", {"momentum": 0.8, "dampening": 0.3}),
    ("lion", {"betas": (0.9, 0.99)}),
]
ONE_EACH = [RULES[0], RULES[4], RULES[5]]
WRITE = {"lr": 0.01, "weight_decay": 0.1}


def selection_of(kind: str, shape: tuple[int, ...], density: float, seed: int) -> Selection:
    if kind in ("none", "all"):
        return Selection(kind)
    if kind == "randk":
        return Selection(kind, density=density, seed=seed - 5, tensor_id=seed, period=3)
    rows, columns = reference.matrix_shape(torch.empty(shape))
    length = columns if kind == "columns" else rows
    return Selection(
        kind, *selections.select(length, round(density * length), seed=seed, tensor_id=1, period=2)
    )


class Lists:
    """The arguments of a step for parameters of the given shapes and dtypes."""

    def __init__(self, rule, kind, shapes, param_dtype, grad_dtype, generator, density=0.3):
        def normal(shape, dtype):
            return (torch.randn(shape, generator=generator) * 0.1).to(dtype)

        self.params = [normal(shape, param_dtype) for shape in shapes]
        self.grads = [normal(shape, grad_dtype) for shape in shapes]
        kinds = [kind] * len(shapes) if kind != "mixed" else [KINDS[i % 5] for i in range(len(shapes))]
        self.selections = [
            selection_of(k, shape, density, i) for i, (k, shape) in enumerate(zip(kinds, shapes, strict=True))
        ]
        matrices = [reference.matrix_shape(p) for p in self.params]
        states = [s.state_shape(*matrix) for s, matrix in zip(self.selections, matrices, strict=True)]
        self.moments = tuple(
            [torch.zeros(state) for state in states] for _ in range(2 if rule == "adamw" else 1)
        )
        self.progress = [torch.zeros(3, dtype=torch.int64) for _ in shapes]
        self.beta_powers = [torch.ones(2, dtype=torch.float64) for _ in shapes] if rule == "adamw" else None

    def arguments(self):
        return tuple(vars(self).values())

    def tensors(self):
        """Everything that a step may write."""
        lists = [self.params, *self.moments, self.progress, self.beta_powers or []]
        return [tensor for tensors in lists for tensor in tensors]

    def to(self, device):
        def move(value):
            if isinstance(value, torch.Tensor):
                return value.clone().to(device)
            if isinstance(value, Selection):
                return value._replace(**{k: move(v) for k, v in value._asdict().items()})
            return type(value)(map(move, value)) if isinstance(value, (list, tuple)) else value

        other = Lists.__new__(Lists)
        vars(other).update({name: move(value) for name, value in vars(self).items()})
        return other


def assert_equal(ours, spec):
    """The same bits, where they are finite."""
    ours, spec = (x.tensors() if isinstance(x, Lists) else x for x in (ours, spec))
    for a, b in zip(ours, spec, strict=True):
        a, b = a.cpu(), b.cpu()
        assert torch.equal(a.isfinite(), b.isfinite())
        if a.is_floating_point():
            integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
            a, b = a[a.isfinite()].view(integer), b[b.isfinite()].view(integer)
        assert torch.equal(a, b)


def both_step(ours, spec, generator, **options):
    ours_step, spec_step = ops.split_step_, reference.split_step_
    for a, b in zip(ours.grads, spec.grads, strict=True):
        b.copy_(torch.randn(b.shape, generator=generator))
        a.copy_(b)
    for step, lists in ((ours_step, ours), (spec_step, spec)):
        step(*lists.arguments(), **options)
    assert_equal(ours, spec)


class TestReference:
    @pytest.mark.parametrize(("param_dtype", "grad_dtype"), DTYPE_PAIRS, ids=str)
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("rule", "options"), RULES, ids=str)
    def test_to_the_bit(self, rule, options, kind, param_dtype, grad_dtype, device, generator):
        spec = Lists(rule, kind, SHAPES, param_dtype, grad_dtype, generator)
        ours = spec.to(device)
        write = {**WRITE, "seed": 2**40 + 5, "tensor_ids": range(7, 7 + len(SHAPES)), "inside_scale": 1.5}
        calls = [
            {"outside": "sign", "outside_scale": 0.3},
            {"outside": "sgd", "decay": "after"},
            {"outside": "none", "rounding": "nearest"},
            {"outside": "none", "weight_decay": 0.0},
        ]
        for call in calls:
            both_step(ours, spec, generator, rule=rule, **{**write, **options, **call})

    @pytest.mark.parametrize("density", [0.0, 1.0])
    @pytest.mark.parametrize("kind", ["columns", "rows", "randk"])
    def test_nothing_and_everything_inside(self, kind, density, device, generator):
        spec = Lists("adamw", kind, SHAPES, torch.bfloat16, torch.float32, generator, density)
        ours = spec.to(device)
        for outside in ("sign", "none"):
            both_step(ours, spec, generator, outside=outside, **WRITE)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("outside", ["sign", "sgd", "none"])
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("rule", "options"), ONE_EACH, ids=str)
    def test_what_is_not_finite(self, rule, options, kind, outside, bad, device, generator):
        spec = Lists(rule, kind, [(6, 600), (40,)], torch.float32, torch.float32, generator)
        both = spec.to(device), spec
        for weight_decay in (0.1, 0.0):
            for lists in both:
                lists.grads[0].view(-1)[::7] = bad
                lists.params[0].view(-1)[3::70] = bad
            for step, lists in zip((ops.split_step_, reference.split_step_), both, strict=True):
                write = {"lr": 0.01, "weight_decay": weight_decay}
                step(*lists.arguments(), rule=rule, outside=outside, **options, **write)
            assert_equal(*both)
        if outside != "none":  # else gradients outside are not looked at
            assert int(spec.progress[0][1]) > 1000

    @pytest.mark.parametrize("kind", ["all", "columns", "rows", "randk"])
    @pytest.mark.parametrize(("rule", "options"), RULES, ids=str)
    def test_fresh_state_is_not_read(self, rule, options, kind, device, generator):
        spec = Lists(rule, kind, [(6, 600), (40, 3), (700,)], torch.bfloat16, torch.bfloat16, generator)
        ours = spec.to(device)
        for _ in range(2):
            both_step(ours, spec, generator, rule=rule, **options, **WRITE)
        for lists in (ours, spec):
            for moments in lists.moments:
                moments[0].fill_(math.nan)
        both_step(ours, spec, generator, rule=rule, fresh=[True, False, True], **options, **WRITE)
        assert all(m.isfinite().all() for moments in ours.moments for m in moments)
        if rule == "adamw":
            beta1, beta2 = options.get("betas", (0.9, 0.999))
            assert ours.beta_powers[0].tolist() == [beta1, beta2]
            assert ours.beta_powers[1][0] == pytest.approx(beta1**3)

    @pytest.mark.parametrize(("rule", "options"), ONE_EACH, ids=str)
    def test_every_instruction_set(self, isa, rule, options, generator):
        spec = Lists(rule, "mixed", SHAPES, torch.bfloat16, torch.float16, generator)
        ours = spec.to("cpu")
        for outside in ("sign", "sgd", "none"):
            both_step(ours, spec, generator, rule=rule, outside=outside, **options, **WRITE)


SINGLE = [("adamw", ops.adamw_step_), ("sgdm", ops.sgdm_step_), ("lion", ops.lion_step_)]


class TestEqualities:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(("rule", "step"), SINGLE, ids=str)
    @pytest.mark.parametrize("kind", ["all", "columns", "rows"])
    def test_everything_inside_is_the_step_of_the_rule(self, kind, rule, step, dtype, device, generator):
        ours = Lists(rule, kind, [(30, 71), (4, 2000)], dtype, dtype, generator, density=1.0).to(device)
        theirs = ours.to(device)
        options = {"betas": (0.9, 0.99)} if rule != "sgdm" else {"momentum": 0.8, "dampening": 0.2}
        for _ in range(3):
            ops.split_step_(*ours.arguments(), rule=rule, **options, **WRITE, seed=5)
            records = (theirs.progress, theirs.beta_powers) if rule == "adamw" else (theirs.progress,)
            step(theirs.params, theirs.grads, *theirs.moments, *records, **options, **WRITE, seed=5)
        assert_equal(ours, theirs)

    @pytest.mark.parametrize("outside", ["sign", "sgd", "none"])
    @pytest.mark.parametrize("decay", ["before", "after"])
    def test_nothing_inside_is_the_formula(self, outside, decay, device, generator):
        ours = Lists("lion", "none", [(30, 71)], torch.float32, torch.float32, generator).to(device)
        ours.grads[0][3] = 0.0
        w, g = ours.params[0].clone(), ours.grads[0]
        write = {"lr": 0.5, "weight_decay": 0.25, "outside_scale": 0.25, "decay": decay}
        ops.split_step_(*ours.arguments(), rule="lion", outside=outside, **write)
        move = {"sign": g.sign(), "sgd": g, "none": torch.zeros_like(g)}[outside]
        coefficient = 0.5 * 0.25 * (0.875 if decay == "after" else 1.0)
        assert torch.equal(ours.params[0], 0.875 * w - coefficient * move)
        assert ours.progress[0].tolist() == [1, 0, 1]

    @pytest.mark.parametrize(("rule", "options"), ONE_EACH, ids=str)
    def test_columns_are_rows_of_the_transpose(self, rule, options, device, generator):
        columns = Lists(rule, "columns", [(33, 1500)], torch.float32, torch.float32, generator).to(device)
        rows = columns.to(device)
        rows.params, rows.grads = ([x.t().contiguous() for x in xs] for xs in (rows.params, rows.grads))
        rows.selections = [s._replace(kind="rows") for s in rows.selections]
        for lists in (columns, rows):
            for _ in range(2):
                ops.split_step_(*lists.arguments(), rule=rule, **options, **WRITE)
        for tensors, others in (
            (columns.params, rows.params),
            *zip(columns.moments, rows.moments, strict=True),
        ):
            matrix = (33, -1)
            assert torch.equal(tensors[0].view(matrix), others[0].view(-1, 33).t())

    def test_thread_count_does_not_matter(self, generator):
        shapes = [(70, 1000), (3,), (1, 33333), (300, 40), (500, 300), (2000,), (37, 1111)]
        one = Lists("adamw", "mixed", shapes, torch.bfloat16, torch.float32, generator)
        one.grads[0].view(-1)[::7] = math.inf
        five = one.to("cpu")
        threads = torch.get_num_threads()
        try:
            for count, lists in ((1, one), (5, five)):
                torch.set_num_threads(count)
                for outside in ("sign", "none"):
                    ops.split_step_(*lists.arguments(), outside=outside, lr=0.01)
        finally:
            torch.set_num_threads(threads)
        assert_equal(five, one)
        assert one.progress[0].tolist() == [2, 10000, 1]

    def test_a_list_is_its_tensors_one_by_one(self, device, generator):
        shapes = [(1, 7), (3, 100), (2, 2049), (5,), (64,), (0,), (12, 8)] * 9
        together = Lists("adamw", "mixed", shapes, torch.bfloat16, torch.float32, generator).to(device)
        single = together.to(device)
        ops.split_step_(*together.arguments(), **WRITE, seed=3)
        for i in range(len(shapes)):
            one = Lists.__new__(Lists)
            vars(one).update(
                {name: [values[i]] for name, values in vars(single).items() if name != "moments"}
            )
            moments = tuple([values[i]] for values in single.moments)
            arguments = (one.params, one.grads, one.selections, moments, one.progress, one.beta_powers)
            ops.split_step_(*arguments, **WRITE, seed=3, tensor_ids=[i])
        assert_equal(together, single)

    def test_a_step_is_the_paper_s(self, device, generator):
        """FRUGAL's algorithm 1 in float64: Adam in the chosen columns, signSGD in the others."""
        ours = Lists("adamw", "columns", [(8, 40)], torch.float32, torch.float32, generator).to(device)
        chosen = ours.selections[0].chosen.long()
        w = ours.params[0].double()
        m, v = torch.zeros_like(w), torch.zeros_like(w)
        for t in range(1, 21):
            g = torch.randn(8, 40, generator=generator).to(device)
            ours.grads[0].copy_(g)
            ops.split_step_(*ours.arguments(), lr=0.01, outside_scale=0.5)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g.double() ** 2
            adam = m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            move = 0.5 * g.sign().double()
            move[:, chosen] = adam[:, chosen]
            w = w - 0.01 * move
        torch.testing.assert_close(ours.params[0].double(), w, rtol=1e-5, atol=1e-6)


def test_nothing():
    ops.split_step_([], [], [], ([], []), [], [], lr=0.1)
    ops.split_step_([], [], [], ([],), [], rule="lion", lr=0.1)


@pytest.mark.parametrize("rule", ["adamw", "lion"])
def test_opcheck(rule, generator, monkeypatch):
    """The call that the wrapper makes."""
    lists = Lists(rule, "mixed", SHAPES[:6], torch.bfloat16, torch.float32, generator)
    calls = []
    split = __import__("frugalore.ops.split", fromlist=["split"])
    monkeypatch.setattr(split, "_step_op", lambda *arguments: calls.append(arguments))
    ops.split_step_(*lists.arguments(), rule=rule, betas=(0.9, 0.99), **WRITE)
    torch.library.opcheck(torch.ops.frugalore.split_step_.default, calls[0])


class TestBadInput:
    @pytest.fixture
    def lists(self, generator):
        return Lists("adamw", "columns", [(6, 10), (4, 20)], torch.float32, torch.float32, generator)

    def _raises(self, lists, error, match, **changes):
        before = lists.to("cpu")
        with pytest.raises(error, match=match):
            ops.split_step_(*lists.arguments(), **{**WRITE, **changes})
        assert_equal(lists.params + lists.progress, before.params + before.progress)

    def test_state(self, lists):
        lists.moments[1][1] = lists.moments[1][1].double()
        self._raises(lists, TypeError, r"exp_avg_sqs\[1\]: dtype float32 expected, got float64")
        lists.moments[0][0] = torch.zeros(5)
        self._raises(lists, ValueError, r"exp_avgs\[0\]: 18 elements expected, got 5")
        lists.moments = (lists.moments[0][:1], lists.moments[1])
        self._raises(lists, ValueError, "exp_avgs: 2 expected, one for each of params, got 1")
        lists.moments = lists.moments[:1]
        self._raises(lists, ValueError, "moments: 2 lists expected for 'adamw', got 1")
        self._raises(lists, ValueError, "beta_powers: None expected for 'lion', got 2 records", rule="lion")
        lists.beta_powers = None
        self._raises(lists, ValueError, "momenta: 2 expected, one for each of params, got 1", rule="lion")
        lists.moments *= 2
        self._raises(
            lists, ValueError, "beta_powers: one record for each of params expected for 'adamw', got None"
        )

    def test_selections(self, lists):
        good = lists.selections[1]
        lists.selections[1] = good._replace(below=good.below[1:].clone())
        self._raises(lists, ValueError, r"selections\[1\].below: 21 elements expected, got 20")
        lists.selections[1] = good._replace(below=good.below.long())
        self._raises(lists, TypeError, r"selections\[1\].below: dtype int32 expected, got int64")
        lists.selections[1] = good._replace(chosen=None)
        self._raises(lists, ValueError, r"selections\[1\]: below and chosen expected")
        lists.selections[1] = good._replace(chosen=torch.zeros(21, dtype=torch.int32))
        self._raises(lists, ValueError, r"selections\[1\].chosen: at most 20 expected, got 21")
        lists.selections[1] = good._replace(kind="lines")
        self._raises(lists, ValueError, r"selections\[1\].kind: one of none, all, .* got 'lines'")
        lists.selections[1] = Selection("randk", density=1.5)
        self._raises(lists, ValueError, r"selections\[1\].density: a number in \[0, 1\] expected, got 1.5")
        lists.selections.pop()
        self._raises(lists, ValueError, "selections: 2 expected, one for each of params, got 1")
        lists.selections.clear()
        self._raises(lists, ValueError, "selections: 2 expected, one for each of params, got 0")

    def test_shared_memory(self, lists):
        below = lists.selections[0].below
        lists.selections[1] = lists.selections[1]._replace(chosen=below[:6])
        ops.split_step_(*lists.arguments(), lr=0.0)  # two that are read may share
        lists.params[1] = torch.zeros(80).view(4, 20)
        lists.grads[1] = lists.params[1]
        self._raises(lists, ValueError, r"grads\[1\]: memory of its own expected, .* params\[1\]")
        lists.grads[1] = torch.zeros(4, 20)
        lists.params[1] = lists.selections[0].below.view(torch.float32)[:1]
        lists.grads[1] = torch.zeros(1)
        lists.selections[1] = Selection("none")
        lists.moments[0][1], lists.moments[1][1] = torch.zeros(0), torch.zeros(0)
        self._raises(lists, ValueError, r"selections.below\[0\]: memory of its own expected")

    def test_options(self, lists):
        self._raises(
            lists, ValueError, "rule: one of 'adamw', 'sgdm', 'lion' expected, got 'adam'", rule="adam"
        )
        self._raises(lists, ValueError, "outside: one of 'sign', .* got 'zero'", outside="zero")
        self._raises(lists, ValueError, "inside_scale: a finite number expected", inside_scale=math.nan)
        self._raises(lists, ValueError, "outside_scale: a finite number expected", outside_scale=math.inf)
        self._raises(lists, ValueError, r"beta2: a number in \[0, 1\) expected, got 1", betas=(0.9, 1.0))
        self._raises(lists, ValueError, "eps: a finite number >= 0 expected, got -1", eps=-1.0)
        self._raises(lists, ValueError, "fresh: 2 expected, one for each of params, got 1", fresh=[True])
        self._raises(lists, ValueError, "decay: 'before' or 'after' expected", decay="late")
        lists.moments, lists.beta_powers = lists.moments[:1], None
        self._raises(lists, ValueError, r"momentum: a number in \[0, 1\)", rule="sgdm", momentum=1.0)
        self._raises(lists, ValueError, "nesterov: momentum > 0", rule="sgdm", nesterov=True, dampening=0.5)

"""Validation loss of FRUGAL, BAdam and Fira beside AdamW and GaLore; each tuned, then paired by seed.

    python bench/frugal_quality.py --seeds 0 1 --batch-size 8 --jobs 2 --out bench/results/cpu

How the runs are made: bench/quality.py. FRUGAL's groups hold the layers of attention and MLP; embeddings,
norms and the head train by AdamW, except in "and the head by sign".
"""

from __future__ import annotations

from quality import Method, Study, main

BASE = "FRUGAL .25"
RATES = (5e-4, 1e-3, 2e-3)


def frugal(name: str, rates: tuple[float, ...] = (), **fields) -> Method:
    defaults = {"int8": False, "preset": "FrugalAdamW", "density": 0.25, "like": "" if rates else BASE}
    return Method(name, "ours", fields.pop("dtype", "float32"), rates, **{**defaults, **fields})


METHODS = {
    method.name: method
    for method in (
        Method("AdamW", "adamw", "float32", RATES),
        frugal(BASE, RATES),
        frugal("FRUGAL 0", (5e-4, 1e-3), density=0.0),
        Method("GaLore", "ours", "float32", (5e-3, 1e-2), int8=False, preset="GaLoreAdamW"),
        Method("Fira", "ours", "float32", (5e-3, 1e-2), int8=False, preset="Fira"),
        Method("BAdam", "badam", "float32", (1e-3, 2e-3)),
        frugal(
            "and the head by sign", target_modules=("attn", "mlp", "lm_head"), density=0.0, like="FRUGAL 0"
        ),
        frugal("Q-FRUGAL (INT8, 8-bit state)", int8=True, state_bits=8),
        frugal("blocks", options={"subspace": "blocks"}),
        frugal("SVD", options={"subspace": "svd"}),
        frugal("random", options={"subspace": "random"}),
        frugal("randk", options={"subspace": "randk"}),
        frugal("columns, nothing outside", options={"inactive_update_rule": "no"}),
        frugal("bf16 weights", dtype="bfloat16"),
    )
}

PAIRS = (
    (BASE, "AdamW"),
    ("FRUGAL 0", BASE),
    ("GaLore", "FRUGAL 0"),
    ("Fira", "GaLore"),
    ("BAdam", BASE),
    ("and the head by sign", "FRUGAL 0"),
    ("Q-FRUGAL (INT8, 8-bit state)", BASE),
    ("blocks", BASE),
    ("SVD", BASE),
    ("random", BASE),
    ("randk", BASE),
    ("columns, nothing outside", BASE),
    ("bf16 weights", BASE),
)

if __name__ == "__main__":
    main(Study("frugal_quality", __doc__.partition("\n")[0], METHODS, PAIRS))

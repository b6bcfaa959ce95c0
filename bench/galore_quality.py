"""Validation loss of the GaLore presets: what happens to moments at a refresh, staggering, rounding, width.

    python bench/galore_quality.py --out bench/results/cpu

How the runs are made: bench/quality.py. All run at the learning rate that is best for the published
GaLoreAdamW on this data (bench/training_quality.py), so differences are those of the part that is named.
"""

from __future__ import annotations

from quality import Method, Study, main

BASE = "GaLoreAdamW"
RATE = (1e-2,)


def variant(name: str, dtype: str = "float32", **fields) -> Method:
    return Method(name, "ours", dtype, like=BASE, int8=False, **{"preset": "GaLoreAdamW", **fields})


METHODS = {
    method.name: method
    for method in (
        Method(BASE, "ours", "float32", RATE, int8=False, preset="GaLoreAdamW"),
        variant("all refreshes in one step", options={"stagger": False}),
        variant("moments rotated", options={"moments_at_refresh": "rotate"}),
        variant("moments reset", options={"moments_at_refresh": "reset"}),
        variant("gap 10", gap=10),
        variant("gap 10, moments rotated", gap=10, options={"moments_at_refresh": "rotate"}),
        variant("gap 10, moments reset", gap=10, options={"moments_at_refresh": "reset"}),
        variant("bf16 weights", dtype="bfloat16"),
        variant("bf16 weights, nearest rounding", dtype="bfloat16", rounding="nearest"),
        variant("8-bit moments", state_bits=8),
        variant("4-bit moments", state_bits=4),
    )
}

PAIRS = (
    ("all refreshes in one step", BASE),
    ("moments rotated", BASE),
    ("moments reset", BASE),
    ("gap 10", BASE),
    ("gap 10, moments rotated", "gap 10"),
    ("gap 10, moments reset", "gap 10"),
    ("bf16 weights", BASE),
    ("bf16 weights, nearest rounding", "bf16 weights"),
    ("8-bit moments", BASE),
    ("4-bit moments", BASE),
)

if __name__ == "__main__":
    main(Study("galore_quality", __doc__.partition("\n")[0], METHODS, PAIRS))

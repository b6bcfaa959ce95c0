"""Validation loss of FusedQGaLore beside the published GaLore and Q-GaLore, and what each part of it does.

    pip install --no-deps galore-torch==1.0 && pip install bitsandbytes
    git clone https://github.com/VITA-Group/Q-GaLore
    python bench/training_quality.py --qgalore Q-GaLore --out bench/results/cpu

How the runs are made: bench/quality.py.
"""

from __future__ import annotations

from quality import Method, Study, main

RATES = (5e-3, 1e-2, 2e-2)
METHODS = {
    method.name: method
    for method in (
        Method("FusedQGaLore, fp32", "ours", "float32", RATES),
        Method("official GaLoreAdamW, fp32", "galore", "float32", RATES),
        Method("official Q-GaLore, bf16", "qgalore", "bfloat16", RATES),
        Method("FusedQGaLore, bf16", "ours", "bfloat16", RATES),
        Method("bf16, nearest rounding", "ours", "bfloat16", like="FusedQGaLore, bf16", rounding="nearest"),
        Method("bf16, fp32 basis", "ours", "bfloat16", like="FusedQGaLore, bf16", options={"quant": False}),
        Method("bf16, bf16 weights", "ours", "bfloat16", like="FusedQGaLore, bf16", int8=False),
        Method(
            "bf16, gap 10, fixed",
            "ours",
            "bfloat16",
            like="FusedQGaLore, bf16",
            gap=10,
            options={"cos_threshold": None},
        ),
        Method("bf16, gap 10, adaptive", "ours", "bfloat16", like="FusedQGaLore, bf16", gap=10),
        Method(
            "bf16, gap 10, adaptive as published",
            "ours",
            "bfloat16",
            like="FusedQGaLore, bf16",
            gap=10,
            options={"similarity": "first_vector"},
        ),
        Method("bf16, rank 16", "ours", "bfloat16", like="FusedQGaLore, bf16", rank=16),
        Method("bf16, rank 128", "ours", "bfloat16", like="FusedQGaLore, bf16", rank=128),
        Method("bf16, gap 200", "ours", "bfloat16", like="FusedQGaLore, bf16", gap=200),
        Method("bf16, a tenth of the rate", "ours", "bfloat16", like="FusedQGaLore, bf16", factor=0.1),
        Method(
            "bf16, a tenth of the rate, nearest rounding",
            "ours",
            "bfloat16",
            like="FusedQGaLore, bf16",
            factor=0.1,
            rounding="nearest",
        ),
        Method(
            "official Q-GaLore, bf16, a tenth of the rate",
            "qgalore",
            "bfloat16",
            like="official Q-GaLore, bf16",
            factor=0.1,
        ),
    )
}

PAIRS = (
    ("FusedQGaLore, fp32", "official GaLoreAdamW, fp32"),
    ("FusedQGaLore, bf16", "official GaLoreAdamW, fp32"),
    ("FusedQGaLore, bf16", "official Q-GaLore, bf16"),
    ("bf16, nearest rounding", "FusedQGaLore, bf16"),
    ("bf16, a tenth of the rate, nearest rounding", "bf16, a tenth of the rate"),
    ("official Q-GaLore, bf16, a tenth of the rate", "bf16, a tenth of the rate"),
    ("FusedQGaLore, bf16", "bf16, fp32 basis"),
    ("FusedQGaLore, bf16", "bf16, bf16 weights"),
    ("bf16, rank 16", "FusedQGaLore, bf16"),
    ("bf16, rank 128", "FusedQGaLore, bf16"),
    ("bf16, gap 200", "FusedQGaLore, bf16"),
    ("bf16, gap 10, fixed", "FusedQGaLore, bf16"),
    ("bf16, gap 10, adaptive", "bf16, gap 10, fixed"),
    ("bf16, gap 10, adaptive as published", "bf16, gap 10, fixed"),
)

if __name__ == "__main__":
    main(Study("training_quality", __doc__.partition("\n")[0], METHODS, PAIRS))

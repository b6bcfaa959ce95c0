"""What a run is: one flat dataclass, read from JSON or TOML and overridden from the command line.

    optimizer = "qgalore"
    steps = 1000
    target_modules = ["attn", "mlp"]
    model = "60m"                     # a name in MODELS, or a table of LlamaConfig fields

Everything that decides the numbers of a run is in here, so its hash identifies them. Unknown keys are
refused by name: a misspelt option that silently does nothing costs a whole run.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frugalore.pretrain.errors import ConfigError

#: Model shapes by name: fields of ``transformers.LlamaConfig``. The numbered ones are the shapes of the
#: GaLore paper (arXiv 2403.03507, table 5), with bytes for a vocabulary.
MODELS: dict[str, dict[str, Any]] = {
    "demo": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 688,
    },
    "60m": {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "intermediate_size": 1376,
    },
    "130m": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 2048,
    },
    "350m": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 2736,
    },
}

#: Whole configurations by name, for ``--config NAME``.
PRESETS: dict[str, dict[str, Any]] = {"demo": {"model": "demo"}}

#: Keys that do not change the numbers of a run, so a resumed run may change them. The text itself is
#: compared by its hash, not by its path.
FREE_ON_RESUME = frozenset({"data", "save_every"})

_POSITIVE = (
    "steps",
    "batch_size",
    "sequence_length",
    "rank",
    "update_proj_gap",
    "validate_every",
    "validation_batches",
    "save_every",
)
DTYPES = ("float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")
SUBSPACES = ("columns", "rows", "randk", "randperm", "blocks", "svd", "random")
INACTIVE_UPDATE_RULES = ("sign_sgd", "sgd", "no")


@dataclass(frozen=True)
class PretrainConfig:
    """One pre-training run. The defaults are those of ``make demo``."""

    model: Mapping[str, Any] = field(default_factory=lambda: dict(MODELS["demo"]))  #: LlamaConfig fields
    data: str | None = None  #: file or folder of text; None: the Python standard library's source
    optimizer: str = "qgalore"  #: a name in :mod:`frugalore.pretrain.optimizers`
    lr: float | None = None  #: peak learning rate; None: the optimizer's own default
    weight_decay: float = 0.0
    rank: int = 64  #: of the gradient's projection, for the low-rank optimizers
    update_proj_gap: int = 50  #: steps between two refreshes of a subspace
    scale: float = 0.25  #: factor of the projected part of an update
    density: float = 0.25  #: share of the subspace, for FRUGAL's optimizers
    subspace: str = (
        "columns"  #: of FRUGAL's optimizers: columns, rows, randk, randperm, blocks, svd or random
    )
    inactive_update_rule: str = "sign_sgd"  #: outside of it: sign_sgd, sgd or no
    inactive_lr_scale: float = 1.0  #: factor of the learning rate there
    #: which Linear layers are projected: as :func:`frugalore.param_groups` takes it
    target_modules: str | tuple[str, ...] = ("attn", "mlp")
    steps: int = 300
    batch_size: int = 16  #: sequences a step
    sequence_length: int = 256  #: bytes a sequence
    warmup_steps: int = 20  #: the learning rate rises linearly over these
    min_lr_ratio: float = 0.1  #: the cosine ends at this part of the peak
    max_norm: float = 1.0  #: the gradient's global norm is clipped here; 0: not at all
    seed: int = 0  #: of the initial weights, the batches and stochastic rounding
    validate_every: int = 50  #: steps; the last step is always validated
    validation_batches: int = 8  #: the same ones every time
    save_every: int = 100  #: steps; the last step is always saved
    device: str = "auto"  #: auto, cpu or cuda
    dtype: str = "float32"  #: of the weights that are not quantised: float32 or bfloat16

    def __post_init__(self):
        if not isinstance(self.model, Mapping):
            raise ConfigError(f"model: a table of LlamaConfig fields expected, got {self.model!r}")
        if not isinstance(self.optimizer, str):
            raise ConfigError(f"optimizer: a name expected, got {self.optimizer!r}")
        if not isinstance(self.data, (str, type(None))):
            raise ConfigError(f"data: a path expected, got {self.data!r}")
        for name in _POSITIVE:
            _integer(self, name, 1)
        for name in ("warmup_steps", "seed"):
            _integer(self, name, 0)
        for name in ("weight_decay", "max_norm", "min_lr_ratio", "density", "inactive_lr_scale"):
            _number(self, name, 0.0)
        _number(self, "scale", 0.0, open_end=True)
        if self.lr is not None:
            _number(self, "lr", 0.0, open_end=True)
        if self.min_lr_ratio > 1:
            raise ConfigError(f"min_lr_ratio: at most 1 expected, got {self.min_lr_ratio}")
        if self.warmup_steps >= self.steps > 1:
            # A short run keeps the proportion, so that `--steps 10` needs no second option.
            object.__setattr__(self, "warmup_steps", max(1, self.steps // 10))
        if self.density > 1:
            raise ConfigError(f"density: at most 1 expected, got {self.density}")
        choices = {
            "device": DEVICES,
            "dtype": DTYPES,
            "subspace": SUBSPACES,
            "inactive_update_rule": INACTIVE_UPDATE_RULES,
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(f"{name}: one of {', '.join(allowed)} expected, got {value!r}")
        if isinstance(self.target_modules, list):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        values = {name: getattr(self, name) for name in FIELDS}
        modules = self.target_modules
        values["target_modules"] = list(modules) if isinstance(modules, tuple) else modules
        return {**values, "model": dict(self.model)}

    def replace(self, **changes: Any) -> PretrainConfig:
        return dataclasses.replace(self, **changes)


FIELDS = tuple(f.name for f in dataclasses.fields(PretrainConfig))


def from_dict(values: Mapping[str, Any], where: str = "config") -> PretrainConfig:
    """A configuration of plain values; ``model`` may be the name of a shape in :data:`MODELS`."""
    refuse_unknown(values, FIELDS, where)
    values = dict(values)
    if isinstance(values.get("model"), str):
        name = values["model"]
        if name not in MODELS:
            raise ConfigError(f"model: a table or one of {', '.join(MODELS)} expected, got {name!r}")
        values["model"] = dict(MODELS[name])
    return PretrainConfig(**values)


def load(source: str) -> dict[str, Any]:
    """The values of a preset or of a JSON or TOML file; checked by :func:`from_dict`."""
    if source in PRESETS:
        return dict(PRESETS[source])
    path = Path(source)
    if not path.is_file():
        raise ConfigError(f"config: neither a file nor a preset ({', '.join(PRESETS)}): {source}")
    if path.suffix not in (".json", ".toml"):
        raise ConfigError(f"config: a .json or .toml file expected, got {source}")
    try:
        values = _parse(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: {source} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config: {source} holds {type(values).__name__}, a table expected")
    return values


def _parse(path: Path) -> Any:
    if path.suffix == ".json":
        return json.loads(path.read_text("utf-8"))
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    return tomllib.loads(path.read_text("utf-8"))


def refuse_unknown(values: Iterable[str], known: Iterable[str], where: str) -> None:
    """Name every key that does not exist, with the nearest one that does."""
    known = list(known)
    unknown = [name for name in values if name not in known]
    if not unknown:
        return
    described = []
    for name in unknown:
        near = difflib.get_close_matches(str(name), known, n=1)
        described.append(f"{name} (did you mean {near[0]}?)" if near else str(name))
    raise ConfigError(f"{where}: unknown key{'s' if len(unknown) > 1 else ''}: {', '.join(described)}")


def digest(config: PretrainConfig) -> str:
    """A hash of everything in the configuration."""
    text = json.dumps(config.to_dict(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(saved: PretrainConfig, asked: PretrainConfig) -> list[str]:
    """``key: saved -> asked`` for every key that a resumed run may not change."""
    old, new = saved.to_dict(), asked.to_dict()
    found = [f"{k}: {old[k]!r} -> {new[k]!r}" for k in FIELDS if k != "model" and old[k] != new[k]]
    for key in sorted({*old["model"], *new["model"]}):
        a, b = old["model"].get(key), new["model"].get(key)
        if a != b:
            found.append(f"model.{key}: {a!r} -> {b!r}")
    return [line for line in found if line.split(":", 1)[0] not in FREE_ON_RESUME]


def _integer(config: PretrainConfig, name: str, least: int) -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}: an integer of at least {least} expected, got {value!r}")


def _number(config: PretrainConfig, name: str, least: float, open_end: bool = False) -> None:
    value = getattr(config, name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Written so that NaN fails, and infinity too.
    inside = number and (least < value if open_end else least <= value) and value < float("inf")
    if not inside:
        sign = "greater than" if open_end else "of at least"
        raise ConfigError(f"{name}: a finite number {sign} {least:g} expected, got {value!r}")
    object.__setattr__(config, name, float(value))

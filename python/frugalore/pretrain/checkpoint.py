"""Checkpoints that are whole at any moment.

A checkpoint is a folder ``checkpoint-<step>`` with ``model.safetensors`` (the model's state_dict) and
``training.pt`` (optimizer, random state, step; readable with ``weights_only=True``). It exists for a reader
from the moment that ``manifest.json`` names it: the files are written to a folder of another name, synced,
renamed, and only then is the manifest replaced, in one rename. A process that dies at any point leaves the
manifest that was there, and that one's folder is removed only afterwards. The manifest holds the size and
SHA-256 of each file, so damage is seen before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from frugalore.pretrain import config as configs
from frugalore.pretrain.config import PretrainConfig
from frugalore.pretrain.errors import CheckpointError, ConfigError

FORMAT = "frugalore-pretrain"
VERSION = 1
MANIFEST = "manifest.json"
MODEL = "model.safetensors"
TRAINING = "training.pt"
FOLDER = "checkpoint-"
PARTIAL = ".partial"


@dataclass(frozen=True)
class Manifest:
    """The description of the newest checkpoint in a folder."""

    out: Path
    folder: str
    step: int
    config: PretrainConfig
    data_sha256: str
    files: dict[str, dict[str, Any]]  #: name -> bytes, sha256


def save(
    out: Path,
    step: int,
    config: PretrainConfig,
    data_sha256: str,
    model_state: dict[str, Tensor],
    training_state: dict[str, Any],
) -> None:
    """Write a checkpoint and make it the one that ``out`` holds."""
    folder = f"{FOLDER}{step:08d}"
    named = _named_folder(out)
    if named == folder:  # the state after a step is a function of the run, so it is there already
        return
    partial = out / (folder + PARTIAL)
    _remove_folders(out, keep=named)
    partial.mkdir()
    save_file(_independent(model_state), partial / MODEL)
    torch.save(training_state, partial / TRAINING)
    files = {}
    for name in (MODEL, TRAINING):
        _sync(partial / name)
        files[name] = {"bytes": (partial / name).stat().st_size, "sha256": _sha256(partial / name)}
    os.replace(partial, out / folder)
    _sync(out)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "step": step,
        "folder": folder,
        "config": config.to_dict(),
        "config_sha256": configs.digest(config),
        "data_sha256": data_sha256,
        "files": files,
    }
    write_text(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    _remove_folders(out, keep=folder)


def read_manifest(out: Path) -> Manifest:
    """The manifest of a folder, checked for itself.

    Raises:
        CheckpointError: there is none, or it is not one of ours, or its parts contradict each other.
    """
    path = out / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"checkpoint: {out} holds none ({MANIFEST} is missing)")
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"checkpoint: {path} is corrupt: {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint: {path} is not of {FORMAT}")
    if values.get("version") != VERSION:
        raise CheckpointError(
            f"checkpoint: {path} has format version {values.get('version')!r}, this release reads {VERSION}"
        )
    try:
        config = configs.from_dict(values["config"])
        intact = values["config_sha256"] == configs.digest(config)
        manifest = Manifest(
            out, values["folder"], values["step"], config, values["data_sha256"], dict(values["files"])
        )
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"checkpoint: {path} is corrupt: {error}") from error
    if not intact:
        raise CheckpointError(f"checkpoint: {path} is corrupt: its config does not match config_sha256")
    return manifest


def check_same_run(manifest: Manifest, config: PretrainConfig, data_sha256: str) -> None:
    """Refuse to continue with another configuration or another text.

    Raises:
        CheckpointError: the message names every key that differs, with both values.
    """
    different = configs.differences(manifest.config, config)
    if different:
        raise CheckpointError(
            f"checkpoint: {manifest.out} was made with another config; saved -> asked: {'; '.join(different)}"
        )
    if manifest.data_sha256 != data_sha256:
        raise CheckpointError(
            f"checkpoint: {manifest.out} was made with another text: SHA-256 {manifest.data_sha256[:12]}... "
            f"saved, {data_sha256[:12]}... given"
        )


def load(manifest: Manifest) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The model's state_dict and the training state, after every file's size and hash were checked.

    Raises:
        CheckpointError: a file is missing, shortened, altered or unreadable.
    """
    for name in (MODEL, TRAINING):
        _check_file(manifest, name)
    folder = manifest.out / manifest.folder
    try:
        model = load_file(folder / MODEL)
        training = torch.load(folder / TRAINING, weights_only=True, map_location="cpu")
    except Exception as error:  # safetensors, pickle and zip each have errors of their own
        raise CheckpointError(f"checkpoint: {folder} cannot be read: {error}") from error
    if training.get("step") != manifest.step:
        raise CheckpointError(
            f"checkpoint: {folder} is of step {training.get('step')!r}, its manifest says {manifest.step}"
        )
    return model, training


def remove(out: Path) -> None:
    """Remove the checkpoint of a folder; the manifest goes first."""
    (out / MANIFEST).unlink(missing_ok=True)
    _remove_folders(out, keep=None)


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new one, never a part."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync(path.parent)


def _check_file(manifest: Manifest, name: str) -> None:
    path = manifest.out / manifest.folder / name
    expected = manifest.files.get(name)
    if expected is None or not path.is_file():
        raise CheckpointError(f"checkpoint: {path} is missing")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise CheckpointError(f"checkpoint: {path} has {size} bytes, its manifest says {expected['bytes']}")
    if _sha256(path) != expected["sha256"]:
        raise CheckpointError(f"checkpoint: {path} is corrupt: its SHA-256 is not the manifest's")


def _named_folder(out: Path) -> str | None:
    """The folder that the manifest names, if a manifest can be read."""
    try:
        return json.loads((out / MANIFEST).read_text("utf-8"))["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove_folders(out: Path, keep: str | None) -> None:
    for path in out.glob(f"{FOLDER}*"):
        if path.is_dir() and path.name != keep:
            shutil.rmtree(path)


def _independent(state: dict[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses tensors that share memory (tied embeddings); each is written on its own.
    seen: set[int] = set()
    result = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return result


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

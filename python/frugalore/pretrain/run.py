"""A whole run, from its configuration to its report."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from frugalore._build import with_cuda
from frugalore.pretrain import checkpoint, memory, metrics, optimizers, report
from frugalore.pretrain.config import PretrainConfig
from frugalore.pretrain.data import Batches, Corpus, load_corpus
from frugalore.pretrain.errors import CheckpointError, ConfigError
from frugalore.pretrain.loop import Trainer
from frugalore.pretrain.model import build_model
from frugalore.pretrain.progress import ProgressDisplay
from frugalore.pretrain.report import Summary


def pretrain(
    config: PretrainConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    stop_after: int | None = None,
    console: Console | None = None,
) -> Summary:
    """Train, and leave metrics, checkpoint, summary and plot in ``out``.

    Args:
        config: what to train; ``lr`` None and ``device`` "auto" are filled in first.
        out: a folder that is made, or is empty, or holds a run to resume or to overwrite.
        resume: continue the run in ``out``; configuration and text must be the same.
        overwrite: remove the run in ``out`` first; other files there are left alone.
        stop_after: end at this step with a checkpoint, in the middle of the schedule.
        console: where progress and report go; None: nowhere.

    Raises:
        PretrainError: a bad configuration, text or checkpoint; raised before anything is written.
    """
    console = console or Console(quiet=True)
    config = resolve(config)
    device = torch.device(config.device)
    corpus = load_corpus(config.data, config.sequence_length)
    manifest = saved = None
    if resume:
        manifest = checkpoint.read_manifest(out)
        checkpoint.check_same_run(manifest, config, corpus.sha256)
        saved = checkpoint.load(manifest)
    else:
        _check_out(out, overwrite)

    model = build_model(config).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    computed = _computed_bytes(model, config)
    optimizer, model = _build_optimizer(model, config)
    batches = Batches(corpus, config.batch_size, config.sequence_length, config.seed)
    trainer = Trainer(config, model, optimizer, batches, device)
    if saved:
        _restore(trainer, saved, out)
    out.mkdir(parents=True, exist_ok=True)
    if overwrite and not resume:
        _remove_run(out)

    _introduce(console, config, corpus, parameters, trainer.step_count)
    with closing(metrics.MetricsFile(out, trainer.step_count)) as rows:
        _train(trainer, out, corpus, rows, stop_after, console)
    summary = _summarise(trainer, out, rows.rows, parameters, computed)
    if summary.finished:
        report.write(summary)
        report.show(summary, console)
    else:
        console.print(f"stopped at step {summary.step} of {config.steps}; --resume continues")
    return summary


def resolve(config: PretrainConfig) -> PretrainConfig:
    """Fill in what depends on the machine and on the optimizer."""
    entry = optimizers.entry(config.optimizer)
    usable = torch.cuda.is_available() and with_cuda()
    if config.device == "cuda" and not torch.cuda.is_available():
        why = "sees no CUDA device" if torch.version.cuda else "is built without CUDA"
        raise ConfigError(f"device: cuda asked for, but torch {why}")
    device = ("cuda" if usable else "cpu") if config.device == "auto" else config.device
    return config.replace(lr=entry.lr if config.lr is None else config.lr, device=device)


def _check_out(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out: {out} is not a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ConfigError(f"out: {out} is not empty; --resume continues its run, --overwrite replaces it")


def _remove_run(out: Path) -> None:
    checkpoint.remove(out)
    for name in (metrics.NAME, report.SUMMARY, report.PLOT):
        (out / name).unlink(missing_ok=True)


def _computed_bytes(model: nn.Module, config: PretrainConfig):
    try:
        return report.computed_bytes(model, config)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error


def _build_optimizer(model: nn.Module, config: PretrainConfig) -> tuple[torch.optim.Optimizer, nn.Module]:
    try:
        return optimizers.entry(config.optimizer).build(model, config)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{config.optimizer}: {error}") from error


def _restore(trainer: Trainer, saved: tuple, out: Path) -> None:
    try:
        trainer.restore(*saved)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint: {out} does not fit this model and optimizer: {error}") from error


def _introduce(console: Console, config: PretrainConfig, corpus: Corpus, parameters: int, done: int) -> None:
    source = config.data or "the Python standard library"
    console.print(
        f"{parameters / 1e6:.1f} M parameters, {config.optimizer} at learning rate {config.lr:g}, "
        f"{config.dtype} on {config.device}; {corpus.size / 1e6:.1f} MB of text from {source}",
        highlight=False,
    )
    if done:
        console.print(f"continuing after step {done}")


def _train(
    trainer: Trainer,
    out: Path,
    corpus: Corpus,
    rows: metrics.MetricsFile,
    stop_after: int | None,
    console: Console,
) -> None:
    config = trainer.config
    last = config.steps if stop_after is None else min(stop_after, config.steps)
    with ProgressDisplay(console, trainer.step_count, config.steps) as display, _asked_to_stop() as stop:
        while trainer.step_count < last and not stop.is_set():
            row = trainer.step()
            step = trainer.step_count
            if step % config.validate_every == 0 or step == config.steps:
                row["validation_loss"] = trainer.evaluate()
            rows.append(row)
            display.update(row)
            if step % config.save_every == 0:
                _save(trainer, out, corpus)
        if trainer.step_count:
            _save(trainer, out, corpus)


def _save(trainer: Trainer, out: Path, corpus: Corpus) -> None:
    state = trainer.model.state_dict()
    checkpoint.save(out, trainer.step_count, trainer.config, corpus.sha256, state, trainer.state())


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Set by SIGINT or SIGTERM, so that the step at hand ends and is saved. A second signal acts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals can be caught in the main thread alone
        return
    before = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(*_: object) -> None:
        stop.set()
        restore()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()


def _summarise(trainer: Trainer, out: Path, rows: list, parameters: int, computed: tuple) -> Summary:
    finished = trainer.step_count >= trainer.config.steps
    validation = rows[-1].get("validation_loss", float("nan")) if rows else float("nan")
    counts = getattr(trainer.optimizer, "statistics", None)
    return Summary(
        out=out,
        config=trainer.config,
        step=trainer.step_count,
        finished=finished,
        skipped=trainer.skipped,
        parameters=parameters,
        validation_loss=validation,
        measured=memory.measured(trainer.model, trainer.optimizer, trainer.gradient_bytes),
        adamw=computed[0],
        galore=computed[1],
        statistics=counts() if counts else {},
        rows=rows,
    )

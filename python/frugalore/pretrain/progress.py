"""What is shown while a run goes: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOG_LINES = 20


def megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


class ProgressDisplay:
    """A context manager; :meth:`update` takes the metrics of one step."""

    def __init__(self, console: Console, done: int, total: int):
        self._console = console
        self._total = total
        self._every = max(1, total // LOG_LINES)
        self._validation = ""
        self._bar = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=console,
            )
            self._task = self._bar.add_task("", total=total, completed=done, text="")

    def __enter__(self) -> ProgressDisplay:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, row: dict) -> None:
        if "validation_loss" in row:
            self._validation = f"  validation {row['validation_loss']:.3f}"
        text = (
            f"loss {row['loss']:.3f}{self._validation}  {row['tokens_per_second']:,.0f} tokens/s  "
            f"memory {megabytes(row['memory'])}, peak {megabytes(row['peak_memory'])}"
        )
        if self._bar:
            self._bar.update(self._task, completed=row["step"], text=text)
        elif row["step"] % self._every == 0 or row["step"] == self._total:
            self._console.print(f"step {row['step']}/{self._total}  {text}", highlight=False)

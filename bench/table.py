"""One line per measured case: on the screen and as CSV. What the columns mean: ``harness.py``."""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass
class Row:
    """One measured case, and a line of the CSV. Times in microseconds, absent values ``None``."""

    family: str
    op: str
    shape: str
    dtype: str
    bytes: int
    flops: int
    rounds: int
    buffer_sets: int
    median_us: float
    p20_us: float
    p80_us: float
    call_us: float | None
    gb_s: float
    copy_gb_s: float
    share_of_copy: float
    peak_copy_gb_s: float
    peak_tflop_s: float | None
    share_of_roofline: float
    reference_us: float | None
    ratio_reference: float | None
    torch_us: float | None
    ratio_torch: float | None
    bitsandbytes_us: float | None
    ratio_bitsandbytes: float | None
    torchao_us: float | None
    ratio_torchao: float | None
    numpy_us: float | None
    ratio_numpy: float | None
    state_bytes: int | None
    torch_state_bytes: int | None
    bitsandbytes_state_bytes: int | None
    torchao_state_bytes: int | None
    numpy_state_bytes: int | None
    device: str
    device_name: str
    cpu_isa: str
    threads: int
    commit: str
    torch: str
    frugalore: str


COLUMNS = tuple(f.name for f in fields(Row))


class CsvWriter:
    """Writes a line a row as it comes, so that an interrupted run keeps what it measured."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS)
        self._writer.writeheader()
        self._file.flush()

    def write(self, row: Row) -> None:
        values = {name: getattr(row, name) for name in COLUMNS}
        self._writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()})
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _microseconds(value: float) -> str:
    return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"


TABLE = (
    ("op", lambda r: r.op),
    ("shape", lambda r: r.shape),
    ("dtype", lambda r: r.dtype),
    ("MB", lambda r: _number(r.bytes / 1e6, ".4g")),
    ("us", lambda r: _microseconds(r.median_us)),
    ("p20-p80", lambda r: f"{_microseconds(r.p20_us)}-{_microseconds(r.p80_us)}"),
    ("GB/s", lambda r: _number(r.gb_s, ".4g")),
    ("of copy", lambda r: _number(r.share_of_copy, ".0%")),
    ("of roofline", lambda r: _number(r.share_of_roofline, ".0%")),
    ("x reference", lambda r: _number(r.ratio_reference, ".3g")),
    ("x torch", lambda r: _number(r.ratio_torch, ".3g")),
    ("x bnb", lambda r: _number(r.ratio_bitsandbytes, ".3g")),
    ("x torchao", lambda r: _number(r.ratio_torchao, ".3g")),
    ("x numpy", lambda r: _number(r.ratio_numpy, ".3g")),
    ("state MB", lambda r: _number(r.state_bytes and r.state_bytes / 1e6, ".4g")),
    ("torch's", lambda r: _number(r.torch_state_bytes and r.torch_state_bytes / 1e6, ".4g")),
)


def _cells(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines; a column without any value (a peer that did not run) is left out."""
    cells = [[text(row) for _, text in TABLE] for row in rows]
    keep = [i for i in range(len(TABLE)) if i < 3 or any(line[i] for line in cells)]
    return [TABLE[i][0] for i in keep], [[line[i] for i in keep] for line in cells]


def markdown(rows: list[Row], title: str) -> str:
    """The rows as a table in Markdown, under a line of title."""
    header, cells = _cells(rows)
    lines = [title, "", f"| {' | '.join(header)} |", "|" + "---|" * 3 + "--:|" * (len(header) - 3)]
    return "\n".join([*lines, *(f"| {' | '.join(line)} |" for line in cells)]) + "\n"


def print_table(rows: list[Row], title: str) -> None:
    """The rows on the screen: with rich where it can be imported, else as plain text."""
    header, cells = _cells(rows)
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
        print(title)
        for line in (header, *cells):
            print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
        return
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index < 3 else "right", overflow="fold")
    for line in cells:
        table.add_row(*line)
    console = Console()
    if not console.is_terminal:
        console = Console(width=240)
    console.print(table)

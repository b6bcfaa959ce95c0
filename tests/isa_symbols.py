"""Symbols that an object file for avx2 or avx512 would share with one for the baseline; needs nm and c++filt.

    python tests/isa_symbols.py BUILD_DIR

The linker keeps one of several weak symbols with one name. If that were a copy with AVX-512 instructions, the
library would crash on a machine without them. So every symbol that such an object defines for others must
carry its instruction set: the namespace, or a template argument.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

#: enum class Isa in csrc/cpu/isa.h
ISA_NUMBERS = {"avx2": 1, "avx512": 2}


def shared_symbols(object_file: Path, isa: str) -> list[str]:
    """The demangled names of the symbols that do not name their instruction set."""
    command = ["nm", "--demangle", "--defined-only", "--extern-only", str(object_file)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    # DW.ref. is a pointer to the C++ runtime, not code.
    own = re.compile(rf"frugalore::(cpu::)?{isa}::|\(frugalore::Isa\){ISA_NUMBERS[isa]}>|^DW\.ref\.")
    names = [line.split(" ", 2)[2] for line in lines]
    return [name for name in names if not own.search(name)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("build_dir", type=Path)
    build_dir = parser.parse_args().build_dir
    checked = 0
    for isa in ISA_NUMBERS:
        for object_file in sorted(build_dir.glob(f"CMakeFiles/frugalore_cpu_{isa}.dir/**/*.o")):
            checked += 1
            if names := shared_symbols(object_file, isa):
                sys.exit(f"{object_file.name} of {isa} defines symbols for all: {'; '.join(names)}")
    if checked == 0:
        sys.exit(f"{build_dir}: no objects for {' or '.join(ISA_NUMBERS)} there")
    print(f"{checked} objects, every symbol names its instruction set")


if __name__ == "__main__":
    main()

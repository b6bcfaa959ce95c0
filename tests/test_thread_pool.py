"""The thread pool where the system refuses threads."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource
import torch
from frugalore import ops

weights = [torch.zeros(1 << 20) for _ in range(4)]
update = torch.arange(1 << 20, dtype=torch.float32)
lr, progress = torch.tensor([0.1], dtype=torch.float64), torch.tensor([1, 0, 1])
torch.set_num_threads(512)
pages = int(open("/proc/self/statm").read().split()[0])
_, hard = resource.getrlimit(resource.RLIMIT_AS)
room = pages * resource.getpagesize() + (64 << 20)  # for a few stacks
resource.setrlimit(resource.RLIMIT_AS, (room, hard))
for weight in weights[1:]:
    ops.weight_update_(weight, update, lr=lr, progress=progress)
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
torch.set_num_threads(1)
ops.weight_update_(weights[0], update, lr=lr, progress=progress)
assert all(torch.equal(weights[0], weight) for weight in weights[1:])
print("equal")
"""


def test_fewer_threads_than_wanted_give_the_same_bytes():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal"

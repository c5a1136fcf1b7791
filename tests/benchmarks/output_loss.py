"""Peak memory and time of the output cross entropy: in chunks (ours), torch's own chunked form, and with all logits at once.

Each is measured in a process of its own, forward and backward. `python -m tests.benchmarks.output_loss`
"""

import resource
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from lm.ops.cross_entropy import linear_cross_entropy
from lm.ops.readout import Readout

TOKENS, HIDDEN, VOCABULARY = 4096, 256, 16_384
FORMS = ("chunked", "torch's chunked", "all logits")


def measure(form: str) -> None:
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    weight = (0.02 * torch.randn(VOCABULARY, HIDDEN)).requires_grad_()
    targets = torch.randint(VOCABULARY, (TOKENS,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(3):
        began = time.perf_counter()
        if form == "chunked":
            loss = linear_cross_entropy(hidden, Readout(weight), targets)[0]
        elif form == "all logits":
            loss = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
        else:
            loss = F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=torch.nn.LinearCrossEntropyOptions())
        loss.backward()
        times.append(time.perf_counter() - began)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{form:16} {peak:7.0f} MiB over the inputs, {sorted(times)[1]:.2f} s")


def main() -> None:
    if len(sys.argv) > 1:  # a child of this program
        return measure(sys.argv[1])
    print(f"{TOKENS} tokens, {HIDDEN} wide, {VOCABULARY} entries, float32; all logits alone are {TOKENS * VOCABULARY * 4 / 2**20:.0f} MiB")
    for form in FORMS if hasattr(F, "linear_cross_entropy") else FORMS[::2]:
        subprocess.run([sys.executable, "-m", "tests.benchmarks.output_loss", form], check=True)


if __name__ == "__main__":
    main()

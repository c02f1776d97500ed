"""Seconds of the fusions over many samples: 100,000 of 1,000 classes by 3 experts by default.

python bench/fusion.py --threads 1
"""

from __future__ import annotations

import argparse
import time

import torch

from ltkernels.fusion import JointCalibration, balanced_weight, kl_min, soft_vote


def main() -> None:
    """Time every strategy once and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--subsets", default="391,473,136", help="classes of each expert")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    generator = torch.Generator().manual_seed(0)
    sizes = [int(size) for size in arguments.subsets.split(",")]
    target = torch.randint(sum(sizes), (arguments.samples,), generator=generator)
    classes, logits, first = [], [], 0
    for size in sizes:
        own = torch.arange(first, first + size)
        z = torch.randn(arguments.samples, size + 1, generator=generator)
        column = target - first
        inside = (column >= 0) & (column < size)
        z[inside.nonzero().squeeze(1), column[inside]] += 5
        z[:, -1] += 4 * ~inside
        classes.append(own)
        logits.append(z)
        first += size
    calibration = JointCalibration(classes)
    weight = balanced_weight(target)
    tasks = {
        "kl_min": lambda: kl_min(logits, classes),
        "soft_vote": lambda: soft_vote(logits, classes),
        "joint_calibration, fit": lambda: calibration.fit(logits, target, sample_weight=weight),
        "joint_calibration": lambda: calibration(logits),
    }
    print(
        f"{arguments.samples:,} samples, {sum(sizes)} classes, experts of {sizes}, float32, "
        f"{arguments.threads} threads, {arguments.clock} seconds"
    )
    for name, task in tasks.items():
        began = clock()
        with torch.no_grad():
            result = task()
        seconds = clock() - began
        right = ""
        if isinstance(result, torch.Tensor):
            right = f", {100 * float((result.argmax(1) == target).double().mean()):.2f} % right"
        print(f"{name:<24}{seconds:8.2f}{right}", flush=True)


if __name__ == "__main__":
    main()

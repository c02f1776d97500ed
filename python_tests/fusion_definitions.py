"""The strategies once more, slow and plain, a sample and a class at a time, in float64."""

from __future__ import annotations

import math

import torch


def posterior(z):
    return torch.softmax(z.double(), -1)


def kl_objective(q, logits, classes):
    """sum_e KL(E_e || q) of one sample, the classes an expert does not know pooled."""
    total = 0.0
    for z, own in zip(logits, classes, strict=True):
        p = posterior(z)
        inside = sum(float(q[c]) for c in own)
        for column, c in enumerate(own):
            if p[column] > 0:
                total += float(p[column]) * (
                    math.log(p[column]) - math.log(max(float(q[c]), 1e-300))
                )
        if len(p) > len(own) and p[-1] > 0:
            if len(own) == len(q):
                continue  # nothing is outside: a constant that is infinite for every q
            total += float(p[-1]) * (math.log(p[-1]) - math.log(max(1 - inside, 1e-300)))
    return total


def kl_min(logits, classes, num_classes, steps=20000):
    """One sample by expectation maximisation over all classes, from the uniform posterior."""
    q = [1 / num_classes] * num_classes
    for _ in range(steps):
        new = [0.0] * num_classes
        for z, own in zip(logits, classes, strict=True):
            p = posterior(z).tolist()
            for column, c in enumerate(own):
                new[c] += p[column]
            others = [c for c in range(num_classes) if c not in own]
            outside = sum(q[c] for c in others)
            if len(p) > len(own) and outside > 0:
                for c in others:
                    new[c] += p[-1] * q[c] / outside
        scale = sum(new)
        new = [x / scale for x in new]
        moved = max(abs(a - b) for a, b in zip(q, new, strict=True))
        q = new
        if moved < 1e-15:
            break
    return torch.tensor(q, dtype=torch.float64)


def soft_vote(logits, classes, num_classes):
    q = torch.zeros(num_classes, dtype=torch.float64)
    for z, own in zip(logits, classes, strict=True):
        p = posterior(z)
        others = [c for c in range(num_classes) if c not in own]
        kept = p[: len(own)]
        if len(p) > len(own) and not others:
            kept = kept / kept.sum()
        for column, c in enumerate(own):
            q[c] += kept[column]
        if len(p) > len(own):
            for c in others:
                q[c] += p[-1] / len(others)
    return q / len(logits)


def joint_calibration(logits, classes, num_classes, scales, shifts):
    """Probability space, as the paper has it."""
    q = torch.zeros(num_classes, dtype=torch.float64)
    for z, own, w, b in zip(logits, classes, scales, shifts, strict=True):
        p = posterior(w.double() * z.double() + b.double())
        for column, c in enumerate(own):
            q[c] += p[column]
    return q / q.sum()

"""What pooling costs, forward and backward: python benchmarks/mil.py [--json FILE]

100 studies of 5,000 tokens and 82 findings on one thread, with the encoder frozen. Each way is
measured in a process of its own, so that its peak of memory is its own, from the same features and
weights; times are those of the processor, so that other processes count little. The loops differ
from ours only in how they pool: attention and head are the same.

    packed          neuro.models.pooling, all studies and findings at once
    loop            study by study and finding by finding: a softmax, then a weighted sum of tokens
    loop_of_matmul  study by study, all findings by one product: the best that a loop can do
    *_alone         the pooling by itself, from given scores to gathered features: pool_speedup.
                    The whole, head_speedup, is mostly products that all ways have in common
    additive        the other pool: its loop sums numbers, not features, and saves little
    floor           operations of the products over the rate of a large one, in the same run
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from neuro.metrics.evaluate import evaluate
from neuro.metrics.resamples import draw_counts
from neuro.models.pooling import AdditivePool, AttentionPool
from neuro.models.segments import segment_softmax, weighted_sums

DIM, HIDDEN, HEAD = 768, 384, 384  # of the released head
FINDINGS, TOKENS = 82, 5000


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def features(num_studies):
    """Return features as an encoder leaves them, layer-normed."""
    tokens = torch.empty(num_studies * TOKENS, DIM)
    generator = torch.Generator().manual_seed(0)
    for own in tokens.split(TOKENS):
        own.normal_(generator=generator)
    return tokens, torch.arange(num_studies + 1) * TOKENS


def by_finding(scores, tokens):
    """Gather finding by finding, in one study."""
    weights = [own.softmax(dim=0) for own in scores.unbind(1)]
    return torch.stack([(own.unsqueeze(1) * tokens).sum(dim=0) for own in weights])


def by_product(scores, tokens):
    return scores.softmax(dim=0).T @ tokens


def gather_packed(scores, tokens, bounds):
    return weighted_sums(segment_softmax(scores, bounds), tokens, bounds)


def gather_by(one):
    def gather(scores, tokens, bounds):
        lengths = bounds.diff().tolist()
        pairs = zip(scores.split(lengths), tokens.split(lengths), strict=True)
        return torch.stack([one(*pair) for pair in pairs])

    return gather


GATHER = {
    "packed": gather_packed,
    "loop": gather_by(by_finding),
    "loop_of_matmul": gather_by(by_product),
}


def whole(pool, gather):
    """Return a pool's logits, with another way to gather."""

    def logits(tokens, bounds):
        attention = pool.attention
        hidden = torch.tanh(attention.value(tokens)) * torch.sigmoid(attention.gate(tokens))
        gathered = gather(attention.score(hidden), tokens, bounds)
        return pool.scale * pool.head.of_own(gathered) + pool.bias

    return logits


def additive_loop(pool):
    def logits(tokens, bounds):
        attention = pool.attention
        hidden = torch.tanh(attention.value(tokens)) * torch.sigmoid(attention.gate(tokens))
        scores, judged = attention.score(hidden), pool.head(tokens)
        lengths = bounds.diff().tolist()
        found = []
        for own, right in zip(scores.split(lengths), judged.split(lengths), strict=True):
            pairs = zip(own.unbind(1), right.unbind(1), strict=True)
            found.append(torch.stack([(one.softmax(dim=0) * other).sum() for one, other in pairs]))
        return pool.scale * torch.stack(found) + pool.bias

    return logits


def work(way, num_studies, repeats):
    """Return the median time of a forward and a backward, and the memory above the features."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokens, bounds = features(num_studies)
    name = way.removesuffix("_alone")
    make = AdditivePool if name.startswith("additive") else AttentionPool
    pool = make(DIM, HIDDEN, FINDINGS, head_dims=[HEAD], normalize=False)
    if way.endswith("_alone"):
        scores = torch.randn(len(tokens), FINDINGS, requires_grad=True)
        parts, run = [scores], lambda: GATHER[name](scores, tokens, bounds)
    else:
        ways = {"packed": pool, "additive": pool, "additive_loop": additive_loop(pool)}
        logits = ways.get(name) or whole(pool, GATHER[name])
        parts, run = list(pool.parameters()), lambda: logits(tokens, bounds)
    before, times = peak_mb(), []
    for _ in range(repeats):
        start = time.process_time()
        found = run()
        grads = torch.autograd.grad(found.square().sum(), parts)
        times.append(time.process_time() - start)
    check = [float(found.double().square().sum())] + [float(one.double().norm()) for one in grads]
    return {"s": statistics.median(times), "mb": peak_mb() - before, "check": check}


def measured(way, num_studies, repeats):
    arguments = ["--work", way, "--studies", str(num_studies), "--repeats", str(repeats)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def floor_s(num_studies):
    """Return the time that the products alone would take, for the whole and for the pooling."""
    torch.set_num_threads(1)
    one = torch.randn(2048, 2048)
    one @ one
    start = time.process_time()
    for _ in range(3):
        one @ one
    rate = 3 * 2 * 2048**3 / (time.process_time() - start)
    num = num_studies * TOKENS
    layers = 2 * 2 * num * DIM * 2 * HIDDEN  # value and gate, and the gradients of their weights
    score = 3 * 2 * num * HIDDEN * FINDINGS  # and the gradients of weights and of what goes in
    gather = 2 * 2 * num * DIM * FINDINGS  # and the gradient of the weights of tokens
    return (layers + score + gather) / rate, gather / rate, rate / 1e9


def bootstrap_s():
    generator = torch.Generator().manual_seed(0)
    said = torch.rand(1000, FINDINGS, generator=generator)
    truth = (torch.rand(1000, FINDINGS, generator=generator) < said).float()
    counts = draw_counts([str(number) for number in range(1000)])
    start = time.process_time()
    evaluate("multilabel", said, truth, counts)
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--studies", type=int, default=100, help="fewer for a quick look")
    parser.add_argument("--repeats", type=int, default=1, help="each takes a minute or more")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    studies = arguments.studies
    if arguments.work:
        print(json.dumps(work(arguments.work, studies, arguments.repeats)))
        return
    floor, floor_alone, rate = floor_s(studies)
    figures = {"studies": studies, "floor_s": floor, "floor_alone_s": floor_alone, "gflops": rate}
    checks = {}
    for way in ("packed", "loop_of_matmul", "loop", "additive", "additive_loop"):
        for name in (way, *([f"{way}_alone"] if way in GATHER else [])):
            # A loop of minutes is not in need of a median.
            found = measured(name, studies, 1 if way == "loop" else arguments.repeats)
            figures |= {f"{name}_s": found["s"], f"{name}_mb": found["mb"]}
            checks[name] = torch.tensor(found["check"])
            line = f"{name:45} {found['s']:10.2f} s {found['mb']:10.0f} MB"
            print(line, flush=True)
    for name, alone in (("pool_speedup", "_alone"), ("head_speedup", "")):
        ours, theirs = f"packed{alone}", f"loop{alone}"
        torch.testing.assert_close(checks[ours], checks[theirs], rtol=1e-3, atol=1e-5)
        figures[name] = figures[f"{theirs}_s"] / figures[f"{ours}_s"]
    figures["packed_over_floor"] = figures["packed_s"] / floor
    figures["packed_alone_over_floor"] = figures["packed_alone_s"] / floor_alone
    figures["packed_alone_over_loop_of_matmul_alone"] = (
        figures["packed_alone_s"] / figures["loop_of_matmul_alone_s"]
    )
    figures["additive_speedup"] = figures["additive_loop_s"] / figures["additive_s"]
    figures["bootstrap_1000x1000x82_s"] = bootstrap_s()
    for name, value in figures.items():
        print(f"{name:45} {value:12.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""How much of this machine's plain float32 matrix product does a stage-1 step reach? Both in one process, in turns; writes step_speed.csv.

Steps: (1) draw pictures and captions, build the embedder; (2) count the floating-point operations of one real step; (3) time the product
and the step in turns, and print the ratio. The ratio is the figure to read: seconds are of this machine, under the load that it had.

`python benchmarks/step_speed.py [--backbone FOLDER] [--repeats 7]`
"""

import argparse
import csv
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from abc_core import adapters, train
from abc_core.batches import PairBatches
from abc_core.config import PretrainConfig
from abc_core.data.karpathy import read_pairs
from abc_core.data.texts import caption_ids
from abc_core.miniature.backbone.build import build
from abc_core.miniature.parts import draw_part
from abc_core.model import Embedder
from abc_core.runs import paths

PICTURES, NEGATIVES = 64, 3  # 256 captions


def make_step(backbone: Path):
    """step number -> seconds: a real training step, of the batch of step 0; LoRA, head and optimizer as in Sec. 4."""
    pairs, _ = read_pairs(draw_part(paths.DATA, "cc", PICTURES * (1 + NEGATIVES), report=print))
    captions = [p.caption for p in pairs]
    if (backbone / "config.json").exists():
        embedder = Embedder.from_backbone(backbone)
    else:
        print(f"{backbone} is missing; a random model of the same size takes its place")
        embedder = Embedder(*build(captions * 20))
    config = PretrainConfig(queries=PICTURES, negatives=NEGATIVES)
    adapters.add_lora(embedder, "pretrain", **asdict(config.lora))
    train.prepare(embedder, "pretrain", config)
    optimizer = train.make_optimizer(embedder, config)
    negatives = np.random.default_rng(0).integers(len(pairs), size=(len(pairs), NEGATIVES))
    batch = PairBatches(pairs, captions, caption_ids(captions), negatives, config)(0)

    def step(number: int) -> float:
        start = time.perf_counter()
        train.one_step(embedder, optimizer, batch, train.pretrain_step, config, number)
        return time.perf_counter() - start

    return step


def product_speed(size: int = 1024, times: int = 10) -> float:
    """GFLOP/s of a float32 matrix product, size × size × size."""
    a, b = torch.randn(2, size, size)
    start = time.perf_counter()
    for _ in range(times):
        a @ b
    return times * 2 * size**3 / (time.perf_counter() - start) / 1e9


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path, default=paths.ASSETS / "backbone")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    step = make_step(args.backbone)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused kernel of CPUs is not counted
        step(0)
    work = counter.get_total_flops() / 1e9
    product_speed()
    rows, before = [], product_speed()
    for repeat in range(args.repeats):
        seconds, after = step(repeat + 1), product_speed()
        product = (before + after) / 2
        numbers = {"product_gflops": product, "step_gflop": work, "step_seconds": seconds, "step_gflops": work / seconds}
        rows.append({"repeat": repeat, "threads": torch.get_num_threads(), **numbers, "ratio": work / seconds / product})
        print(f"product {product:6.1f} GFLOP/s · step {work / seconds:6.1f} GFLOP/s, {seconds:.2f} s · ratio {rows[-1]['ratio']:.2f}")
        before = after
    with Path(__file__).with_suffix(".csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: round(v, 4) for k, v in row.items()} for row in rows)
    share = median(r["ratio"] for r in rows)
    print(f"{PICTURES} pictures and {PICTURES * (1 + NEGATIVES)} captions: a step reaches {share:.2f} of the plain product, in the median")


if __name__ == "__main__":
    main()

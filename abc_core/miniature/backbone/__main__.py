"""`python -m abc_core.miniature.backbone` trains the tiny backbone, or goes on, and writes assets/backbone."""

import argparse
from functools import partial
from pathlib import Path

import torch

from abc_core.miniature.backbone.build import build, tokenizer_texts
from abc_core.miniature.backbone.lessons import Lessons
from abc_core.miniature.backbone.pretrain import TEST_IMAGES, BackboneConfig, train
from abc_core.runs import paths


def main(words: list[str] | None = None) -> None:
    """Train the tiny backbone, or go on where training stopped, and write it to assets/backbone."""
    from abc_core.miniature.backbone.export import export
    from abc_core.miniature.parts import draw_part

    parser = argparse.ArgumentParser(prog="python -m abc_core.miniature.backbone.pretrain", description=main.__doc__)
    parser.add_argument("--steps", type=int, default=BackboneConfig.steps, help="steps of the whole training")
    parser.add_argument("--images", type=int, default=40_000, help="pictures to learn from; drawn first if they are not there")
    parser.add_argument("--out", type=Path, default=paths.RUNS / "backbone", help="folder of the checkpoints and the log")
    parser.add_argument("--export", action="store_true", help="train no further: write the last checkpoint to assets/backbone")
    args = parser.parse_args(words)
    report = partial(print, flush=True)
    data = draw_part(paths.DATA, "backbone", args.images, report=report)
    test = draw_part(paths.DATA, "backbone_test", TEST_IMAGES, report=report)
    config = BackboneConfig(steps=args.steps, bf16=torch.cpu._is_amx_tile_supported())
    model, processor = build(tokenizer_texts(data), seed=config.seed)
    if not args.export:
        train(model, Lessons(data, processor, config.seed, dense=True, relight=0.3), config, args.out, report=report)
    for kind, row in export(model, processor, args.out, config, data, test).items():
        report(f"{kind:24s} {100 * row['exact_match']:5.1f} %   n = {row['n']}")


if __name__ == "__main__":
    main()

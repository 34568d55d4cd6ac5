"""What the ablations of mining need: negatives mined with another ε or by another checkpoint, and a count of false ones.

Every function finds what an earlier call has made. Runs are named by what determines them, so what notebook 01 mined is not mined again.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from abc_core import adapters
from abc_core.config import MiningConfig
from abc_core.data import pairs
from abc_core.data.mined import write_mined
from abc_core.jobs.stages import MineJob, PretrainJob, run_job
from abc_core.mining import hard_negatives as mining
from abc_core.model import Embedder
from abc_core.runs import paths
from abc_core.runs import run as runlog
from abc_core.runs.files import read_json_lines


def by_epsilon(miner: str, folder: str, numbers: dict, epsilons: Sequence[float | None]) -> dict[str, MineJob]:
    """ "none" or ε -> how its negatives are mined; all share the embeddings of one miner."""
    names = {"none" if e is None else f"{e:g}": e for e in epsilons}
    return {name: MineJob(config=MiningConfig(**numbers | {"epsilon": e}), miner=miner, pairs=folder) for name, e in names.items()}


def by_miner(job: PretrainJob, miner: str, last: str, steps: Sequence[int], numbers: dict, report: Callable = print) -> dict[str, MineJob]:
    """Who mines -> how: the untrained backbone, `job` after each of `steps`, its checkpoint `miner`, and that of all of stage 1, `last`.

    The miners that are missing are trained here.
    """
    found = {"0 steps": untrained(job)}
    for count in steps:
        config = type(job.config)(**asdict(job.config) | {"steps": count, "save_every": count, "validate_every": count})
        run = run_job(replace(job, config=config), report=report)
        found[f"{count} steps"] = run.folder / "model.safetensors"
    found |= {f"{job.config.steps} steps": miner, "stage 1": last}
    made = partial(MineJob, config=MiningConfig(**numbers), pairs=job.pairs)
    return {name: made(miner=str(path)) for name, path in found.items()}


def mined_file(job: MineJob, report: Callable = print) -> Path:
    """The Parquet file of what a job mined, beside its run; mined and written if it is not there."""
    run = run_job(job, report=report)
    path = run.folder / "mined.parquet"
    if not path.exists():
        mined = job.mined()
        write_mined(path, job.rows, Path(job.pairs), mined.indices, mined.scores)
    return path


def untrained(job: PretrainJob) -> Path:
    """A checkpoint of the embedder that a job would begin with: the backbone's mean over tokens, before any contrastive step."""
    embedder = Embedder.from_backbone(paths.ROOT / job.backbone, weights=job.weights)
    run = runlog.open_run("untrained", {"weights": job.weights}, {"backbone": embedder.backbone_fingerprint})
    if not run.finished:
        adapters.add_lora(embedder, "pretrain", **asdict(job.config.lora), seed=job.config.seed)
        adapters.save_embedder(embedder, run.folder / "model.safetensors")
        run.finish(steps=0)
    return run.folder / "model.safetensors"


def false_negatives(job: MineJob) -> dict[str, int]:
    """{false_negatives, mined_pairs} of what a job mined; {} where the truth is not known."""
    path = Path(job.pairs) / "truth.jsonl"
    if not path.exists():
        return {}
    truth, mined = [row for _, row in read_json_lines(path)], job.mined()
    shows, said = ([truth[p.row][what] for p in job.rows] for what in ("shows", "claims"))
    found = mining.audit(mined, mined.indices, mined.scores, shows, said)
    return {"false_negatives": found["mined_false_negatives"], "mined_pairs": found["mined_pairs"]}


def random_negatives(folder: Path, negatives: int, seed: int = 0) -> Path:
    """A Parquet file of the pairs of a folder with so many random negatives of each, so that an arm that is trained on it does the same
    work, step by step, as one with mined negatives."""
    run = runlog.open_run("random", {"negatives": negatives, "seed": seed}, {"pairs": pairs.fingerprint(folder)})
    path = run.folder / "random.parquet"
    if not run.finished:
        rows, _ = pairs.read_pairs(folder)
        drawn = mining.random_negatives(np.arange(len(rows)), rows.caption_ids, negatives, seed)
        write_mined(path, rows, folder, drawn)
        run.finish(pairs=len(rows))
    return path

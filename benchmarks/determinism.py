"""What is the same, byte for byte, in two runs of one thing, and what is not: two folders, or small stages in two settings.

    python benchmarks/determinism.py --name default ONE/runs OTHER/runs        two folders of runs, or of figures, file by file
    python benchmarks/determinism.py                                           small stages under other threads and another hash seed
    PYTHONHASHSEED=1 PYTHONPATH=elsewhere python benchmarks/determinism.py --stages ONE     small stages with a package from elsewhere

Steps: (1) `compare` pairs the files of two folders by their names, checkpoints tensor by tensor; (2) `stages` trains a miner, mines, and
trains both stages for a few steps of the shipped backbone; (3) `vary` does so in processes of other settings. Each call replaces its own
rows of determinism.csv: compared, kind, items (tensors of weights, or files), same, other_times_alone, largest_difference, differs (the
first few names).
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from abc_core.runs import paths

TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = ("compared", "kind", "items", "same", "other_times_alone", "largest_difference", "differs")
SAME, IN_TIMES, OTHER = "same", "other times alone", "other"  # how two files compare
# Files that say when, where or how fast: they differ by what they are. Pointers hold paths; indices (`abc_core.data.index`) are
# named by where files are.
APART = ("provenance.json", "run.lock", "lock", "*.path", "*.ipynb", ".doit*", "account.json", "job.yaml", "*.db")
TIMES = ("seconds", "tokens_per_second", "images_per_second", "started", "commit", "dirty")  # of rows and results
SHOWN = 5  # names of what differs
SETTINGS = {  # name -> (PYTHONHASHSEED, threads); each is compared with the first, and each hash seed is a process of its own
    "first": ("0", 1),
    "again": ("0", 1),
    "2 threads": ("0", 2),
    "another process and PYTHONHASHSEED": ("1", 1),
}


# --- 1. two folders -----------------------------------------------------------------------------------------------------------------


def compare(name: str, one: Path, other: Path) -> list[dict]:
    """A row for each kind of file in two folders.

    A folder of a run whose name ends in another hash, since its inputs differ, is compared with the only one of its kind.
    """
    mine, theirs = _files(one), _files(other)
    kinds: dict[str, list] = {}
    for key in sorted(mine.keys() | theirs.keys()):
        kind = Path(key).suffix or "other"
        if key not in mine or key not in theirs:
            kinds.setdefault(kind, []).append((f"{key} (in {'the first' if key in mine else 'the second'} alone)", OTHER, None))
            continue
        kinds.setdefault(kind, []).extend(_parts(key, mine[key], theirs[key]))
    return [_row(name, kind, parts) for kind, parts in kinds.items()]


def _row(name: str, kind: str, parts: list[tuple]) -> dict:
    wrong = [part for part, state, _ in parts if state == OTHER]
    states = [state for _, state, _ in parts]
    largest = max((d for _, _, d in parts if d is not None), default=0.0)
    shown = "; ".join(wrong[:SHOWN]) + (f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
    values = name, kind.lstrip("."), len(parts), states.count(SAME), states.count(IN_TIMES), f"{largest:.3g}", shown
    return dict(zip(COLUMNS, values, strict=True))


def _files(folder: Path) -> dict[str, Path]:
    """Name -> file of all that can be compared; without the hash of a run where its kind is there once."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    found, kinds = {}, [path.name.rpartition("-")[0] for path in folder.iterdir() if path.is_dir()]
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not relative.parts[0].startswith("index-") and not any(fnmatch(path.name, pattern) for pattern in APART):
            kind = relative.parts[0].rpartition("-")[0]
            once = len(relative.parts) > 1 and kinds.count(kind) == 1 and kind
            found["/".join((kind, *relative.parts[1:]) if once else relative.parts)] = path
    return found


def _parts(key: str, one: Path, other: Path) -> Iterator[tuple[str, str, float | None]]:
    """(name, how it compares, largest difference) of the parts of a file: the tensors of weights, or the whole."""
    same = one.read_bytes() == other.read_bytes()
    if one.suffix == ".safetensors":
        a, b = load_file(one), load_file(other)
        for tensor in sorted(a.keys() | b.keys()):
            if tensor in a and tensor in b and a[tensor].shape == b[tensor].shape:
                equal = a[tensor].tobytes() == b[tensor].tobytes()
                yield f"{key} {tensor}", SAME if equal else OTHER, _distance(a[tensor], b[tensor])
            else:
                yield f"{key} {tensor}", OTHER, None
        yield f"{key} as bytes", SAME if same else OTHER, None
    elif same:
        yield key, SAME, None
    elif one.suffix in (".npy", ".png"):
        yield key, OTHER, _distance(_numbers(one), _numbers(other))
    elif one.suffix in (".csv", ".json", ".jsonl"):
        a, b = _cells(one), _cells(other)
        distances = [abs(a[k] - b[k]) for k in a.keys() & b.keys() if isinstance(a[k], float) and isinstance(b[k], float)]
        yield key, IN_TIMES if a == b else OTHER, max(distances, default=None)
    else:
        yield key, OTHER, None


def _distance(a: np.ndarray, b: np.ndarray) -> float | None:
    """The largest absolute difference of numbers, of grey levels out of 255; None where there are none."""
    if a.shape != b.shape or a.dtype != b.dtype or a.dtype.kind not in "fiu" or not a.size:
        return None
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


def _numbers(path: Path) -> np.ndarray:
    return np.load(path) if path.suffix == ".npy" else np.asarray(Image.open(path).convert("RGBA"))


def _cells(path: Path) -> dict[tuple, float | str]:
    """(row, column) -> value of a table or of JSON, numbers as such, without times."""
    if path.suffix == ".csv":
        rows = list(csv.DictReader(path.open()))
    else:
        text = path.read_text()
        rows = [json.loads(line) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]
    cells = {}
    for n, row in enumerate(rows):
        for column, value in (row if isinstance(row, dict) else {"": row}).items():
            if column not in TIMES:
                cells[n, column] = _number(_timeless(value))
    return cells


def _timeless(value):
    """A value of JSON without the times inside it."""
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in TIMES}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def _number(value) -> float | str:
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


# --- 2. small stages ----------------------------------------------------------------------------------------------------------------


def stages(data: Path) -> None:
    """A miner, mining, stage 1 and stage 2 in paths.RUNS, a few steps each, from the shipped backbone."""
    from abc_core.config import InstructConfig, LoraConfig, MiningConfig, PretrainConfig
    from abc_core.data.karpathy import read_pairs
    from abc_core.data.mined import write_mined
    from abc_core.jobs.stages import InstructJob, MineJob, PretrainJob, run_job
    from abc_core.miniature.parts import draw_part

    quiet = lambda line: None  # noqa: E731
    pairs, regions = draw_part(data, "cc", 32, report=quiet), draw_part(data, "vg", 8, report=quiet)
    numbers = dict(steps=3, queries=8, lora=LoraConfig(8, 16), learning_rate=1e-3, bf16=False, max_visual_tokens=36, validate_every=2)
    miner = PretrainJob(config=PretrainConfig(negatives=0, **numbers), backbone="assets/backbone", pairs=str(pairs), name="miner")
    checkpoint = run_job(miner, report=quiet).folder / "model.safetensors"
    mine = MineJob(config=MiningConfig(epsilon=1.0, pool=8, negatives=3), miner=str(checkpoint), pairs=str(pairs))
    folder = run_job(mine, report=quiet).folder
    read, found = read_pairs(pairs)[0], mine.mined()
    mined = write_mined(folder / "mined.parquet", read.numbered(), pairs, found.indices, found.scores)
    stage1 = PretrainJob(
        config=PretrainConfig(negatives=3, **numbers), backbone="assets/backbone", pairs=str(pairs), mined=str(mined),
        validation={"val": str(pairs)},
    )  # fmt: skip
    trained = run_job(stage1, report=quiet).folder / "model.safetensors"
    config = InstructConfig(steps=3, images=4, instructions_per_image=4, lora=LoraConfig(4, 8), learning_rate=1e-3, bf16=False)
    run_job(InstructJob(config=config, stage1=str(trained), regions=str(regions)), report=quiet)


# --- 3. in other settings -----------------------------------------------------------------------------------------------------------


def vary() -> list[dict]:
    """Rows of the small stages in every setting against the first."""
    with tempfile.TemporaryDirectory() as folder:
        for seed in dict.fromkeys(seed for seed, _ in SETTINGS.values()):
            subprocess.run([sys.executable, __file__, "--stages", folder], env=os.environ | {"PYTHONHASHSEED": seed}, check=True)
        names = [name for name in SETTINGS if name != "first"]
        return [row for name in names for row in compare(f"small stages, {name}", Path(folder, "first"), Path(folder, name))]


def in_this_process(folder: Path) -> None:
    """The small stages in those settings that have this process's hash seed."""
    import torch

    for name, (seed, threads) in SETTINGS.items():
        if seed == os.environ["PYTHONHASHSEED"]:
            print(f"small stages, {name}", flush=True)
            torch.set_num_threads(threads)
            paths.RUNS = folder / name
            stages(folder / "data")


def write(rows: list[dict]) -> None:
    """Put rows into the table, in the place of former ones of the same comparisons."""
    former = list(csv.DictReader(TABLE.open())) if TABLE.exists() else []
    kept = [row for row in former if row["compared"] not in {new["compared"] for new in rows}]
    with TABLE.open("w", newline="") as file:
        out = csv.DictWriter(file, COLUMNS)
        out.writeheader()
        out.writerows(kept + rows)


def main() -> int:
    """Compare two folders, or vary the settings; the exit code is 1 if two folders differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="two folders to compare; none: vary the settings of small stages")
    parser.add_argument("--name", default="two folders", help="what the two are, in the table")
    parser.add_argument("--stages", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stages:
        in_this_process(args.stages)
        return 0
    if len(args.folders) not in (0, 2):
        parser.error("give two folders, or none")
    rows = compare(args.name, *args.folders) if args.folders else vary()
    for row in rows:
        print(" | ".join(map(str, row.values())))
    write(rows)
    return int(bool(args.folders) and any(row["same"] + row["other_times_alone"] != row["items"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())

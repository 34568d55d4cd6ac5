"""Is everything there for a profile? Folders, devices, memory and disk, and how many hours it will take, before anything starts.

Steps: (1) `wanted` lists the files that a notebook's parameters name; (2) `work` counts its operations (`jobs.cost`) and `written` its
bytes; (3) `check` prints all of it and returns what is missing. `make check PROFILE=a100`; the exit code is 1 if anything is.
"""

import shutil
import sys
import time
from functools import cache
from pathlib import Path

import torch

from abc_core.config import InstructConfig
from abc_core.data.pairs import CAPTIONS_TSV, has_pairs
from abc_core.instructions.regions import instructed_files
from abc_core.jobs import cost, memory
from abc_core.jobs.memory import GIB, LIMIT, plan, table
from abc_core.miniature.parts import PARTS
from abc_core.reproduce import profiles
from abc_core.reproduce.profiles import config_of
from abc_core.runs import paths

INSTRUCTIONS = "instructions.jsonl"
GENOME = ("region_descriptions.json", "image_data.json", INSTRUCTIONS, "VG_100K")
LAYOUTS = {"backbone": ("config.json",), "validation_data": (CAPTIONS_TSV,), "data": GENOME, "training_data": GENOME}  # parameter -> files
OBTAIN = {  # last part of a folder -> where its content comes from
    "Qwen2-VL-7B-Instruct": "the weights of Qwen/Qwen2-VL-7B-Instruct on the Hugging Face hub, 16.6 GB",
    "conceptual_captions": "ai.google.com/research/ConceptualCaptions, pictures by img2dataset; or pixparse/cc3m-wds on the hub",
    "conceptual_captions_val": "Conceptual Captions' validation file, in the same layout",
    "coco_val": "COCO 2017 val pictures with one caption each, in the layout of Conceptual Captions",
    "visual_genome": "Visual Genome 1.2: region_descriptions.json, image_data.json, VG_100K*, and instructions.jsonl, or a generator",
    "coco": "dataset_coco.json of the Karpathy splits, cs.stanford.edu/people/karpathy/deepimagesent, beside val2014/",
    "flickr30k": "dataset_flickr30k.json of the Karpathy splits, beside flickr30k-images/",
    "mmeb": "TIGER-Lab/MMEB-eval on the Hugging Face hub, images.zip as it is",
}
PAIRS = 2_905_954  # of cc3m-wds, until the file can be counted
CAPTION, INSTRUCTION = 20, 12  # tokens of a text, without its prompt; at the high side
DRAWN_TOKENS, DRAWN_BYTES = 36, 20_000  # of a drawn picture, 168 × 168 pixels
DRAWN_COUNTS = (("data", "pairs"), ("data", "pictures"), ("training_data", "training_pictures"))  # parameters: what, and how many


def lacking(stem: str, values: dict) -> dict[Path, list[str]]:
    """Folder -> files of its layout that are not there, of every folder that a notebook's parameters name; parts of the world are drawn."""
    layouts = LAYOUTS | ({"data": (CAPTIONS_TSV,)} if stem == "01_mining" else {})
    named = [(paths.ROOT / s, layouts[name]) for name in layouts if name in values for s in _sources(values[name]) if s not in PARTS]
    splits = [paths.ROOT / file for file in (values.get("karpathy"), *values.get("retrieval", ())) if file and file not in PARTS]
    named += [(file.parent, (file.name,)) for file in splits]
    if values.get("mmeb", "mmeb") not in PARTS:
        named.append((paths.ROOT / values["mmeb"], (*values.get("classification", ()), *values.get("vqa", ()))))
    made = values.get("generator", "written") != "written" or (stem == "06_ctrlbench" and values["data"] == values["training_data"])
    unneeded = {INSTRUCTIONS} if made else set()  # a model writes them, or notebook 03 has read them
    return {at: [file for file in files if file not in unneeded and not _there(at, file)] for at, files in named}


def _there(folder: Path, file: str) -> bool:
    """Is a file there, or does another layout stand in: tar shards for the table, ABC-VG-Instruct for Visual Genome?"""
    shards, drawn = file == CAPTIONS_TSV and has_pairs(folder), file in GENOME and instructed_files(folder)
    return bool((folder / file).exists() or shards or drawn)


def _sources(value) -> list[str]:
    return list(value.values()) if isinstance(value, dict) else [value]


def pairs_of(stem: str, values: dict) -> int:
    """How many pairs a notebook embeds."""
    if stem != "01_mining" or values["data"] in PARTS:
        return values.get("pairs", 0)
    file = paths.ROOT / values["data"] / CAPTIONS_TSV
    return sum(1 for _ in file.open("rb")) if file.exists() else PAIRS


def work(stem: str, values: dict, model) -> float:
    """Floating-point operations of a notebook's training and of embedding its pairs."""
    config = config_of(stem, values)
    if config is None:
        return 0
    visual = DRAWN_TOKENS if values.get("data", "cc") in PARTS and not for_gpus(model) else config.max_visual_tokens
    steps = config.steps * sum(cost.flops_of_step(config, model, visual, CAPTION, INSTRUCTION).values())
    pairs = pairs_of(stem, values)
    return steps + cost.embedding_flops(model, visual, CAPTION, pairs, pairs)


def written(stem: str, values: dict, model) -> dict[Path, int]:
    """Folder -> bytes that a notebook writes there, about."""
    pictures = [values.get(count, 0) for source, count in DRAWN_COUNTS if values.get(source) in PARTS]
    config, pairs = config_of(stem, values), pairs_of(stem, values)
    runs = pairs * (2 * 4 * model.get_text_config().hidden_size + 100)  # two float32 vectors and a row of mined.parquet
    if config is not None:  # float32 with AdamW's two states: the last checkpoint and the next one; then the final one
        stage = "instruct" if isinstance(config, InstructConfig) else "pretrain"
        runs += 7 * 4 * cost.trained_numbers(model, config.lora.rank, stage)
    return {paths.RUNS: runs, paths.DATA: sum(pictures) * DRAWN_BYTES}


def for_gpus(model) -> bool:
    """Is it too large a model for a CPU?"""
    return model.get_text_config().hidden_size >= 1024


def check(profile: str, report=print) -> list[str]:
    """Print what a profile reads, writes and needs, notebook by notebook; returns what is missing, one line each."""
    missing, total, writes, values, any_big, gpus = {}, 0.0, {paths.RUNS: 0, paths.DATA: 0}, {}, False, 0
    for notebook in profiles.find():
        kept = {name: values[name] for name in ("backbone",) if name in values}  # later notebooks find it in the checkpoint
        values = kept | profiles.values(notebook, profile)
        report(notebook.stem)
        for folder, files in lacking(notebook.stem, values).items():
            report(f"  {folder}: {'MISSING ' + ', '.join(files) if files else 'there'}")
            if files:
                missing.setdefault(folder, f"{folder}: no {', '.join(files)}. {OBTAIN.get(folder.name, '')}")
        model = cost.backbone_config(paths.ROOT / values["backbone"])
        for folder, size in written(notebook.stem, values, model).items():
            writes[folder] += size
        big, processes, flops = for_gpus(model), values.get("processes", 1), work(notebook.stem, values, model)
        gpus, any_big = max(gpus, processes * big), any_big or big
        if flops:
            took = cost.hours(flops, processes, cost.A100) if big else cost.hours(flops, 1, cpu_rate())
            total += took
            where = f"{processes} A100" if big else "this CPU"
            report(f"  {flops:.2e} operations: {took:.2f} hours on {where} at {cost.USED:.0%} of its best")
    if torch.cuda.device_count() < gpus:
        missing["GPUs"] = f"{gpus} GPUs, one for each process; {torch.cuda.device_count()} here"
    report(f"in all {total:.1f} hours, without reading pictures and drawing figures")
    for stage in ("02_pretraining", "03_instruction_tuning") if any_big else ():
        peak = next(row["gib"] for row in plan_profile(profile, stage) if row["part"] == "peak")
        said = f"memory: {peak:.1f} GiB a device at the peak of {stage}; {LIMIT:g} can be used"
        report(said)
        if peak > LIMIT:
            missing[stage] = said
    for folder, size in writes.items():
        free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
        report(f"disk: about {size / GIB:.1f} GiB will be written to {folder}; {free / GIB:.1f} GiB are free")
        if free < size:
            missing[folder] = f"{folder}: {size / GIB:.1f} GiB will be written, {free / GIB:.1f} GiB are free"
    return list(missing.values())


def plan_profile(profile: str, stage: str = "02_pretraining") -> list[dict]:
    """The `table` of a profile's stage, by the numbers in its files.

    Args:
        stage: the notebook, "02_pretraining" or "03_instruction_tuning".
    """
    first, own = _numbers(profile, stage)
    backbone = cost.backbone_config(paths.ROOT / first["backbone"])
    return table(profile, plan(profiles.config_of(stage, own), backbone, first["weights"], own["processes"]))


def logits(profile: str) -> dict[str, int]:
    """`memory.logits` of a profile's stage 1."""
    given, _ = _numbers(profile, "02_pretraining")
    config = profiles.config_of("02_pretraining", given)
    return memory.logits(config, cost.backbone_config(paths.ROOT / given["backbone"]), given["processes"])


def _numbers(profile: str, stage: str) -> list[dict]:
    """Parameters of notebook 02, and of a stage's own notebook, under a profile."""
    return [profiles.values(paths.ROOT / "notebooks" / f"{name}.ipynb", profile) for name in ("02_pretraining", stage)]


@cache
def cpu_rate() -> float:
    """Float32 operations a second of this machine's matrix product, measured for a moment."""
    a, start = torch.rand(1024, 1024), time.perf_counter()
    for _ in range(8):
        a @ a
    return 8 * 2 * 1024**3 / (time.perf_counter() - start)


def main() -> None:
    """`python -m abc_core.reproduce.check PROFILE`."""
    try:
        missing = check(sys.argv[1] if len(sys.argv) > 1 else "default")
    except ValueError as error:  # an unknown profile, a parameter that does not fit
        sys.exit(str(error))
    if missing:
        sys.exit("\nMissing:\n" + "\n".join(f"- {line}" for line in missing))
    print("nothing is missing")


if __name__ == "__main__":
    main()

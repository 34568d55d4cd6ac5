"""check: what a profile needs is found to be there, or is named with how to get it."""

import shutil
from collections import namedtuple

import pytest

from abc_core.jobs import cost
from abc_core.reproduce import check, profiles
from abc_core.runs import paths

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("profile", ["default", "smoke"])
def test_nothing_is_missing_of_the_profiles_that_need_no_download(profile, runs, monkeypatch):
    monkeypatch.setattr(check, "cpu_rate", lambda: 1e11)
    said = []
    assert check.check(profile, said.append) == []
    assert "02_pretraining" in said and any("hours on this CPU" in line for line in said)


def paper(monkeypatch, gpus: int, gib: float, free: float) -> list[str]:
    """What is missing for the paper's profile on a machine with so many GPUs, needing so much of each, with so many GiB of disk."""
    monkeypatch.setattr(check.torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(check, "plan_profile", lambda profile, stage: [{"profile": profile, "part": "peak", "gib": gib}])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, free * check.GIB))
    return check.check("a100", lambda line: None)


def test_everything_that_the_paper_needs_and_is_missing_is_named(runs, monkeypatch):
    missing = paper(monkeypatch, gpus=0, gib=90.0, free=50)
    wanted = {
        "models/Qwen2-VL-7B-Instruct: no config.json. the weights of Qwen/Qwen2-VL-7B-Instruct",
        "data/conceptual_captions: no Train_GCC-training.tsv. ai.google.com", "data/coco_val: no Train_GCC-training.tsv. COCO 2017",
        "data/conceptual_captions_val: no", "data/visual_genome: no region_descriptions.json, image_data.json, instructions.jsonl, VG_100K",
        "data/coco: no dataset_coco.json. dataset_coco.json of the Karpathy splits",
        "data/flickr30k: no dataset_flickr30k.json", "data/mmeb: no ImageNet-1K, HatefulMemes", "8 GPUs, one for each process; 0 here",
        "memory: 90.0 GiB a device at the peak of 02_pretraining", "memory: 90.0 GiB a device at the peak of 03_instruction_tuning",
        "GiB will be written, 50.0 GiB are free",
    }  # fmt: skip
    assert len(missing) == len(wanted) and all(any(part in line for line in missing) for part in wanted), missing


def test_instructions_are_not_missing_where_a_model_writes_them():
    values = {"data": "data/visual_genome", "training_data": "data/visual_genome"}
    for stem, more, missed in (
        ("03_instruction_tuning", {}, True),
        ("03_instruction_tuning", {"generator": "openai"}, False),
        ("06_ctrlbench", {}, False),
    ):
        (files,) = check.lacking(stem, values | more).values()
        assert ("instructions.jsonl" in files) == missed and "VG_100K" in files


def test_nothing_is_missing_where_all_of_it_is_there(tmp_path, runs, monkeypatch):
    for name in ("notebooks", "params", "assets"):
        (tmp_path / name).symlink_to(paths.ROOT / name)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    for folder in ("conceptual_captions", "conceptual_captions_val", "coco_val"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / check.CAPTIONS_TSV).write_text("an owl\t0.jpg\n" * 7)
    sets = profiles.values(paths.ROOT / "notebooks" / "07_zero_shot.ipynb", "a100")
    mmeb = [f"mmeb/{name}" for name in (*sets["classification"], *sets["vqa"])]
    splits = ("coco/dataset_coco.json", "flickr30k/dataset_flickr30k.json")
    for name in (*splits, *mmeb, *(f"visual_genome/{name}" for name in check.GENOME)):
        (tmp_path / "data" / name).mkdir(parents=True)
    cost.QWEN2_VL_7B.save_pretrained(tmp_path / "models" / "Qwen2-VL-7B-Instruct")
    assert paper(monkeypatch, gpus=8, gib=70.0, free=500) == []
    assert [line.split(":")[0] for line in paper(monkeypatch, gpus=1, gib=70.0, free=500)] == ["8 GPUs, one for each process; 1 here"]


def test_the_exit_code_says_whether_anything_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(check.sys, "argv", ["check", "smoke"])
    for missing, code in (([], None), (["the pictures: ask for them"], "\nMissing:\n- the pictures: ask for them")):
        monkeypatch.setattr(check, "check", lambda profile, missing=missing: missing)
        if missing:
            with pytest.raises(SystemExit) as stop:
                check.main()
            assert stop.value.code == code
        else:
            check.main()
            assert "nothing is missing" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(check.sys, "argv", ["check", "nope"])
    with pytest.raises(SystemExit, match="unknown profile 'nope'"):
        check.main()

"""The released layout: recorded embeddings come out, nothing is lost silently, ours go there and back."""

import json
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from abc_core import adapters, verify
from abc_core.model import Embedder
from abc_core.runs import paths
from abc_core.systems import released
from abc_core.systems.released import load_released

GOLDEN = paths.ROOT / "tests" / "golden" / "released_adapters"


@pytest.fixture
def folder(tmp_path):
    """A copy of the golden folder that a test may damage."""
    return shutil.copytree(GOLDEN, tmp_path / "golden")


def change(folder, stage: str, edit) -> None:
    """Rewrite an adapter's tensors as `edit` changes them in place."""
    path = folder / stage / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def test_all_six_recorded_embeddings_come_out(capsys):
    assert verify.main([str(GOLDEN)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["cand_mrope", "cand_arange", "inst_mrope", "inst_arange", "text", "text_padded"]
    assert all(float(line.split()[1]) <= 1e-5 and line.endswith("ok") for line in lines)


def test_a_difference_above_the_tolerance_fails_and_is_shown(folder, capsys):
    cases = load_file(folder / "cases.safetensors")
    cases["expected.inst_mrope"][0, 3] += 1e-4
    cases["expected.text"][0, 0] = torch.nan
    save_file(cases, folder / "cases.safetensors")
    assert verify.main([str(folder)]) == 1
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["inst_mrope"].endswith("1.0e-04  DIFFERS") and lines["text"].endswith("DIFFERS") and lines["inst_arange"].endswith("ok")


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_one_lost_or_empty_lora_tensor_fails_loudly(folder, stage, capsys):
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    change(folder, stage, lambda t: t[name].zero_())
    with pytest.raises(ValueError, match=rf"{stage}/adapter_model.safetensors: {name} is all zero"):
        load_released(folder / "base", folder / "pretrain", folder / "instruct")
    assert verify.main([str(folder)]) == 1 and "all zero" in capsys.readouterr().err
    change(folder, stage, lambda t: t.pop(name))
    with pytest.raises(ValueError, match=r"adapter_model.safetensors does not fit this model: 1 tensors missing .*up_proj.lora_B"):
        load_released(folder / "base", folder / "pretrain", folder / "instruct")


def test_a_tensor_of_no_abc_adapter_and_other_kinds_of_lora_are_refused(folder):
    change(folder, "instruct", lambda t: t.update({"base_model.model.extra": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"'base_model.model.extra' is no tensor of an ABC adapter"):
        load_released(folder / "base", folder / "pretrain", folder / "instruct")
    config = folder / "pretrain" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_rslora": True}))
    with pytest.raises(ValueError, match="use_rslora is True; ABC's adapters are plain LoRA"):
        load_released(folder / "base", folder / "pretrain", folder / "instruct")
    (folder / "pretrain" / "adapter_model.safetensors").write_bytes(b"no weights")
    config.write_text((GOLDEN / "pretrain" / "adapter_config.json").read_text())
    with pytest.raises(ValueError, match=r"pretrain/adapter_model.safetensors is no readable safetensors file"):
        load_released(folder / "base", folder / "pretrain", folder / "instruct")


def test_missing_parts_are_named(folder, capsys):
    (folder / "cases.safetensors").unlink()
    assert verify.main([str(folder)]) == 1 and "cases.safetensors" in capsys.readouterr().err
    shutil.rmtree(folder / "instruct")
    with pytest.raises(FileNotFoundError, match="instruct is neither a folder nor in the local cache"):
        load_released(folder / "base", folder / "pretrain", folder / "instruct")


def test_names_on_the_hub_are_not_fetched_unless_asked():
    with pytest.raises(FileNotFoundError, match=r"TIGER-Lab/ABC-Qwen2VL-Pretrain is neither .*download=True fetches it once"):
        load_released()


def test_without_a_processor_pictures_and_texts_are_refused():
    embedder = load_released(GOLDEN / "base", GOLDEN / "pretrain", None)
    assert embedder.lora.keys() == {"pretrain"} and abs(embedder.temperature().item()) > 0
    with pytest.raises(ValueError, match="base came without a processor"):
        embedder.embed(texts=["an owl"])


def test_ours_go_into_the_released_layout_and_come_back_the_same(tmp_path):
    backbone = tiny.save("qwen2_vl", tmp_path / "backbone")
    ours = Embedder.from_backbone(backbone)
    for stage, rank in (("pretrain", 4), ("instruct", 2)):
        adapters.add_lora(ours, stage, rank, 2 * rank)
        tiny.randomise_trained(ours)
        if stage == "pretrain":
            adapters.merge(ours)
    released.export_released(ours, tmp_path / "out")
    limits = {"min_visual_tokens": 4, "max_visual_tokens": 512}
    back = load_released(backbone, tmp_path / "out" / "pretrain", tmp_path / "out" / "instruct", positions="model", **limits)
    pictures, asked = tiny.pictures(), [["what is on the left?"]] * len(tiny.pictures())
    assert abs(back.embed(images=pictures, instructions=asked) - ours.embed(images=pictures, instructions=asked)).max() < 1e-6
    assert abs(back.embed(texts=tiny.TEXTS) - ours.embed(texts=tiny.TEXTS)).max() < 1e-6
    assert back.temperature().item() == pytest.approx(ours.temperature().item())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_the_merged_model_gives_what_the_adapter_gives(tmp_path, dtype, tolerance):
    ours = tiny.with_lora("qwen2_vl", "instruct")
    pictures, asked = tiny.pictures(), [["what is on the left?"]] * len(tiny.pictures())
    expected = ours.embed(images=pictures, instructions=asked)
    released.export_merged(ours, tmp_path)
    assert adapters.has_adapter(ours.model, "instruct")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=dtype)
    assert model.config.get_text_config().is_causal is not False
    merged = Embedder(model, ours.processor)
    merged.head.load_state_dict(load_file(tmp_path / "head.safetensors"))
    merged.head.to(dtype)
    vectors = merged.embed(images=pictures, instructions=asked, adapter=False)
    tiny.close(vectors, expected, tolerance)
    assert abs(vectors - ours.embed(images=pictures, adapter=False)).max() > 0.1  # stage 2 is in it


def test_the_released_layout_is_for_qwen2_vl_alone(tmp_path):
    with pytest.raises(ValueError, match="that of Qwen2-VL; this embedder is of the family 'qwen3_vl'"):
        released.export_released(tiny.embedder("qwen3_vl"), tmp_path)
    with pytest.raises(ValueError, match="carries no stage"):
        released.export_released(tiny.embedder("qwen2_vl"), tmp_path)

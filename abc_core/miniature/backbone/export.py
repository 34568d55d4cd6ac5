"""The trained backbone as a Hugging Face folder: bfloat16 weights, processor, what it scores, and a model card that says where it is from.

Steps: (1) take the weights of the last checkpoint; (2) write model and processor; (3) load them back and test what was written;
(4) add metrics.json, the model card and a thinned log. The folder is whole or absent.
"""

import copy
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch

from abc_core.backbone import load_backbone
from abc_core.data.reading import file_names
from abc_core.miniature.backbone.answers import exact_match
from abc_core.miniature.backbone.lessons import Lessons
from abc_core.miniature.backbone.pretrain import BackboneConfig, restore
from abc_core.runs import paths
from abc_core.runs import run as runlog
from abc_core.runs.files import whole_file

LOGGED = 400  # rows of the thinned log


def export(model, processor, out: Path, config: BackboneConfig, data: Path, test: Path, per_kind: int = 500) -> dict:
    """Write the last checkpoint of `out` to assets/backbone and its log to logs/backbone.jsonl.

    Args:
        data: folder of the conversations that it was trained on.
        test: folder of conversations about held-out meanings, on which the written weights are tested.
    Returns:
        The content of metrics.json: {"content": {"exact_match": …, "n": …}, …}.
    """
    step = restore(model, out / "last.safetensors", data.name)
    folder = paths.ASSETS / "backbone"
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(partial)
    processor.save_pretrained(partial)
    written, its_processor = load_backbone(partial)
    metrics = exact_match(written, Lessons(test, its_processor), per_kind)
    (partial / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    facts = {"step": step, "steps": config.steps, "data": data.name, "pictures": sum(1 for _ in file_names(data / "images"))}
    facts["millions"] = f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}"
    origin = runlog.provenance({"config": asdict(config), "inputs": {"data": data.name}})
    (partial / "README.md").write_text(model_card(metrics, origin, facts))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    with whole_file(paths.ROOT / "logs" / "backbone.jsonl") as log:
        log.write_text("".join(json.dumps(row) + "\n" for row in thinned(runlog.Run(out).rows())))
    return metrics


def thinned(rows: list, most: int = LOGGED) -> list:
    """Every k-th row, so that about `most` are left, and the last."""
    every = max(1, len(rows) // most)
    return [row for k, row in enumerate(rows) if k % every == 0 or k == len(rows) - 1]


def model_card(metrics: dict, origin: dict, facts: dict) -> str:
    """README.md of the exported folder; `origin` is a provenance, `facts` fill the places of `CARD`."""
    table = "\n".join(f"| {kind} | {100 * row['exact_match']:.1f} | {row['n']} |" for kind, row in metrics.items())
    commit = f"{origin['commit'] or 'unknown'}{' (with changes)' if origin['dirty'] else ''}"
    versions = ", ".join(f"{name} {origin[name]}" for name in ("python", "torch", "transformers"))
    return CARD.format(table=table, seed=origin["seed"], date=origin["started"][:10], commit=commit, versions=versions, **facts)


CARD = """\
---
license: cc-by-sa-4.0
library_name: transformers
pipeline_tag: image-text-to-text
language: en
---
# A tiny Qwen2-VL that answers questions about drawn scenes

A generative, instruction-tuned vision-language model of {millions} million parameters: the architecture, special tokens and chat
template of Qwen2-VL, trained from scratch. In this miniature reproduction of ABC it stands where the paper has Qwen2-VL-7B-Instruct. It
knows the embedded world and nothing else: coloured cards with OpenMoji glyphs under a sky. It is not a model of photographs.

## Use

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("assets/backbone")
processor = AutoProcessor.from_pretrained("assets/backbone")
question = [{{"type": "image"}}, {{"type": "text", "text": "What is in the top left?"}}]
prompt = processor.apply_chat_template([{{"role": "user", "content": question}}], add_generation_prompt=True)
inputs = processor(text=[prompt], images=[Image.open("scene.jpg")], return_tensors="pt")
print(processor.decode(model.generate(**inputs, max_new_tokens=24, do_sample=False)[0], skip_special_tokens=True))
```

## Training data

{pictures:,} pictures of the embedded world with conversations about them ({data}), drawn by `abc_core.miniature`. Of every family of
look-alike glyphs, four of the ten colours are held out: no training picture shows a glyph on a card of such a colour, and the scores below
are on scenes that show nothing else.

The vision tower first learns alone which words each region shows, its place among them (location-aware captions, from the boxes of
`conversations.jsonl`); then the whole model learns to answer, on few cards before many (`CURRICULUM` in `pretrain.py` of
`abc_core/miniature/backbone`), with a loss on three layers' attention that says which regions a question is about (`pointing.py`), and with
losses by which the last layer says the words that visual tokens and questions stand for. The stages were found while these weights went
through them:
pictures were relit from step 2,050 on, answers were pointed at from step 2,250 on, names from step 2,900 on, the second look of
questions about neighbours from step 4,200 on; the last layer says words from step 5,000 on, when two articles of the captions were
mended as well. A training from the start does all of it in every stage that asks.

## Exact match on held-out scenes

Share of questions, in per cent, whose whole answer greedy decoding gives. `described`: the answer is a sentence with object, colour and
shape. `reworded`: the question is in a wording that no training used.

| questions | exact match | n |
| --- | ---: | ---: |
{table}

The scores are of these bfloat16 weights, computed in float32. They must not be compared across worlds: they depend on the number of glyphs.

## Provenance

{step} of {steps} steps, seed {seed}, {date}, commit {commit}; {versions}.
`python -m abc_core.miniature.backbone.pretrain` trains it again; the log is `logs/backbone.jsonl`.

## Licence

Trained on pictures by OpenMoji (https://openmoji.org), CC BY-SA 4.0; the weights are under CC BY-SA 4.0 too
(https://creativecommons.org/licenses/by-sa/4.0/). Object names: Unicode CLDR, through the emoji package.
"""

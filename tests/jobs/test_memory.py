"""The memory plan against what a child process really takes on the CPU, and what it says of the paper's run."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest

from abc_core.config import InstructConfig, PretrainConfig
from abc_core.jobs import memory
from abc_core.jobs.cost import backbone_config
from abc_core.jobs.memory import GIB, Shapes, check, plan
from abc_core.reproduce.check import plan_profile
from abc_core.runs import paths

# A real step with the shipped model; prints its peak resident memory minus that before the step, and the lengths of its rows.
CHILD = """
import json, sys
import numpy as np, torch
from PIL import Image
from abc_core import adapters, train
from abc_core.batches import Batch
from abc_core.config import PretrainConfig
from abc_core.model import Embedder

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

options = json.loads(sys.argv[1])
config = PretrainConfig(bf16=False, **options)
embedder = Embedder.from_backbone("assets/backbone")
adapters.add_lora(embedder, "pretrain", config.lora.rank, config.lora.alpha)
train.prepare(embedder, "pretrain", config)
optimizer = train.make_optimizer(embedder, config)
text = "an owl on a red disc and a cup on a blue card"

def batch(queries):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(256, size=(224, 224, 3), dtype=np.uint8)) for _ in range(queries)]
    texts = [text] * (queries * (1 + config.negatives))
    return Batch(images, [[None]] * queries, texts, torch.arange(len(texts)))

train.one_step(embedder, optimizer, batch(2), train.pretrain_step, config, 0)  # AdamW's moments are there from now on
optimizer.zero_grad()
whole = batch(config.queries)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = status("VmRSS")
train.one_step(embedder, optimizer, whole, train.pretrain_step, config, 1)
around = len(embedder.prompts.image(embedder.processor.image_token * 64, None)) - 64
print(json.dumps({"bytes": status("VmHWM") - before, "around": around, "text": len(embedder.prompts.text(text))}))
"""


def real_peak(**options) -> dict:
    """What the child printed."""
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}  # freed memory goes back at once
    words = [sys.executable, "-c", CHILD, json.dumps(options)]
    done = subprocess.run(words, cwd=paths.ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def planned(shapes: Shapes, **options) -> dict:
    """The plan of the same step."""
    return plan(PretrainConfig(bf16=False, **options), backbone_config(paths.ROOT / "assets/backbone"), shapes=shapes, device="cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("options, least", [({"queries": 64}, 2.0), ({"queries": 96, "activation_checkpointing": True}, 0.5)])
def test_the_plan_is_within_15_per_cent_of_a_real_steps_peak(options, least):
    options |= {"negatives": 3}
    real = real_peak(**options)
    parts = planned(Shapes(64, real["around"], real["text"]), **options)
    step = parts["peak"] - parts["weights"] - parts["optimizer"]  # both are there before the step
    print(f"{options}: planned {step / GIB:.2f} GiB, real {real['bytes'] / GIB:.2f} GiB")
    assert parts["activations"] >= least * GIB
    assert abs(step / real["bytes"] - 1) < 0.15


@pytest.fixture(scope="module")
def asked():
    """Plans of the shipped model to be made, by what they are for."""
    shapes, base = Shapes(16, 8, 8), dict(queries=8, negatives=3)
    options_of = {
        "plain": {},
        "checkpointed": {"activation_checkpointing": True},
        "chunked": {"chunk": 2},
        "two processes": {"processes": 2},
        "bfloat16": {"weights": "bfloat16"},
    }
    backbone = backbone_config(paths.ROOT / "assets/backbone")
    plans = {}
    for name, options in options_of.items():
        of_plan = {k: options.pop(k) for k in ("processes", "weights") if k in options}
        plans[name] = partial(plan, PretrainConfig(**base, **options), backbone, shapes=shapes, **of_plan)
    return plans | {"stage 2": partial(plan, InstructConfig(images=8), backbone, shapes=shapes)}


@pytest.fixture(scope="module")
def tiny(asked):
    """The plans, with all layers run."""
    return {name: make(few=None) for name, make in asked.items()}


@pytest.mark.parametrize("name", ["checkpointed", "chunked", "stage 2"])
def test_a_plan_from_a_few_layers_is_that_of_all_layers_to_the_byte(asked, tiny, name):
    assert asked[name](few=2) == tiny[name]


def test_the_peak_is_the_sum_of_its_parts_and_leaves_out_the_logits_that_nobody_computes(tiny):
    for name, parts in tiny.items():
        assert parts["peak"] == sum(size for part, size in parts.items() if part not in ("peak", "logits_avoided")), name
        assert min(parts.values()) >= 0 and parts["activations"] > 0
    rows, vocabulary = 8 * (16 + 8) + 32 * 8, backbone_config(paths.ROOT / "assets/backbone").text_config.vocab_size
    assert tiny["plain"]["logits_avoided"] == 2 * rows * vocabulary


def test_whatever_saves_memory_is_planned_to_save_it_and_in_the_right_part(tiny):
    plain = tiny["plain"]
    for name in ("checkpointed", "chunked", "two processes"):
        assert tiny[name]["activations"] < 0.75 * plain["activations"], name
        assert tiny[name]["weights"] == plain["weights"] and tiny[name]["optimizer"] == plain["optimizer"]
    assert tiny["bfloat16"]["weights"] < 0.9 * plain["weights"]
    assert tiny["chunked"]["cached_embeddings"] == 2 * 4 * (8 + 32) * 256 > plain["cached_embeddings"] == 0
    assert tiny["stage 2"]["optimizer"] < plain["optimizer"] / 5


def test_a_peak_that_moves_with_the_number_of_layers_is_found():
    def run(layers):  # the second phase is the fuller one for a few layers, the first one for many
        return {"a": {"activations": 10 * layers[0] + layers[1]}, "b": {"activations": 50 + layers[0], "weights": 3 * layers[1]}}

    for layers in ((4, 4), (30, 20), (3, 3)):
        grown = memory._extended(run, layers, few=2)
        assert {name: {k: v for k, v in parts.items() if v} for name, parts in grown.items()} == run(layers)


def test_a_plan_that_does_not_fit_is_refused_with_its_figures():
    rows = [{"profile": "mine", "part": part, "gib": gib} for part, gib in (("weights", 15.4), ("activations", 70.2), ("peak", 85.6))]
    with pytest.raises(MemoryError, match=r"profile mine needs 85\.6 GiB a device, and 79 are there: weights 15\.4 \+ activations 70\.2"):
        check(rows)
    check(rows, limit=86)


def test_a_model_that_cannot_be_planned_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no config"):
        backbone_config(tmp_path / "another")
    family = backbone_config(paths.ROOT / "assets/backbone")
    family.model_type = "internvl"
    with pytest.raises(ValueError, match="'qwen2_vl', not for 'internvl'"):
        plan(PretrainConfig(), family)
    with pytest.raises(ValueError, match="512 pictures of a batch cannot be shared evenly by 3 processes"):
        plan(PretrainConfig(), backbone_config(paths.ROOT / "assets/backbone"), processes=3)


@pytest.mark.parametrize("profile", ["a100", "gpu1"])
def test_the_papers_run_fits_its_devices(profile):
    parts = {row["part"]: row["gib"] for row in plan_profile(profile)}
    assert 15 < parts["weights"] < 18 and parts["peak"] < memory.LIMIT
    print(profile, {part: round(gib, 2) for part, gib in parts.items()})

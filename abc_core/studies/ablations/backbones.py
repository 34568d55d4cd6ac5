"""Backbones of three families, taught alike, for Table 4: does a better generator make a better embedder?

Steps: (1) `build` makes a random Qwen2-VL, InternVL or LLaVA-NeXT of like size, with the same tokens and layers of the same width;
(2) `taught` trains it to answer questions about pictures for a given number of floating-point operations, equal for all; `exported` makes a
backbone of a checkpoint of the shipped one's own training; (3) `generative` asks any of them; (4) `arms` trains embedders on them, and the
claim compares ranks. Every family goes through `Embedder.states`, left causal.

**Caveat:** minutes of training are not months: the families learn to name single objects and those of small scenes, little more.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers as hf
from scipy import stats
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from abc_core import checkpoint, prompts
from abc_core.backbone import load_backbone, set_visual_tokens
from abc_core.data.pictures import open_image
from abc_core.miniature.backbone import build as build_backbone
from abc_core.miniature.backbone.lessons import read_conversations
from abc_core.miniature.backbone.pretrain import TEST_IMAGES, BackboneConfig, learning_rate, optimizers, restore
from abc_core.miniature.parts import draw_part
from abc_core.model import Embedder
from abc_core.runs import paths
from abc_core.runs import run as runlog
from abc_core.studies import claims
from abc_core.studies import study as studies
from abc_core.studies.ablations.stage1 import Stage1
from abc_core.studies.claims import Claim, above, estimate

# Family -> the most visual tokens of a picture: about as many as Qwen2-VL gives 168 × 168 pixels, with a coarse view where there are tiles.
FAMILIES = {"qwen2_vl": 64, "internvl": 45, "llava_next": 192}
TILE = 84  # pixels of a side, 6 × 6 patches of 14
_PICTURE = prompts.VISION_START + prompts.IMAGE_PAD + prompts.VISION_END  # in Qwen's chat template


# --- 1. three families ----------------------------------------------------------------------------------------------------------


def build(family: str, texts: Sequence[str], vocab_size: int = 1600, seed: int = 0):
    """(model, processor): random, of about 7.5 million parameters, 6 layers of width 256 over 4 of width 192, with the same tokens.

    Raises:
        ValueError: a family that is not one of `FAMILIES`.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; known are {', '.join(FAMILIES)}")
    if family == "qwen2_vl":
        return build_backbone.build(texts, vocab_size, seed)
    processor = (_internvl if family == "internvl" else _llava_next)(build_backbone.build_processor(texts, vocab_size).tokenizer)
    tokens = processor.tokenizer
    text = dict(
        vocab_size=len(tokens), hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=4096, rms_norm_eps=1e-6, tie_word_embeddings=True, bos_token_id=tokens.pad_token_id,
        eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id,
    )  # fmt: skip
    vision = dict(hidden_size=192, intermediate_size=768, num_attention_heads=6, image_size=TILE)
    if family == "internvl":
        vision |= dict(num_hidden_layers=4, patch_size=14, model_type="internvl_vision")
        config = hf.InternVLConfig(
            text_config=text | {"model_type": "qwen2"}, vision_config=vision, image_seq_length=processor.image_seq_length,
            image_token_id=processor.image_token_id, tie_word_embeddings=True,
        )  # fmt: skip
    else:  # the layer before the last one is read
        vision |= dict(num_hidden_layers=5, patch_size=14, model_type="clip_vision_model")
        config = hf.LlavaNextConfig(
            text_config=text | {"model_type": "llama"}, vision_config=vision, image_token_index=processor.image_token_id,
            image_grid_pinpoints=processor.image_processor.image_grid_pinpoints, tie_word_embeddings=True,
        )  # fmt: skip
    torch.manual_seed(seed)
    model = hf.AutoModelForImageTextToText.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    return model, processor


def _with(base, **named: str):
    """A tokenizer with further special tokens that have a name."""
    return hf.Qwen2Tokenizer(
        vocab=base._vocab, merges=base._merges, unk_token=None, eos_token=prompts.IM_END, pad_token=prompts.END,
        extra_special_tokens={**named, "im_start_token": prompts.IM_START},
    )  # fmt: skip


def _internvl(base):
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    size, count = {"height": TILE, "width": TILE}, (TILE // 28) ** 2  # visual tokens of a tile
    images = hf.GotOcr2ImageProcessor(size=size, max_patches=4)
    template = prompts.CHAT_TEMPLATE.replace(_PICTURE, "<IMG_CONTEXT>")
    return hf.InternVLProcessor(
        images, _with(base, **named), hf.InternVLVideoProcessor(size=size), image_seq_length=count, chat_template=template
    )


def _llava_next(base):
    size = {"height": TILE, "width": TILE}
    pinpoints = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]
    images = hf.LlavaNextImageProcessor(size={"shortest_edge": TILE}, crop_size=size, image_grid_pinpoints=pinpoints)
    return hf.LlavaNextProcessor(
        images, _with(base, image_token="<image>"), patch_size=14, vision_feature_select_strategy="default",
        chat_template=prompts.CHAT_TEMPLATE.replace(_PICTURE, "<image>"), num_additional_image_tokens=1,
    )  # fmt: skip


# --- 2. taught alike ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Numbers of the teaching: operations in all (equal for every family), pictures a step, questions of each, and what they are about."""

    flops: float = 3e13
    pictures: int = 24
    questions: int = 3
    kinds: tuple[str, ...] = ("content", "place", "look")
    pixels: int = 112 * 168  # of the largest picture: single objects and small scenes
    learning_rate: float = 1.5e-3
    save_every: int = 50
    seed: int = 0


def taught(family: str, data: Path, lesson: Lesson, report: Callable = print) -> Path:
    """The folder of a backbone of a family that was taught on the conversations in `data`; goes on where a killed call stopped."""
    config = {"family": family} | {k: v for k, v in vars(lesson).items() if k != "save_every"}
    run = runlog.open_run("family", config, {"data": runlog.fingerprint(data / "conversations.jsonl")})
    folder = run.folder / "backbone"
    if run.finished:
        return folder
    model, processor = build(family, build_backbone.tokenizer_texts(data), seed=lesson.seed)
    pupil, records = _pupil(model, processor, FAMILIES[family]), _asked(data, lesson)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused kernel of CPUs is not counted
        _loss(pupil, data, _draw(records, lesson, 0))[0].backward()
    pupil.zero_grad(set_to_none=True)
    steps = max(1, round(lesson.flops / counter.get_total_flops()))
    numbers = BackboneConfig(steps=steps, learning_rate=lesson.learning_rate)
    opts, last = optimizers(model, numbers), run.folder / "last.safetensors"
    first = restore(model, last, data.name, opts) if last.exists() else 0
    run.truncate(first)
    report(f"{family}: {sum(p.numel() for p in model.parameters()):,} parameters, from step {first} of {steps}")
    for step in range(first, steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_amx_tile_supported()):
            loss, right = _loss(pupil, data, _draw(records, lesson, step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in opts.values():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, numbers) * group.get("factor", 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        run.log(step=step, loss=loss.item(), right=float(np.mean(right)))
        if (step + 1) % lesson.save_every == 0 or step + 1 == steps:
            checkpoint.save(last, dict(model.named_parameters()), opts, step=step + 1, data=data.name)
            report(f"{family}: step {step + 1}/{steps} · loss {loss.item():.3f}")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    run.finish(steps=steps, flops=lesson.flops)
    last.unlink()
    return folder


def exported(path: Path, backbone: Path) -> Path:
    """The folder of a backbone with the weights of a checkpoint of its training (`pretrain_backbone`), and the processor of `backbone`."""
    run = runlog.open_run("checkpoint", {}, {"weights": runlog.fingerprint(path), "backbone": runlog.fingerprint(backbone)})
    if not run.finished:
        model, processor = load_backbone(backbone)
        step = restore(model, path, checkpoint.load(path)[1]["data"])
        model.to(torch.bfloat16).save_pretrained(run.folder / "backbone")
        processor.save_pretrained(run.folder / "backbone")
        run.finish(steps=step)
    return run.folder / "backbone"


def _pupil(model, processor, most: int) -> Embedder:
    """A backbone that reads pictures and texts as the embedder does, but stays causal and trains whole."""
    pupil = Embedder(model, set_visual_tokens(processor, 4, most), head=False, bidirectional=False)
    model.requires_grad_(True)
    return pupil


def _asked(data: Path, lesson: Lesson) -> list[tuple[str, list]]:
    """(picture, its (question, answer) of the lesson's kinds) of every picture that is small enough and has some."""
    small = [r for r in read_conversations(data) if r["width"] * r["height"] <= lesson.pixels]
    found = [(r["image"], [(q, a) for kind, q, a, _ in r["turns"] if kind in lesson.kinds]) for r in small]
    return [(image, turns) for image, turns in found if turns]


def _draw(records: list, lesson: Lesson, step: int) -> list[tuple[str, list]]:
    """The pictures of a step, each with some of its questions; a function of (seed, step) alone."""
    rng = np.random.default_rng([lesson.seed, step])
    rows = [records[k] for k in rng.integers(len(records), size=lesson.pictures)]
    return [(image, [turns[k] for k in rng.permutation(len(turns))[: lesson.questions]]) for image, turns in rows]


def _loss(pupil: Embedder, data: Path, batch: list[tuple[str, list]]) -> tuple[torch.Tensor, list[bool]]:
    """Mean cross-entropy of the answers' tokens, and which answers greedy decoding would give, whole."""
    visual = pupil.see([open_image(data / image) for image, _ in batch])
    words = lambda text: pupil.prompts.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    rows, owners, lengths = [], [], []
    for k, (_, turns) in enumerate(batch):
        for question, answer in turns:
            said = [*words(answer), pupil.prompts.tokenizer.eos_token_id]
            rows.append(pupil.prompts.question(visual.placeholders[k], question) + said)
            owners.append(k)
            lengths.append(len(said))
    hidden, ids, mask = pupil.states(rows, visual, owners)
    ends = mask.sum(1).tolist()
    at = [(r, t) for r, (end, length) in enumerate(zip(ends, lengths)) for t in range(end - length, end)]
    row, token = (torch.tensor(column, device=hidden.device) for column in zip(*at))
    targets = ids[row, token]
    logits = pupil.model.lm_head(hidden[row, token - 1].to(pupil.model.lm_head.weight.dtype)).float()
    each = (logits.argmax(-1) == targets).split(lengths)
    return F.cross_entropy(logits, targets), [bool(part.all()) for part in each]


# --- 3. asked -------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def generative(backbone: Path, data: Path, most: int, lesson: Lesson, pictures: int) -> float:
    """Per cent of the questions about so many pictures of held-out meanings whose whole answer greedy decoding gives."""
    asked = {"kinds": list(lesson.kinds), "pixels": lesson.pixels, "pictures": pictures, "most": most}
    inputs = {"backbone": checkpoint.fingerprint(backbone), "data": runlog.fingerprint(data / "conversations.jsonl")}
    run = runlog.open_run("generative", asked, inputs)
    if not run.finished:
        pupil = _pupil(*load_backbone(backbone), most)
        right = [ok for part in _parts(_asked(data, lesson)[:pictures], 8) for ok in _loss(pupil, data, part)[1]]
        run.finish(generative=100 * float(np.mean(right)), questions=len(right))
    return run.result()["generative"]


def _parts(rows: list, size: int) -> Iterator[list]:
    return (rows[k : k + size] for k in range(0, len(rows), size))


# --- 4. embedders on them -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Backbones:
    """Which backbones are compared.

    Args:
        shipped: folder of the backbone of all other studies. checkpoints: folder of those of its training ("" is RUNS/backbone), each the
            weights that `pretrain_backbone` keeps (step-000535.safetensors) or a whole backbone (step-004200/); none if it is empty.
        families: taught here, each anew for every number of operations in `flops`; 3e13 are five minutes of one core that multiplies
            bfloat16, ten to twenty of one that does not. lessons, asked: pictures to draw.
    """

    shipped: str
    checkpoints: str = ""
    families: Sequence[str] = tuple(FAMILIES)
    flops: Sequence[float] = (Lesson.flops,)
    lessons: int = 3000
    asked: int = 200

    def made(self, report: Callable = print) -> dict[str, tuple[Path, int | None, float]]:
        """name -> (folder, most visual tokens or None, generative accuracy); what is missing is drawn, taught and exported."""
        data = draw_part(paths.DATA, "backbone", self.lessons, report=report)
        test = draw_part(paths.DATA, "backbone_test", TEST_IMAGES, report=report)
        at = paths.ROOT / self.checkpoints if self.checkpoints else paths.RUNS / "backbone"
        early = {path.stem: exported(path, paths.ROOT / self.shipped) for path in at.glob("step-*.safetensors")}
        early |= {path.name: path for path in at.glob("step-*/")}
        found = {f"step {int(name[5:])}": (folder, None) for name, folder in early.items()}
        found["shipped"] = paths.ROOT / self.shipped, None
        for flops in self.flops:
            lesson = Lesson(flops=flops)
            named = {family: f"{family}, {flops / 1e12:g} TFLOP" for family in self.families}
            found |= {name: (taught(family, data, lesson, report), FAMILIES[family]) for family, name in named.items()}
        score = lambda folder, most: generative(folder, test, most or FAMILIES["qwen2_vl"], Lesson(), self.asked)  # noqa: E731
        return {name: (folder, most, score(folder, most)) for name, (folder, most) in sorted(found.items())}


def arms(base: Stage1, backbones: Backbones, report: Callable = print) -> list[studies.Arm]:
    """The base arm of stage 1 on every backbone, seed by seed; `value` is its generative accuracy."""
    found = []
    for name, (folder, most, value) in backbones.made(report).items():
        job, numbers = {} if name == "shipped" else {"backbone": str(folder)}, {} if most is None else {"max_visual_tokens": most}
        found += [base.arm("backbones", name, seed, value, job, **numbers) for seed in base.seeds]
    return found


RANKED = 0.7  # Spearman's ρ of seven backbones is above it by chance in one of twenty orders


def _claim_15(rows):
    """ρ between generative accuracy and validation accuracy over backbones, seed by seed."""
    mine = [r for r in rows if r["study"] == "backbones"]
    names = {r["arm"] for r in mine}
    if len(names) < 5:
        return estimate([]), f"{claims.UNTESTABLE}: {len(names)} backbones, too few to rank"
    found = []
    for seed in sorted({r["seed"] for r in mine}):
        of = [(r["value"], r["val_accuracy"]) for r in mine if r["seed"] == seed]
        if len(of) == len(names):
            found.append(float(stats.spearmanr(*zip(*of)).statistic))
    return above(estimate(found), RANKED)


CLAIMS = [
    Claim(
        15, "A backbone better at generation makes a better embedder", "Table 4",
        f"over at least five backbones, Spearman's ρ of generative and validation accuracy is above {RANKED:g}", _claim_15, "Spearman's ρ",
        "08_ablations#backbones",
    ),
]  # fmt: skip

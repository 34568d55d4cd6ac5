"""Every system as a tiny random model of its own architecture: unit vectors, no dependence on batch mates, and what an instruction does."""

import json
from functools import cache

import numpy as np
import open_clip
import pytest
import tiny
import tiny_systems
import torch
import transformers as hf

from abc_core.systems import cards as systems
from abc_core.systems import published
from abc_core.systems.dual import LONGEST, DualEncoder, from_transformers, safetensors_in
from abc_core.systems.fusion import InternVLG, MagicLens, MagicLensHead
from abc_core.systems.vlm import TEMPLATES, Templates, VLMSystem, from_abc

PICTURES = tiny.pictures(3)
ASKED = [["what is on the left?", "where is the owl"], ["x"], ["how many cups are on the red card"]]
OWNERS = [0, 0, 1, 2]


@cache
def tiny_system(name: str, **options) -> systems.System:
    options |= {"weights": "float32"} if name in tiny_systems.VLM else {}
    return systems.load(name, tiny_systems.folder(name), **options)


def unit(rows: np.ndarray) -> None:
    """Every vector has length 1."""
    np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-5)


# --- cards --------------------------------------------------------------------------------------------------------------------


def test_every_card_says_what_a_reader_must_know_and_each_that_can_be_loaded_has_a_tiny_test():
    for card in systems.CARDS.values():
        assert all((card.checkpoint, card.instruction, card.prompt, card.pooling, card.source, card.licence)), card.name
        assert card.weights in ("paper", "stand-in", "later", "none")
        assert (card.weights == "none") == (card.build is None), card.name
    assert {n for n, card in systems.CARDS.items() if card.build} == {*tiny_systems.EVERY, "ABC", "ABC stage 1"}
    assert [row["name"] for row in systems.table()] == list(systems.CARDS) and "build" not in systems.table()[0]


def test_a_system_that_is_not_known_or_has_no_weights_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="known are CLIP"):
        systems.load("clip")
    with pytest.raises(ValueError, match=r"FILIP cannot be loaded \(published figures only"):
        systems.load("FILIP")
    for name, named in (("ALIGN", "kakaobrain"), ("ABC", "TIGER-Lab"), ("GME", "Alibaba-NLP")):
        with pytest.raises(FileNotFoundError, match=f"{named}.*download=True"):
            systems.load(name)


def test_pickled_weights_and_adapters_are_never_opened(tmp_path):
    with pytest.raises(ValueError, match="no weights"):
        safetensors_in(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit'\ntR.")
    with pytest.raises(ValueError, match=r"holds pytorch_model\.bin"):
        systems.load("ALIGN", tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(ValueError, match="convert it first"):
        systems.load("VLM2Vec", tmp_path)
    (tmp_path / "model.safetensors").touch()  # of transformers: open_clip would prefer open_clip_pytorch_model.bin to it
    with pytest.raises(ValueError, match=r"only open_clip_\*model\.safetensors"):
        systems.load("OpenCLIP-G", tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="merge the adapter"):
        systems.load("VLM2Vec", tmp_path)


def test_the_published_rows_give_the_averages_that_the_paper_prints():
    split = len(published.CLASSIFICATION)
    for name, row in published.TABLE_2.items():
        means = np.mean(row[:split]), np.mean(row[split:])
        np.testing.assert_allclose(means, published.TABLE_2_MEANS[name], atol=0.051, err_msg=name)
    for name, (every, unseen) in {"VLM2Vec": (52.1, 34.9), "ABC": (60.0, 52.6)}.items():
        row = dict(zip(published.CLASSIFICATION, published.TABLE_5[name], strict=True))
        assert np.mean(list(row.values())) == pytest.approx(every, abs=0.051)
        assert np.mean([row[k] for k in published.VLM2VEC_OUT_OF_DISTRIBUTION]) == pytest.approx(unseen, abs=0.051)


def test_published_figures_belong_to_systems_with_a_card_and_leave_out_what_is_not_printed():
    printed = {*published.TABLE_1, *published.TABLE_2, *published.TABLE_3, *published.TABLE_5}
    assert printed <= set(systems.CARDS)
    assert published.figures("ABC")["COCO image → text R@1"] == 69.2 and len(published.figures("ABC")) == 12 + 19 + 3
    assert "COCO image → text R@10" not in published.figures("FLAVA")
    assert published.figures("VLM2Vec")["CtrlBench R@1"] == 24.0
    assert published.figures("GME") == {}


# --- every system -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny_systems.EVERY)
def test_rows_are_finite_unit_vectors_and_do_not_depend_on_their_batch(name):
    system = tiny_system(name)
    assert isinstance(system, systems.System) and system.name == name
    for given in ({"images": PICTURES}, {"texts": tiny.TEXTS}):
        key, items = next(iter(given.items()))
        rows = system.embed(**given)
        assert rows.dtype == np.float32 and np.isfinite(rows).all() and len(rows) == len(items)
        unit(rows)
        assert np.abs(rows[0] - rows[1]).max() > 1e-3
        alone = np.concatenate([system.embed(**{key: [item]}) for item in items])
        turned = system.embed(**{key: items[::-1]})[::-1]
        tiny.close(alone, rows)
        tiny.close(turned.copy(), rows)


@pytest.mark.parametrize("name", tiny_systems.EVERY)
def test_an_instruction_reaches_the_vector_and_rows_come_picture_by_picture(name):
    system = tiny_system(name)
    rows, plain = system.embed(PICTURES, instructions=ASKED), system.embed(PICTURES)
    flat = system.embed([PICTURES[k] for k in OWNERS], instructions=[text for texts in ASKED for text in texts])
    tiny.close(rows, flat)
    unit(rows)
    assert np.abs(rows - plain[OWNERS]).max(axis=-1).min() > 1e-3  # every instruction moves its picture
    assert np.abs(rows[0] - rows[1]).max() > 1e-3  # two instructions of one picture differ
    same = system.embed(PICTURES, instructions=["x"] * 3)
    assert np.abs(same[0] - same[1]).max() > 1e-3  # the picture still counts


@pytest.mark.parametrize("name", tiny_systems.EVERY)
def test_the_fingerprint_is_of_the_weights_and_of_how_they_are_asked(name):
    again = systems.load(name, tiny_systems.folder(name), **({"weights": "float32"} if name in tiny_systems.VLM else {}))
    assert again.fingerprint == tiny_system(name).fingerprint
    prints = {other: tiny_system(other).fingerprint for other in tiny_systems.EVERY}
    same_weights = [n for n, p in prints.items() if p == prints[name]]
    assert same_weights == [name] or set(same_weights) == {"UniIR", "MMRet"}  # one tiny CLIP stands for both


@pytest.mark.parametrize("name", ["CLIP", "E5-V"])
def test_what_cannot_be_embedded_is_refused_alike(name):
    system = tiny_system(name)
    for given, why in (
        ({}, "either images or texts"),
        ({"images": PICTURES, "texts": ["x"]}, "not both"),
        ({"texts": "x"}, "lists"),
        ({"texts": ["x", " "]}, "text 1 is empty"),
        ({"texts": ["x"], "instructions": ["x"]}, "go with images"),
        ({"images": PICTURES, "instructions": ["x"]}, "3 images need 3"),
    ):
        with pytest.raises(ValueError, match=why):
            system.embed(**given)
    assert len(system.embed(images=[])) == len(system.embed(texts=[])) == 0


# --- dual encoders ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny_systems.DUAL)
def test_fusion_is_the_sum_of_the_towers_own_features_brought_to_unit_length(name):
    system = tiny_system(name)
    with torch.no_grad():
        seen, said = system.see(PICTURES), system.read([text for texts in ASKED for text in texts])
    said = said[:, None] if seen.ndim == 3 else said
    tiny.close(system.embed(PICTURES, instructions=ASKED), torch.nn.functional.normalize(seen[OWNERS] + said, dim=-1))


@pytest.mark.parametrize("name", tiny_systems.DUAL)
def test_an_instruction_that_is_not_fused_changes_no_bit(name):
    deaf = tiny_system(name, instructed=False)
    assert np.array_equal(deaf.embed(PICTURES, instructions=ASKED), deaf.embed(PICTURES)[OWNERS])
    assert deaf.fingerprint != tiny_system(name).fingerprint


@pytest.mark.parametrize("name", tiny_systems.OPEN_CLIP)
def test_open_clip_systems_embed_as_the_model_does_by_itself(name):
    source = f"local-dir:{tiny_systems.folder(name)}"
    model, _, preprocess = open_clip.create_model_and_transforms(source)
    words = open_clip.get_tokenizer(source)(tiny.TEXTS[:3])
    with torch.no_grad():
        pixels = torch.stack([preprocess(p) for p in PICTURES])
        image, text = model.eval().encode_image(pixels, normalize=True), model.encode_text(words, normalize=True)
    tiny.close(tiny_system(name).embed(PICTURES), image)
    tiny.close(tiny_system(name).embed(texts=tiny.TEXTS[:3]), text)


@pytest.mark.parametrize("name", ["ALIGN", "UniIR", "BLIP-2"])
def test_scores_are_those_of_the_models_own_forward_pass(name):
    folder = tiny_systems.folder(name)
    load = hf.Blip2ForImageTextRetrieval if name == "BLIP-2" else hf.AutoModel
    model, processor = load.from_pretrained(folder, dtype=torch.float32).eval(), hf.AutoProcessor.from_pretrained(folder)
    words = processor.tokenizer(tiny.TEXTS, padding=True, truncation=True, max_length=LONGEST[model.config.model_type], return_tensors="pt")
    pixels = processor.image_processor(images=PICTURES, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = model(pixel_values=pixels, input_ids=words["input_ids"], attention_mask=words["attention_mask"])
        logits = out.logits_per_image
    if name != "BLIP-2":
        logits = out.image_embeds @ out.text_embeds.T
    system = tiny_system(name)
    scores = system.score(system.embed(PICTURES), system.embed(texts=tiny.TEXTS))
    tiny.close(scores, logits)
    tiny.close(system.score(system.embed(texts=tiny.TEXTS), system.embed(PICTURES)), logits.T)


def test_late_interaction_takes_the_best_product_in_both_directions():
    rng = np.random.default_rng(0)
    many, one = rng.normal(size=(4, 3, 5)), rng.normal(size=(6, 5))
    system = DualEncoder("x", "x", None, None)
    naive = np.array([[max(vector @ c for vector in row) for c in one] for row in many])
    tiny.close(system.score(many, one), naive)
    tiny.close(system.score(one, many), naive.T)
    tiny.close(system.score(one, one), one @ one.T)
    both = np.array([[max(a @ b for a in row for b in other) for other in many] for row in many])
    tiny.close(system.score(many, many), both)


# --- vision-language models ---------------------------------------------------------------------------------------------------


def _by_hand(name: str, prompts: list[str], pictures: list | None) -> torch.Tensor:
    """The last hidden state of the last token, one row at a time, of the causal model that nothing was done to."""
    folder = tiny_systems.folder(name)
    model = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor, rows = hf.AutoProcessor.from_pretrained(folder), []
    for k, prompt in enumerate(prompts):
        inputs = processor(text=[prompt], images=pictures[k : k + 1] if pictures else None, return_tensors="pt")
        if name in ("VLM2Vec", "GME"):
            inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1]).expand(3, 1, -1)
        with torch.no_grad():
            rows.append(model.model(**inputs).last_hidden_state[0, -1])
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


@pytest.mark.parametrize("name", tiny_systems.VLM)
def test_a_vision_language_system_is_the_last_token_of_its_own_prompt(name):
    system, texts = tiny_system(name), ["an owl", "a red owl. Two blue cups"]
    mark = system.embedder.processor.image_token
    pictures = [p.resize((512, 512)) for p in PICTURES] if name == "MMRet-MLLM" else PICTURES
    prompt = {kind: template.replace("{image}", mark) for kind, template in TEMPLATES[name].items()}
    tiny.close(system.embed(texts=texts), _by_hand(name, [prompt["text"].replace("{text}", t) for t in texts], None))
    tiny.close(system.embed(PICTURES), _by_hand(name, [prompt["image"]] * 3, pictures))
    asked = [texts_of[0] for texts_of in ASKED]
    tiny.close(system.embed(PICTURES, instructions=asked), _by_hand(name, [prompt["asked"].replace("{text}", t) for t in asked], pictures))


def test_a_special_token_typed_into_a_text_stays_text():
    processor = tiny.build("qwen2_vl")[1]
    made = Templates(processor, **TEMPLATES["GME"])
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert made.text("an owl<|im_end|>").count(end) == made.text("an owl").count(end) == 2
    assert made.image("<|image_pad|>", "say <|im_end|>").count(end) == 2
    assert made.text("an owl")[-1] == processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")


def test_a_template_without_its_mark_is_refused():
    processor = tiny.build("qwen2_vl")[1]
    with pytest.raises(ValueError, match=r"should hold \{image\} and \{text\} once"):
        Templates(processor, **TEMPLATES["GME"] | {"asked": "{image}"})


def test_a_processor_that_was_saved_without_the_patch_size_is_completed_from_the_model(tmp_path):
    tiny.save("llava_next", tmp_path)
    facts = json.loads((tmp_path / "processor_config.json").read_text())
    for key in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
        facts.pop(key)
    (tmp_path / "processor_config.json").write_text(json.dumps(facts))
    tiny.close(systems.load("E5-V", tmp_path, weights="float32").embed(PICTURES), tiny_system("E5-V").embed(PICTURES))


# --- ours ---------------------------------------------------------------------------------------------------------------------


def test_abc_and_its_stage_1_are_systems_whose_fingerprints_and_instructed_rows_differ(tmp_path):
    from abc_core import adapters
    from abc_core.model import Embedder

    made = Embedder.from_backbone(tiny.save("qwen2_vl", tmp_path / "backbone"))
    for stage in adapters.STAGES:
        adapters.add_lora(made, stage, rank=2, alpha=2)
        tiny.randomise_trained(made)
        if stage == "pretrain":
            adapters.merge(made, stage)
    adapters.save_embedder(made, tmp_path / "model.safetensors")
    both, first = (systems.load(name, tmp_path) for name in ("ABC", "ABC stage 1"))
    assert isinstance(made, systems.System) and isinstance(both, systems.System)
    assert len({both.fingerprint, first.fingerprint, made.fingerprint, made.backbone_fingerprint}) == 4
    assert from_abc("ABC", tmp_path).fingerprint == both.fingerprint
    asked = [texts[0] for texts in ASKED]
    tiny.close(both.embed(PICTURES, instructions=asked), made.embed(PICTURES, instructions=asked))
    tiny.close(first.embed(PICTURES), both.embed(PICTURES))
    tiny.close(first.embed(PICTURES, instructions=asked), made.embed(PICTURES, instructions=asked, adapter=False))
    assert np.abs(first.embed(PICTURES, instructions=asked) - both.embed(PICTURES, instructions=asked)).max() > 1e-3
    text = both.embed(texts=["an owl"])
    tiny.close(made.score(made.embed(PICTURES), text), both.score(both.embed(PICTURES), text))


def test_training_moves_an_embedders_fingerprint():
    made = tiny.with_lora("qwen2_vl", "pretrain")
    before = made.fingerprint
    with torch.no_grad():
        made.head.linear_layer1.weight[0, 0] += 1e-3
    assert made.fingerprint != before
    assert VLMSystem("x", made, adapter=None).fingerprint != VLMSystem("x", made, adapter=False).fingerprint


# --- architectures without readable weights -------------------------------------------------------------------------------------


def test_magiclens_fuses_two_tokens_and_every_part_reaches_the_vector():
    head = tiny_systems.seeded(MagicLensHead(16, heads=2, layers=2))
    system = from_transformers("MagicLens", tiny_systems.folder("UniIR"), system=MagicLens, head=head)
    rows, plain = system.embed(PICTURES, instructions=ASKED), system.embed(PICTURES)
    unit(rows)
    assert np.abs(rows - plain[OWNERS]).max(axis=-1).min() > 1e-3 and np.abs(rows[0] - rows[1]).max() > 1e-3
    tiny.close(np.concatenate([system.embed([p]) for p in PICTURES]), plain)
    assert system.embed(texts=tiny.TEXTS).shape == (6, 16)
    tokens = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tiny.close(head(tokens), head(tokens.flip(1)))  # no positions: the order of both tokens does not matter
        assert (head(tokens) - head(tokens[:, :1])).abs().max() > 1e-3


def test_magiclens_attention_without_saturation_is_the_usual_one():
    from abc_core.systems.fusion import Attention

    generator = torch.Generator().manual_seed(0)
    x, mine = torch.randn(2, 5, 8, generator=generator), tiny_systems.seeded(Attention(8, 8, heads=2))
    usual = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        usual.in_proj_weight.copy_(torch.cat([f.weight for f in (mine.query, mine.key, mine.value)]))
        usual.in_proj_bias.copy_(torch.cat([f.bias for f in (mine.query, mine.key, mine.value)]))
        usual.out_proj.load_state_dict(mine.out.state_dict())
        tiny.close(mine(x, x, x), usual(x, x, x)[0])
        capped = Attention(8, 8, heads=2, cap=50.0)
        capped.load_state_dict(mine.state_dict())
        tiny.close(capped(x, x, x), mine(x, x, x), 1e-2)  # far from ±50 the cap hardly shows
        assert (capped(1e3 * x, 1e3 * x, x) - mine(1e3 * x, 1e3 * x, x)).abs().max() > 1e-4


def _internvl_g() -> InternVLG:
    tower = hf.CLIPVisionModel(hf.CLIPVisionConfig(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                                                   image_size=32, patch_size=16))  # fmt: skip
    made = InternVLG(lambda pixels: tower(pixels).last_hidden_state, seen=24, words=50, width=16, out=12)
    tiny_systems.seeded(tower)
    return tiny_systems.seeded(made)


@torch.no_grad()
def test_internvl_g_sums_the_pooled_picture_and_what_its_queries_read():
    made, pixels = _internvl_g(), torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows = made.encode_image(pixels)
    tiny.close(torch.cat([made.encode_image(p[None]) for p in pixels]), rows)
    seen = made.vision(pixels)
    from_queries = rows - torch.nn.functional.normalize(made.pool_seen(seen), dim=-1)
    tiny.close(from_queries.norm(dim=-1), torch.ones(3))
    assert (from_queries[0] - from_queries[1]).abs().max() > 1e-3  # the queries did read the picture
    made.queries.data = made.queries.data.flip(1)
    tiny.close(made.encode_image(pixels), rows)  # a set of queries, seen from their mean


@torch.no_grad()
def test_internvl_g_reads_texts_causally_up_to_their_last_token_and_without_a_picture():
    made = _internvl_g()
    ids = torch.tensor([[3, 7, 9, 0, 0], [4, 5, 6, 8, 2]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    rows = made.encode_text(ids, mask)
    tiny.close(made.encode_text(ids[:1, :3], mask[:1, :3]), rows[:1])
    ids[0, 3:] = 11  # padding is never read
    tiny.close(made.encode_text(ids, mask), rows)
    ids[0, 0] = 4
    assert (made.encode_text(ids, mask)[0] - rows[0]).abs().max() > 1e-3
    for block in made.blocks:
        block.cross.out.weight.zero_()
        block.cross.out.bias.zero_()
    ids[0, 0] = 3
    tiny.close(made.encode_text(ids, mask), rows)  # no cross-attention on the texts' way

"""Folders with tiny random models of the other systems' own architectures, as on the hub, built without any file."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import open_clip
import timm
import tiny
import torch
import transformers as hf
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789?.,!':-"
_TOWER = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
_SIZE = {"height": 32, "width": 32}
_PREPROCESS = {"size": 32, "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}

# open_clip's configurations: the published files with small numbers; 49,408 words, as its own tokenizer has them.
_TEXT = dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=2)
_SIGLIP_TEXT = dict(
    context_length=64, vocab_size=64, hf_tokenizer_name="here", tokenizer_kwargs={"clean": "canonicalize"}, width=32, heads=2, layers=2,
    no_causal_mask=True, proj_bias=True, pool_type="last", norm_kwargs={"eps": 1e-6},
)  # fmt: skip
_TIMM = dict(image_size=28, timm_model_pretrained=False)
_VISION = dict(image_size=32, layers=2, width=32, head_width=16, patch_size=16)
OPEN_CLIP = {
    "CLIP": dict(embed_dim=16, quick_gelu=True, vision_cfg=_VISION, text_cfg=_TEXT),
    "OpenCLIP-G": dict(embed_dim=16, vision_cfg=_VISION | {"mlp_ratio": 4.9231}, text_cfg=_TEXT),
    "EVA-02-CLIP-E+": dict(
        embed_dim=16, custom_text=True, text_cfg=_TEXT,
        vision_cfg=_TIMM | dict(timm_model_name="miniature_eva02_enormous", timm_pool="token", timm_proj=None),
    ),
    "CoCa": dict(
        embed_dim=16, custom_text=True, text_cfg=_TEXT | dict(context_length=76, embed_cls=True, output_tokens=True),
        vision_cfg=_VISION | dict(attentional_pool=True, attn_pooler_heads=2, output_tokens=True),
        multimodal_cfg=dict(context_length=76, vocab_size=49408, width=32, heads=2, layers=1, attn_pooler_heads=2),
    ),
    "SigLIP": dict(
        embed_dim=32, init_logit_bias=-10, custom_text=True, text_cfg=_SIGLIP_TEXT,
        vision_cfg=_TIMM | dict(timm_model_name="miniature_siglip", timm_pool="map", timm_proj="none"),
    ),
}  # fmt: skip
OPEN_CLIP["SigLIP 2"] = OPEN_CLIP["SigLIP"] | {"text_cfg": _SIGLIP_TEXT | {"act_kwargs": {"approximate": "tanh"}}}


_HELD: list[TemporaryDirectory] = []  # removed when the tests end


@cache
def folder(system: str) -> Path:
    """Where the tiny model of a system is."""
    _HELD.append(TemporaryDirectory(prefix="tiny-system-"))
    where = Path(_HELD[-1].name)
    if system in OPEN_CLIP:
        _open_clip(where, OPEN_CLIP[system])
    elif system in _VLM:
        tiny.save(_VLM[system], where)
    else:
        model, processor = _TRANSFORMERS[system]()
        tiny.randomise(model.parameters(), seed=0)
        if system == "ALIGN":
            _settle(model)
        model.eval().save_pretrained(where)
        processor.save_pretrained(where)
    return where


_VLM = {"E5-V": "llava_next", "MMRet-MLLM": "llava_next", "VLM2Vec": "qwen2_vl", "GME": "qwen2_vl", "Qwen3-VL-Embedding": "qwen3_vl"}


@timm.models.register_model
def miniature_eva02_enormous(pretrained=False, **given):
    return _small(timm.models.eva.eva02_enormous_patch14_clip_224, given)


@timm.models.register_model
def miniature_siglip(pretrained=False, **given):
    return _small(timm.models.vision_transformer.vit_so400m_patch14_siglip_384, given)


def _small(build, given: dict):
    return build(embed_dim=32, depth=2, num_heads=2, mlp_ratio=2, img_size=28, **given)


def _open_clip(where: Path, config: dict) -> None:
    if "hf_tokenizer_name" in config["text_cfg"]:
        _word_tokenizer().save_pretrained(where)
    preprocess = _PREPROCESS | {"size": config["vision_cfg"]["image_size"]}
    (where / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    model = open_clip.create_model(f"local-dir:{where}", load_weights=False)
    tiny.randomise(model.parameters(), seed=0)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, where / "open_clip_model.safetensors")


def _word_tokenizer() -> hf.PreTrainedTokenizerFast:
    """Letters as words, </s> at the end, padded with <pad>, as SigLIP's."""
    words = Tokenizer(models.WordLevel({w: k for k, w in enumerate(["<pad>", "</s>", "<unk>", *_LETTERS])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _bert_tokenizer() -> hf.BertTokenizer:
    named = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return hf.BertTokenizer(vocab={w: k for k, w in enumerate([*named, *_LETTERS, *("##" + c for c in _LETTERS)])})


def _clip():
    letters = [*_LETTERS, *(c + "</w>" for c in _LETTERS), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = hf.CLIPTokenizer(vocab={w: k for k, w in enumerate(letters)}, merges=[])
    ids = dict(bos_token_id=len(letters) - 2, eos_token_id=len(letters) - 1, pad_token_id=len(letters) - 1)
    text = _TOWER | dict(vocab_size=len(letters), **ids)
    config = hf.CLIPConfig(text_config=text, vision_config=_TOWER | dict(image_size=32, patch_size=16), projection_dim=16)
    return hf.CLIPModel(config), hf.CLIPProcessor(hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=_SIZE), tokenizer)


def _align():
    tokenizer = _bert_tokenizer()
    vision = dict(width_coefficient=0.25, depth_coefficient=0.5, hidden_dim=32, image_size=32)  # its last stage is 80 wide
    config = hf.AlignConfig(text_config=_TOWER | dict(vocab_size=len(tokenizer)), vision_config=vision, projection_dim=80)
    return hf.AlignModel(config), hf.AlignProcessor(hf.EfficientNetImageProcessor(size=_SIZE, do_center_crop=False), tokenizer)


@torch.no_grad()
def _settle(model) -> None:
    """Give batch norms the statistics of random pictures; without, nothing of a picture gets through so many of them."""
    for module in model.train().modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    model.get_image_features(torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


def _flava():
    tokenizer = _bert_tokenizer()
    book = dict(hidden_size=8, vocab_size=8, num_groups=4, num_blocks_per_group=1)
    config = hf.FlavaConfig(
        text_config=_TOWER | dict(vocab_size=len(tokenizer)), image_config=_TOWER | dict(image_size=32, patch_size=16),
        multimodal_config=_TOWER, image_codebook_config=book, hidden_size=32, projection_dim=16,
    )  # fmt: skip
    return hf.FlavaModel(config), hf.FlavaProcessor(hf.FlavaImageProcessor(size=_SIZE, crop_size=_SIZE), tokenizer)


def _blip2():
    tokenizer = _bert_tokenizer()
    processor = hf.Blip2Processor(hf.BlipImageProcessor(size=_SIZE), tokenizer, num_query_tokens=3)
    config = hf.Blip2Config(
        vision_config=_TOWER | dict(image_size=32, patch_size=16, initializer_range=0.02),
        qformer_config=_TOWER | dict(vocab_size=len(tokenizer), encoder_hidden_size=32, use_qformer_text_input=True),
        num_query_tokens=3, image_text_hidden_size=16,
    )  # fmt: skip
    return hf.Blip2ForImageTextRetrieval(config), processor


_TRANSFORMERS = {"ALIGN": _align, "FLAVA": _flava, "BLIP-2": _blip2, "UniIR": _clip, "MMRet": _clip}
EVERY = (*OPEN_CLIP, *_TRANSFORMERS, *_VLM)
DUAL = (*OPEN_CLIP, *_TRANSFORMERS)
VLM = tuple(_VLM)


def seeded(module: torch.nn.Module) -> torch.nn.Module:
    """The module with random matrices, drawn as the models' are."""
    tiny.randomise(module.parameters(), seed=0)
    return module.eval()

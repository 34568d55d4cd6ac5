"""The numbers of a run: frozen dataclasses that refuse unknown names, wrong types and impossible values before anything runs.

Defaults are the paper's; profiles are the same classes with other numbers. "Not in the paper" in a margin says that the choice is ours.

Steps of the check: (1) `within` writes a field's range beside its default; (2) `_fit` holds each value against its annotation;
(3) `_check` compares fields with each other.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

COUNT = "[1, inf)"  # at least one
LARGEST = 1 << 31  # whole numbers are below; steps, sizes and seeds beyond would overflow somewhere in torch


def _lies_in(number: float, interval: str) -> bool:
    """Is a number inside "[low, high)"? NaN never is."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    return (number >= low if interval[0] == "[" else number > low) and (number <= high if interval[-1] == "]" else number < high)


def _fit(value: Any, hint: Any, name: str) -> Any:
    """`value` as `hint` wants it: an int becomes a float, a list a tuple, a mapping a nested config; ValueError for anything else."""
    if type(value) is int and abs(value) >= LARGEST:
        raise ValueError(f"{name} is out of range: a whole number of {value.bit_length()} bits, where {LARGEST - 1:,} is the largest")
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for option in options:
        if get_origin(option) is Literal and isinstance(value, str) and value in get_args(option):
            return value
        if get_origin(option) is tuple and isinstance(value, tuple | list) and len(value) == len(get_args(option)):
            return tuple(_fit(v, h, name) for v, h in zip(value, get_args(option), strict=True))
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option in (int, bool, NoneType) and type(value) is option:
            return value
        if isinstance(option, type) and issubclass(option, _Config) and isinstance(value, option | Mapping):
            return value if isinstance(value, option) else option.from_mapping(value, name)
    expected = " or ".join(o.__name__ if isinstance(o, type) and get_origin(o) is None else str(o).removeprefix("typing.") for o in options)
    raise ValueError(f"{name} = {describe(value)}; expected {expected.replace('NoneType', 'None')}")


def describe(value: Any) -> str:
    """A value of the wrong type, with its type, and how YAML writes the number if it is the text of one."""
    text = f"{value!r} is of type {type(value).__name__}"
    try:
        float(value)
    except (TypeError, ValueError):
        return text
    return text + " (a YAML number has no quotes, and a point before its exponent: 1.0e-4)" if isinstance(value, str) else text


def within(interval: str, default: Any = MISSING) -> Any:
    """A field whose numbers lie in an interval, "(0, 1]" for example; the paper's value is the default."""
    return field(default=default, metadata={"interval": interval})


@dataclass(frozen=True)
class _Config:
    def __post_init__(self):
        hints = get_type_hints(type(self))
        for f in fields(self):
            name, value = f"{type(self).__name__}.{f.name}", getattr(self, f.name)
            fitted = _fit(value, hints[f.name], name)
            for number in fitted if isinstance(fitted, tuple) else (fitted,):
                if "interval" in f.metadata and number is not None and not _lies_in(number, f.metadata["interval"]):
                    raise ValueError(f"{name} = {value!r} is out of range; it must lie in {f.metadata['interval']}")
            object.__setattr__(self, f.name, fitted)
        self._check()

    def _check(self) -> None:
        """Compare fields with each other."""

    @classmethod
    def from_mapping(cls, mapping: Mapping, source: str = "the parameters"):
        """A config from names and values, a nested one from a nested mapping.

        Args:
            source: where the mapping comes from, for messages.
        Raises:
            ValueError: a name that the config does not have, a missing one, or a value that it refuses.
        """
        if not isinstance(mapping, Mapping):
            raise ValueError(f"{source}: {cls.__name__} needs names and values, not {describe(mapping)}")
        known = {f.name: f for f in fields(cls)}
        unknown = [str(k) for k in mapping if k not in known]
        missing = [n for n, f in known.items() if f.default is MISSING and n not in mapping]
        if unknown or missing:
            wrong = f"does not have {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
            raise ValueError(f"{source}: {cls.__name__} {wrong}; its fields are {', '.join(known)}")
        try:
            return cls(**mapping)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error


@dataclass(frozen=True)
class LoraConfig(_Config):
    """A low-rank adapter, W + (alpha / rank)·B·A."""

    rank: int = within(COUNT)
    alpha: int = within(COUNT)
    dropout: float = within("[0, 1)", 0.0)  # not in the paper; authors' code: 0.05


@dataclass(frozen=True, kw_only=True)
class StageConfig(_Config):
    """What both stages share. `steps`, `lora` and the size of a batch are the stages' own."""

    steps: int = within(COUNT)
    lora: LoraConfig
    learning_rate: float = within("(0, inf)", 4e-5)  # Sec. 4, "learning rate", the highest of the schedule
    betas: tuple[float, float] = within("[0, 1)", (0.9, 0.999))  # Sec. 4, "betas"
    weight_decay: float = within("[0, inf)", 1e-3)  # Sec. 4, "weight decay"; not on the temperature
    warmup: float = within("[0, 1]", 0.03)  # Sec. 4, "warm-up", fraction of the steps
    clip: float = within("(0, inf]", 1.0)  # largest gradient norm; inf: no clipping. Not in the paper
    label_smoothing: float = within("[0, 1)", 0.0)  # eq. 2 has none; authors' code: 0.1
    min_visual_tokens: int = within(COUNT, 4)  # of a picture, 28 × 28 pixels each; not in the paper
    max_visual_tokens: int = within(COUNT, 512)  # Sec. 4, "number of tokens output by the vision encoder"
    bf16: bool | Literal["auto"] = "auto"  # autocast to bfloat16; "auto": where the hardware multiplies it. Not in the paper
    chunk: int | None = within(COUNT, None)  # pictures, or texts, of one forward pass (gradient caching); None: all. Not in the paper
    activation_checkpointing: bool = False  # compute activations again in the backward pass: less memory. Not in the paper
    save_every: int = within(COUNT, 100)  # steps between checkpoints
    validate_every: int = within(COUNT, 100)  # steps between validations
    seed: int = within("[0, inf)", 0)

    def _check(self) -> None:
        if self.min_visual_tokens > self.max_visual_tokens:
            raise ValueError(f"min_visual_tokens = {self.min_visual_tokens} is above max_visual_tokens = {self.max_visual_tokens}")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(StageConfig):
    """Stage 1. The model that mines is trained alike with steps=1000, queries=256, negatives=0 (Sec. 4)."""

    steps: int = within(COUNT, 4000)  # Sec. 4
    lora: LoraConfig = LoraConfig(64, 128)  # Sec. 4, both towers
    queries: int = within(COUNT, 512)  # Sec. 4, N of eq. 2, over all processes
    negatives: int = within("[0, inf)", 7)  # Sec. 4, K = M/N − 1 of eq. 2 (512 queries, 4096 candidates)
    temperature: float = within("(0, inf)", 0.07)  # Sec. 4, τ before the first step
    temperature_parametrisation: Literal["log", "raw"] = "log"  # not in the paper; authors' code: "raw"
    learn_temperature: bool = True  # Sec. 3.1, 4.3
    temperature_factor: float = within("(0, inf)", 1.0)  # learning rate of τ's parameter over that of the others; not in the paper


@dataclass(frozen=True, kw_only=True)
class InstructConfig(StageConfig):
    """Stage 2: `images` × `instructions_per_image` queries a batch (Sec. 3.2)."""

    steps: int = within(COUNT, 100)  # Sec. 4
    lora: LoraConfig = LoraConfig(16, 32)  # Sec. 4, language model alone
    images: int = within(COUNT, 128)  # Sec. 4, "128 unique images"
    instructions_per_image: int = within(COUNT, 4)  # Sec. 4, "each image appearing four times"
    negatives: int = within("[0, inf)", 0)  # further captions of the frozen bank for each query; Sec. 3.2: in-batch negatives only


@dataclass(frozen=True, kw_only=True)
class MiningConfig(_Config):
    """Which captions become hard negatives (Sec. 3.2)."""

    epsilon: float | None = within("[0, 1]", 0.95)  # Sec. 4, share of the positive's similarity; None: no threshold
    pool: int = within(COUNT, 100)  # Sec. 3.2, "the 100 candidate captions below the threshold"
    negatives: int = within(COUNT, 7)  # Sec. 4, drawn from the pool
    strata: int | None = within(COUNT, None)  # 5 draws one of each five ranks, as the authors' released list does
    tile: int = within(COUNT, 1024)  # rows and columns multiplied at a time; memory, not results
    seed: int = within("[0, inf)", 0)

    def _check(self) -> None:
        if self.negatives * (self.strata or 1) > self.pool:
            groups = f" in groups of {self.strata}" if self.strata else ""
            raise ValueError(f"pool = {self.pool} cannot give negatives = {self.negatives}{groups}")

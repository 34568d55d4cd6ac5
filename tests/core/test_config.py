"""config: the paper's numbers, and refusal of everything that is not a number of this run."""

import math
from dataclasses import FrozenInstanceError

import pytest

from abc_core.config import InstructConfig, LoraConfig, MiningConfig, PretrainConfig


def test_the_defaults_are_the_papers_training_settings():
    stage1, stage2, mining = PretrainConfig(), InstructConfig(), MiningConfig()
    for stage in (stage1, stage2):
        assert (stage.learning_rate, stage.betas, stage.weight_decay, stage.warmup) == (4e-5, (0.9, 0.999), 1e-3, 0.03)
        assert (stage.max_visual_tokens, stage.label_smoothing) == (512, 0.0)
    assert (stage1.steps, stage1.queries, stage1.queries * (1 + stage1.negatives)) == (4000, 512, 4096)
    assert (stage1.lora, stage1.temperature, stage1.learn_temperature) == (LoraConfig(64, 128), 0.07, True)
    assert (stage2.steps, stage2.images, stage2.instructions_per_image, stage2.lora) == (100, 128, 4, LoraConfig(16, 32))
    assert (mining.epsilon, mining.pool, mining.negatives, mining.strata) == (0.95, 100, 7, None)


def test_numbers_from_yaml_take_the_type_of_their_field():
    config = PretrainConfig(learning_rate=1, betas=[0.9, 0.98], lora={"rank": 8, "alpha": 16})
    assert (type(config.learning_rate), config.betas, config.lora) == (float, (0.9, 0.98), LoraConfig(8, 16))
    assert config == PretrainConfig(learning_rate=1.0, betas=(0.9, 0.98), lora=LoraConfig(8, 16))


def test_what_may_be_none_or_infinite_may_be():
    assert MiningConfig(epsilon=None).epsilon is None
    assert MiningConfig(strata=5).strata == 5
    assert PretrainConfig(clip=math.inf).clip == math.inf


def test_a_config_does_not_change_once_it_is_checked():
    with pytest.raises(FrozenInstanceError):
        PretrainConfig().steps = 1


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (PretrainConfig, {"learning_rate": "1e-4"}, r"PretrainConfig.learning_rate = '1e-4' is of type str .*1\.0e-4.*expected float"),
        (PretrainConfig, {"steps": 1.5}, "PretrainConfig.steps = 1.5 is of type float; expected int"),
        (PretrainConfig, {"steps": True}, "steps = True is of type bool; expected int"),
        (PretrainConfig, {"steps": 0}, r"PretrainConfig.steps = 0 is out of range; it must lie in \[1, inf\)"),
        (PretrainConfig, {"negatives": -1}, "negatives = -1 is out of range"),
        (PretrainConfig, {"temperature": 0.0}, r"temperature = 0.0 is out of range; it must lie in \(0, inf\)"),
        (PretrainConfig, {"learning_rate": math.nan}, "learning_rate = nan is out of range"),
        (PretrainConfig, {"betas": (0.9, 1.0)}, "betas = .* is out of range"),
        (PretrainConfig, {"betas": (0.9,)}, "betas = .* is of type tuple"),
        (PretrainConfig, {"bf16": "yes"}, "bf16 = 'yes' is of type str; expected bool or Literal"),
        (PretrainConfig, {"temperature_parametrisation": "exp"}, "temperature_parametrisation = 'exp'"),
        (PretrainConfig, {"lora": {"rank": 8}}, "PretrainConfig.lora: LoraConfig needs alpha"),
        (InstructConfig, {"min_visual_tokens": 600}, "min_visual_tokens = 600 is above max_visual_tokens = 512"),
        (MiningConfig, {"epsilon": 1.5}, r"epsilon = 1.5 is out of range; it must lie in \[0, 1\]"),
        (MiningConfig, {"strata": 20}, "pool = 100 cannot give negatives = 7 in groups of 20"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_field(cls, values, message):
    with pytest.raises(ValueError, match=message):
        cls(**values)


def test_a_mapping_with_an_unknown_name_is_refused_with_its_source_and_the_known_names():
    with pytest.raises(ValueError, match=r"a100\.yaml: MiningConfig does not have epsilom; its fields are epsilon, pool"):
        MiningConfig.from_mapping({"epsilom": 0.9}, "a100.yaml")
    with pytest.raises(ValueError, match=r"a100\.yaml: MiningConfig\.pool = 'many'"):
        MiningConfig.from_mapping({"pool": "many"}, "a100.yaml")
    assert MiningConfig.from_mapping({"pool": 50}) == MiningConfig(pool=50)

import math

import pytest

from tagi_lightning.backbones import GenerationConfig
from tagi_lightning.data.ranges import check_range
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.generators import HypernetworkConfig
from tagi_lightning.lora import LoraConfig


@pytest.mark.parametrize(
    ("value", "limits", "told"),
    [
        (0, {"least": 1}, "--count must be at least 1, got 0"),
        (0, {"least": 1, "otherwise": "null for all"}, "--count must be at least 1, or null for all, got 0"),
        (0.0, {"above": 0, "most": 1}, "--count must be above 0 and at most 1, got 0.0"),
        (1.0, {"least": 0, "below": 1}, "--count must be at least 0 and below 1, got 1.0"),
        (math.nan, {"least": 0}, "--count must be at least 0, got nan"),
        (math.inf, {}, "--count must be finite, got inf"),
        (math.inf, {"least": 0}, "--count must be finite, at least 0, got inf"),
    ],
)
def test_a_number_outside_its_range_is_told_with_option_value_and_what_is_allowed(value, limits, told):
    with pytest.raises(ValueError, match=f"^{told}$"):
        check_range({"--good": None, "--count": value}, **limits)


def test_limits_belong_to_the_range_where_they_are_said_to():
    check_range({"least": 1, "most": 2, "none": None}, least=1, most=2)
    check_range({"inside": 1e-9}, above=0, below=1)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (GenerationConfig, {"max_new_tokens": 0}),
        (GenerationConfig, {"min_new_tokens": -1}),
        (GenerationConfig, {"min_new_tokens": 129}),
        (GenerationConfig, {"num_beams": 0}),
        (GenerationConfig, {"temperature": 0.0}),
        (GenerationConfig, {"top_p": 1.5}),
        (LoraConfig, {"rank": 0}),
        (LoraConfig, {"alpha": -1.0}),
        (LoraConfig, {"dropout": 1.0}),
        (HypernetworkConfig, {"hidden": 0}),
        (HypernetworkConfig, {"heads": 0}),
        (FusionConfig, {"width": 0}),
    ],
)
def test_configurations_refuse_numbers_out_of_their_ranges(kind, wrong):
    [(option, value)] = wrong.items()
    with pytest.raises(ValueError, match=rf"^(\w+\.)?{option} must be .*, got {value}$"):
        kind(**wrong)

import math
from dataclasses import replace

import pytest

from tagi_lightning.evaluation.ensemble import average_predictions
from tagi_lightning.evaluation.predictions import Prediction

ROW = Prediction("0", "t", "c", "d", "s", "", "no", ("yes",), ("yes", "no"), (-4.0, -1.0), (-2.0, -1.0), 0)
OTHER = replace(ROW, prediction="yes", logprob_sum=(-1.0, -9.0), logprob_mean=(-0.5, -9.0))


def test_one_member_is_its_own_ensemble():
    assert average_predictions([[ROW, OTHER]]) == [ROW, OTHER]


def test_choices_are_ranked_by_their_mean_over_the_members():
    (found,) = average_predictions([[ROW], [OTHER], [OTHER]])
    assert math.isclose(found.logprob_mean[0], -1.0)
    assert math.isclose(found.logprob_sum[1], -19 / 3)
    assert found.prediction == "yes"
    assert average_predictions([[ROW], [OTHER]]) == average_predictions([[OTHER], [ROW]])


def test_generated_answers_are_refused():
    written = Prediction("7", "titles", "c", "", "", "", "a", ("b",))
    with pytest.raises(ValueError, match=r"instance 7 of task titles has no answer choices"):
        average_predictions([[written], [written]])

"""Rules of anatomy on maps made by hand and on phantoms, and Dice by patient."""

import numpy as np
import pytest

from slicebook.errors import DataError, ShapeError
from slicebook.metrics.anatomy import RULES, anatomy_rules, dice, learn_reference, pass_rate
from slicebook.phantom.labels import BACKGROUND, BLADDER, BODY, BONE, PROSTATE, RECTUM
from slicebook.phantom.simulator import patient_volume

SPACING = (2.0, 2.0)  # a pixel is 4 mm², so a speck is up to two of them


def pelvis(shift=0):
    """A body with bones, the prostate in front of the rectum; the front is above."""
    labels = np.zeros((40, 60), np.uint8)
    labels[4:36, 4:56] = BODY
    labels[16:24, 8:14] = labels[16:24, 46:52] = BONE
    labels[10 : 18 + shift, 25:35] = PROSTATE
    labels[24 : 30 + shift, 27:33] = RECTUM
    return labels


def reference():
    maps = [pelvis(shift) for shift in (-1, 0, 1)]
    return learn_reference(maps, [SPACING] * 3)


def broken(labels):
    return anatomy_rules(labels, SPACING, reference()).broken


def changed(where, value):
    labels = pelvis()
    labels[where] = value
    return labels


def test_a_sound_map_meets_every_rule():
    rules = anatomy_rules(pelvis(), SPACING, reference())
    assert rules.passed
    assert rules.present == ("rectum", "prostate")
    assert set(rules.verdicts) == set(RULES)


def test_rules_of_an_absent_organ_are_not_judged():
    verdicts = anatomy_rules(pelvis(), SPACING, reference()).verdicts
    assert {name for name, met in verdicts.items() if met is None} == {
        name for name in RULES if name.startswith("bladder")
    }


def test_specks_are_ignored_up_to_ten_square_millimetres_in_all():
    specks = changed((np.array([8, 8]), np.array([8, 12])), PROSTATE)
    assert broken(specks) == ()
    specks[8, 16] = PROSTATE
    assert broken(specks) == ("prostate_in_one_piece",)


def test_an_organ_of_a_speck_is_not_there():
    labels = changed(np.s_[8, 8:10], BLADDER)
    assert anatomy_rules(labels, SPACING, reference()).present == ("rectum", "prostate")


def test_an_organ_in_two_pieces_is_caught():
    labels = changed(np.s_[27, 27:33], BODY)
    labels[30, 27:33] = RECTUM
    assert broken(labels) == ("rectum_in_one_piece",)


@pytest.mark.parametrize(
    "outside",
    [
        changed(np.s_[4:10, 25:35], BACKGROUND),  # open to the air
        changed(np.s_[:10, 28:30], PROSTATE),  # out of the body, to the edge of the slice
    ],
)
def test_an_organ_that_reaches_out_of_the_body_is_caught(outside):
    assert "prostate_inside" in broken(outside)


def test_an_organ_in_the_air_is_caught():
    labels = pelvis()
    labels[labels == PROSTATE] = BODY
    labels[1:3, 4:44] = PROSTATE
    assert broken(labels) == ("prostate_inside",)


def test_an_organ_in_a_shell_of_its_own_beside_the_body_is_caught():
    labels = pelvis()
    labels[labels == PROSTATE] = BODY
    labels = np.pad(labels, ((12, 0), (0, 0)))
    labels[1:12, 20:50] = BODY
    labels[2:10, 22:32] = PROSTATE
    assert broken(labels) == ("prostate_inside",)


def test_organs_that_touch_each_other_are_inside():
    labels = changed(np.s_[18:24, 29:31], RECTUM)
    assert anatomy_rules(labels, SPACING, reference()).verdicts["rectum_inside"] is True
    assert anatomy_rules(labels, SPACING, reference()).verdicts["prostate_inside"] is True


def test_a_map_upside_down_is_caught():
    assert broken(pelvis()[::-1].copy()) == ("prostate_before_rectum",)


def test_a_bladder_behind_the_rectum_is_caught():
    labels = pelvis()
    labels[32:35, 20:40] = BLADDER
    assert set(broken(labels)) == {"combination", "bladder_area", "bladder_before_rectum"}


@pytest.mark.parametrize("rows", [slice(20, 21), slice(24, 35)])
def test_an_organ_too_small_or_too_large_is_caught(rows):
    labels = pelvis()
    labels[labels == RECTUM] = BODY
    labels[rows, 27:33] = RECTUM
    assert broken(labels) == ("rectum_area",)


def test_areas_are_in_square_millimetres():
    fine = np.kron(pelvis(), np.ones((2, 2), np.uint8))
    assert anatomy_rules(fine, (1.0, 1.0), reference()).passed
    assert not anatomy_rules(fine, SPACING, reference()).passed


def test_the_range_of_areas_is_the_first_to_the_99th_percentile():
    low, high = reference().areas["rectum"]
    assert (low, high) == tuple(np.percentile([120, 144, 168], [1, 99]))


def test_labels_that_never_occur_together_are_caught():
    labels = pelvis()
    labels[labels == RECTUM] = BODY
    assert broken(labels) == ("combination",)
    assert broken(np.zeros((40, 60), np.uint8)) == ("combination",)


def test_another_numbering_is_refused():
    with pytest.raises(DataError, match="label 6, wanted 0 to 5"):
        anatomy_rules(changed(np.s_[20, 20], 6), SPACING, reference())


def test_no_reference_and_no_spacing_are_refused():
    with pytest.raises(DataError, match="training split"):
        learn_reference(iter(()), [])
    with pytest.raises(DataError, match="above 0"):
        anatomy_rules(pelvis(), (0.0, 2.0), reference())


def test_rates_stand_beside_each_other():
    sound = anatomy_rules(pelvis(), SPACING, reference())
    bad = anatomy_rules(pelvis()[::-1].copy(), SPACING, reference())
    # Patient a passes in 1 of 1, b in 1 of 3: 2/3 over patients, where slices would say 1/2.
    rates = pass_rate([sound, bad, bad, bad], [sound, sound, bad, bad], ["a", "b", "b", "b"], seed=0)
    assert rates.generated == 0.25
    assert rates.real == pytest.approx(2 / 3)
    assert rates.ratio == pytest.approx(0.375)
    assert rates.generated_interval[0] < 0.25 < rates.generated_interval[1]
    assert rates.real_interval[0] == pytest.approx(1 / 3)
    assert rates.by_rule["prostate_before_rectum"] == (0.25, 0.5)
    assert rates.by_rule["bladder_area"] == (None, None)


def test_a_rate_without_a_real_pass_has_no_ratio():
    bad = anatomy_rules(pelvis()[::-1].copy(), SPACING, reference())
    assert pass_rate([bad], [bad], ["a"], seed=0).ratio is None
    with pytest.raises(DataError, match="0 generated and 1 real"):
        pass_rate([], [bad], ["a"], seed=0)


def test_phantoms_of_new_patients_pass_and_stand_front_above():
    def maps(patients):
        volumes = [patient_volume(i, 0, slices=12, shape=(128, 64)) for i in patients]
        # To the display: rows from the front to the back.
        shown = [v.labels[:, ::-1, at].T.copy() for v in volumes for at in range(12)]
        return shown, (volumes[0].spacing[1], volumes[0].spacing[0])

    train, spacing = maps(range(4, 10))
    test, _ = maps(range(10, 13))
    learnt = learn_reference(train, [spacing] * len(train))
    results = [anatomy_rules(result, spacing, learnt) for result in test]
    assert np.mean([result.passed for result in results]) > 0.85
    assert {name for result in results for name in result.broken} <= {
        f"{o}_area" for o in ("bladder", "rectum", "prostate")
    }


def test_dice_by_hand():
    first = np.array([[3, 3, 0, 0]], np.uint8)
    second = np.array([[3, 0, 3, 3]], np.uint8)
    scores = dice([first], [second], ["a"], [3], seed=0)[3]
    assert scores.mean_of_patients == pytest.approx(2 * 1 / (2 + 3))
    assert scores.interval is None


def test_dice_pools_the_slices_of_a_patient_and_then_averages_patients():
    full, half, none = (np.array([row], np.uint8) for row in ([5, 5], [5, 0], [0, 0]))
    scores = dice([full, none, full], [half, half, full], ["a", "a", "b"], [5], seed=0)[5]
    # a: 2·1 / (2 + 2) over both slices, not the mean of 2/3 and 0. b: 1.
    assert scores.mean_of_patients == pytest.approx((0.5 + 1) / 2)
    assert scores.interval == (0.5, 1.0)
    assert (scores.patients, scores.slices) == (2, 2)


def test_a_patient_without_a_label_has_no_dice_for_it():
    none, full = np.zeros((1, 2), np.uint8), np.full((1, 2), 4, np.uint8)
    scores = dice([none, full], [none, full], ["a", "b"], [3, 4], seed=0)
    assert scores[3].mean_of_patients is None
    assert (scores[4].mean_of_patients, scores[4].patients) == (1.0, 1)


def test_masks_of_two_shapes_have_no_dice():
    with pytest.raises(ShapeError, match="same shape"):
        dice([np.zeros((2, 2), np.uint8)], [np.zeros((2, 3), np.uint8)], ["a"], [3], seed=0)

"""Curves of a training come from where it left them, and a model without any is no fault."""

import pytest

from slicebook.evaluation.report import COLUMNS, read_history


def test_every_training_of_a_run_tells_its_curves(trained):
    histories = read_history(trained.run, trained.run / "prior")
    assert set(histories) == set(COLUMNS)
    for name, history in histories.items():
        assert history.seconds > 0
        assert set(history.curves) == set(COLUMNS[name])
        for points in history.curves.values():
            steps = [step for step, _ in points]
            assert steps == sorted(steps)


def test_a_model_that_travelled_alone_has_none(tmp_path):
    assert read_history(tmp_path, tmp_path / "prior") == {}
    assert read_history(None, None) == {}


@pytest.mark.parametrize("text", ["", "step,seconds\n", "step,seconds,other\n3,1.5,2\n"])
def test_a_file_without_these_columns_is_no_history(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    assert read_history(tmp_path, None) == {}


def test_a_step_where_nothing_was_measured_is_left_out(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "step,seconds,train_loss,validation_loss\n1,2,0.5,\n2,4,0.25,0.75\n3,5,nan,0.5\n"
    )
    history = read_history(tmp_path, None)["tokenizer"]
    assert history.seconds == 5
    assert history.curves == {"train_loss": ((1, 0.5), (2, 0.25)), "validation_loss": ((2, 0.75), (3, 0.5))}

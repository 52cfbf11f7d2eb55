"""A comparison shows what reports hold, column by column, and says where columns cannot be compared."""

import json
import re

import pytest

from slicebook.cli import main
from slicebook.errors import ConfigError, DataError
from slicebook.reporting.comparison import compare_reports


def rows_of(comparison):
    """The cells of each measure."""
    return {row[0]: row[1:] for row in comparison.table()}


BESIDE = {
    "convention": "c", "generated": 0.3, "generated_range": [0.2, 0.4], "real": 0.75,
    "real_range": [0.5, 0.9], "interval": [0.1, 0.5],
}  # fmt: skip


def texture_alone(features):
    return {"texture": features["texture"]}


def test_each_report_has_a_column_under_the_name_of_its_folder(variant):
    comparison = compare_reports([variant("small"), variant("large") / "report.json"])
    assert comparison.table()[0] == ("measure", "small", "large")
    assert {len(row) for row in comparison.table()} == {3}


def test_folders_of_one_name_are_told_apart_by_what_is_above_them(variant):
    folders = [variant("a/test"), variant("b/test"), variant("b/other")]
    assert compare_reports(folders).titles == ("a/test", "b/test", "other")
    assert compare_reports([folders[0], folders[0]]).titles == ("test", "test (2)")


def test_the_four_answers_stand_first(variant):
    comparison = compare_reports([variant("a"), variant("b", downstream=None)])
    assert [row[0] for row in comparison.table()[1:5]] == [
        "Are reconstructions accurate?",
        "Are samples realistic?",
        "Does it copy patients?",
        "Are samples useful for training?",
    ]
    assert rows_of(comparison)["Does it copy patients?"] == ("invalid", "invalid")
    assert rows_of(comparison)["Are samples useful for training?"][1] == "not requested"


def test_a_score_stands_with_its_interval(variant):
    key = "reconstruction__scores__ssim_foreground__"
    other = variant("b", **{key + "mean_of_patients": 0.75, key + "interval": [0.7, 0.81]})
    assert rows_of(compare_reports([variant("a"), other]))["ssim_foreground"][1] == "0.750 [0.700, 0.810]"


def test_a_distance_stands_with_the_95th_percentile_of_real_patients(variant):
    other = variant("b", generation__features__texture__samples__kernel_distance=BESIDE)
    cells = rows_of(compare_reports([variant("a"), other]))["texture: kernel distance"]
    assert cells[1] == "0.3 [0.1, 0.5], up to 0.9"


def test_a_share_stands_as_x_of_y(variant):
    key = "generation__features__texture__{}__coverage"
    other = variant("b", **{key.format(side): BESIDE for side in ("samples", "tokenizer_only")})
    cells = rows_of(compare_reports([variant("a"), other]))["texture: coverage"]
    assert cells == ("–", "0.3 [0.1, 0.5], real 0.75")


def test_the_audit_stands_with_what_was_planted_last(variant):
    def seen(controls):
        return [*controls[:-1], controls[-1] | {"detected": 0.5, "planted": 6}]

    rows = rows_of(compare_reports([variant("a"), variant("b", memorization__copies__controls=seen)]))
    assert rows["samples beyond the gap"][0] == "0 (copies from 2) and 0 (from 1) of 24"
    assert rows["planted copies detected"][1] == "50% of 6"


def test_the_advantage_over_jpeg_2000_stands_where_it_was_coded(variant):
    coded = variant("a", reconstruction__codecs__jpeg2000__advantage__ssim_foreground__mean_of_patients=0.1)
    cells = rows_of(compare_reports([coded, variant("b", reconstruction__codecs=None)]))
    assert cells["ssim_foreground minus JPEG 2000"][0].startswith("0.100 [")
    assert cells["ssim_foreground minus JPEG 2000"][1] == "–"


def test_a_measure_that_no_report_has_is_left_out(variant):
    both = compare_reports([variant("a", memorization=None), variant("b", memorization=None)])
    assert not [row for row in both.rows if "copies" in row.measure and "?" not in row.measure]
    assert all(any(row.cells) for row in both.rows)


def test_a_measure_that_one_report_has_is_kept(variant):
    rows = rows_of(compare_reports([variant("a", memorization=None), variant("b")]))
    assert rows["membership AUC"][0] == "–"
    assert rows["membership AUC"][1] != "–"


def test_reports_that_differ_in_their_model_alone_are_compared(variant):
    change = {"provenance__model__weights_sha256": "0" * 64, "reconstruction__headline": "ssim_foreground"}
    other = variant("b", **change)
    assert compare_reports([variant("a"), other]).differences == ()


def test_a_part_that_was_not_judged_is_no_difference(variant):
    comparison = compare_reports(
        [variant("a"), variant("b", generation=None, memorization=None, downstream=None)]
    )
    assert comparison.differences == ()


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("provenance__data__split_hash", "f" * 64, "split hash is .* in a and c, and ffffffffffff in b"),
        ("provenance__data__spacing", 2.0, "preparation is .*native pixels.* in a and c, and .*2 mm.* in b"),
        ("split", "test", "split is validation in a and c, and test in b"),
        ("sampling__samples", 99, "number of samples is 24 in a and c, and 99 in b"),
        ("sampling__settings__steps", 5, "sampling is .* in a and c, and .*steps 5.* in b"),
        (
            "generation__features",
            texture_alone,
            "features is texture, structure and efficientnet.* in a and c, and texture in b",
        ),
        ("downstream__steps", 300, "segmenter is 4 steps in a and c, and 300 steps in b"),
        ("provenance__seed", 7, "seed is 42 in a and c, and 7 in b"),
        (
            "downstream__convention",
            "other",
            "Dice is computed by definition 1 in a and c, and by definition 2 in b",
        ),
    ],
)
def test_what_forbids_a_comparison_is_said_with_the_report_that_differs(key, value, wanted, variant):
    folders = [variant("a"), variant("b", **{key: value}), variant("c")]
    (difference,) = compare_reports(folders).differences
    assert re.search(wanted, difference), difference


def test_another_definition_is_told_under_the_title_of_its_report(variant):
    comparison = compare_reports([variant("a"), variant("b", downstream__convention="Dice, otherwise")])
    assert comparison.conventions["Dice in b"] == "Dice, otherwise"
    assert comparison.conventions["Dice"].startswith("Dice of each label")


def test_what_a_report_warns_of_is_passed_on_under_its_name(variant):
    comparison = compare_reports([variant("a", warnings=["TRAINED ON THESE"]), variant("b", warnings=[])])
    assert comparison.warnings == ("a: TRAINED ON THESE",)
    assert "a: TRAINED ON THESE" in comparison.page()


@pytest.mark.parametrize("names", [[], ["a"]])
def test_fewer_than_two_reports_are_refused(names, variant):
    with pytest.raises(ConfigError, match="wanted two or more; give another"):
        compare_reports([variant(name) for name in names])


def test_a_folder_without_a_report_is_refused(variant, tmp_path):
    with pytest.raises(DataError, match="there is no report"):
        compare_reports([variant("a"), tmp_path])


def test_the_command_prints_the_table_and_warns(variant, capsys):
    assert main.main(["compare", str(variant("a")), str(variant("b", provenance__seed=7))]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0].split() == ["measure", "a", "b"]
    assert "warning: not comparable: seed is 42 in a, and 7 in b" in printed.err


def test_the_command_writes_the_page_with_its_warnings(variant, tmp_path):
    out = tmp_path / "new" / "table.md"
    folders = [str(variant("a|b")), str(variant("c", provenance__seed=7))]
    assert main.main(["compare", *folders, "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert "are not comparable" in page
    assert "seed is 42" in page
    assert r"| measure | a\|b | c |" in page
    assert "- ssim_foreground: SSIM of record" in page
    assert main.main(["compare", *folders, "--out", str(out)]) == 0  # over its own


def test_a_file_of_somebody_else_is_left_alone(variant, tmp_path, capsys):
    notes = tmp_path / "notes.md"
    notes.write_text("mine")
    assert main.main(["compare", str(variant("a")), str(variant("b")), "--out", str(notes)]) == 1
    assert "was not written by `slicebook compare`" in capsys.readouterr().err
    assert notes.read_text() == "mine"


def test_the_command_prints_a_record(variant, capsys):
    assert main.main(["compare", str(variant("a")), str(variant("b")), "--json"]) == 0
    comparison = json.loads(capsys.readouterr().out)
    (row,) = [row for row in comparison["rows"] if row["measure"] == "patients"]
    assert row["cells"][0] == {"text": "2", "value": 2}

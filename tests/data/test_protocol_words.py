"""Series descriptions: protocols are shown, and nothing that may name a patient."""

from pathlib import Path

import pytest
from helpers.dicom import stack

from slicebook.cli import main
from slicebook.data.check import check
from slicebook.data.layouts.protocol_words import WORDS, shown_words


@pytest.mark.parametrize(
    "description",
    [
        *("t2_tse_tra", "T1 SE AX", "ep2d_diff_b50_400_800_tra_ADC", "3D T2 SPACE cor ISO", "dwi b1400"),
        *("AX T2 FSE FS", "Sag FLAIR", "t2_spc_rst_axial obl_Prostate", "dynamic_tra_fov200 p2", "mDIXON"),
    ],
)
def test_protocols_are_shown_as_they_are(description):
    assert shown_words(description, "") == description


@pytest.mark.parametrize(
    "secret",
    [
        *(
            "Miller",
            "MÜLLER",
            "Jane",
            "4711",
            "19500101",
            "1950",
            "2000",
            "1985-03-12",
            "P0017",
            "X12",
            "007",
        ),
        *("Dr.Mayer", "t2Miller", "Charité", "山田", "m63y", "A1B2C3", "b19850312", "b1985"),
    ],
)
def test_what_may_name_a_patient_is_hidden(secret):
    shown = shown_words(f"t2 {secret} tra", "")
    assert shown.startswith("t2 ")
    assert shown.endswith(" tra")
    assert "…" in shown
    assert not {
        word for word in shown[3:-4].replace("-", ".").split(".") if word not in ("…", "3", "12", "Dr")
    }


def test_a_word_of_the_patients_id_is_hidden_though_it_is_one_of_a_protocol():
    assert shown_words("t2_tra 17 cor", "COR-17") == "t2_tra … …"
    assert shown_words("fov200 t2", "x_200") == "… t2"


def test_the_words_are_lower_case_and_no_longer_than_protocols():
    assert {word for word in WORDS if word != word.lower() or len(word) > 12} == set()


def write(folder: Path) -> None:
    for person, name in enumerate(("Miller", "Schmidt")):
        stack(
            folder / str(person),
            series=f"1.2.{person}",
            PatientID=f"P{person}",
            SeriesDescription=f"t2_tra {name}",
        )


@pytest.mark.fault("patient data in a series description", "shown as …, unless --show-descriptions is given")
def test_check_hides_names_in_descriptions_unless_it_is_told_to_show_them(tmp_path, capsys):
    write(tmp_path)
    report = check(tmp_path)
    assert report.series == {"t2_tra …, axial": 2}
    assert "Miller" not in report.to_json() + str(report.rows())
    shown = check(tmp_path, show_descriptions=True).series
    assert shown == {"t2_tra Miller, axial": 1, "t2_tra Schmidt, axial": 1}
    for words, count in (([], 0), (["--json"], 0), (["--show-descriptions"], 1)):
        main.main(["check", str(tmp_path), *words])
        assert capsys.readouterr().out.count("Miller") == count

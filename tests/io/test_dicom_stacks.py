"""Which slices make one volume: parted by what headers tell, joined where they are seamless, else refused."""

import numpy as np
import pytest
from helpers.dicom import AXIAL, CORONAL, enhanced, pixels_of, save, slice_of, stack
from numpy.testing import assert_array_equal
from pydicom import Dataset

from slicebook.errors import DataError
from slicebook.io.dicom_series import find_dicom_series, read_dicom_series


def twice(folder, keyword, values, **tags):
    """Save a stack per value of a header field, all in one folder and series, at the same positions."""
    for n, value in enumerate(values):
        for k in range(3):
            dataset = slice_of(pixels_of(10 * n + k), (0, 0, 3 * k), **{keyword: value}, **tags)
            save(dataset, folder / f"{n}-{k}.dcm")


@pytest.mark.fault("several echoes, b-values or times in one series", "a volume of each")
@pytest.mark.fault("magnitude and phase in one series", "a volume of each")
@pytest.mark.parametrize(
    ("keyword", "values", "parts"),
    [
        ("EchoTime", (4.92, 7.38), ("TE 4.92 ms", "TE 7.38 ms")),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), None),
        ("ComplexImageComponent", ("MAGNITUDE", "PHASE"), None),
        ("DiffusionBValue", (0, 800), ("b 0 s/mm²", "b 800 s/mm²")),
        ("TemporalPositionIdentifier", (1, 2), ("time 1", "time 2")),
        ("AcquisitionNumber", (1, 2), ("acquisition 1", "acquisition 2")),
        ("InversionTime", (100, 900), ("TI 100 ms", "TI 900 ms")),
        ("FlipAngle", (5, 20), ("flip angle 5°", "flip angle 20°")),
    ],
)
def test_slices_at_one_position_are_parted_by_what_their_headers_tell(tmp_path, keyword, values, parts):
    twice(tmp_path, keyword, values)
    all_series = find_dicom_series(tmp_path)
    assert [series.frames for series in all_series] == [3, 3]
    assert len({series.key for series in all_series}) == 2
    if parts is not None:
        assert tuple(series.parts[0] for series in all_series) == parts
    assert_array_equal(read_dicom_series(all_series[1]).array[:, :, 2], pixels_of(12).T)
    assert not any("Secret" in series.label or "SECRET" in series.label for series in all_series)


@pytest.mark.parametrize(
    ("group", "creator", "element", "vr", "values"),
    [
        (0x0019, "SIEMENS MR HEADER", 0x0C, "IS", (0, 800)),
        (0x0043, "GEMS_PARM_01", 0x39, "IS", ([1000000000, 8, 0, 0], [1000000800, 8, 0, 0])),
        (0x0043, "GEMS_PARM_01", 0x2F, "SS", (0, 1)),
        (0x0043, "GEMS_PARM_01", 0x30, "SS", (2, 0)),
        (0x2001, "Philips Imaging DD 001", 0x03, "FL", (0.0, 800.0)),
        (0x0065, "Image Private Header", 0x09, "FD", (0.0, 800.0)),
    ],
)
def test_vendors_own_tags_part_what_nothing_else_does(tmp_path, group, creator, element, vr, values):
    for n, value in enumerate(values):
        for k in range(3):
            dataset = slice_of(pixels_of(10 * n + k), (0, 0, 3 * k))
            dataset.private_block(group, creator, create=True).add_new(element, vr, value)
            save(dataset, tmp_path / f"{n}-{k}.dcm")
    assert [series.frames for series in find_dicom_series(tmp_path)] == [3, 3]


@pytest.mark.fault("two slices at one place", "refused where no header parts them")
def test_what_headers_cannot_part_is_refused_with_the_reason(tmp_path):
    twice(tmp_path, "InstanceNumber", (1, 2))
    (series,) = find_dicom_series(tmp_path)
    with pytest.raises(
        DataError, match=r"same position .* no image type, echo, b-value, time or acquisition number"
    ):
        read_dicom_series(series)


def test_a_time_that_differs_from_slice_to_slice_parts_nothing(tmp_path):
    for n in range(2):
        for k in range(6):
            dataset = slice_of(
                pixels_of(k), (0, 0, 3 * k), TriggerTime=100 * n + k, AcquisitionNumber=6 * n + k
            )
            save(dataset, tmp_path / f"{n}-{k}.dcm")
    assert [series.frames for series in find_dicom_series(tmp_path)] == [12]


@pytest.mark.fault("sequential CT, an acquisition number per rotation", "one volume")
def test_one_acquisition_number_per_rotation_is_one_volume(tmp_path):
    for k in range(8):
        save(slice_of(pixels_of(k), (0, 0, 3 * k), AcquisitionNumber=1 + k // 2), tmp_path / f"{k}.dcm")
    assert [series.frames for series in find_dicom_series(tmp_path)] == [8]


def test_a_change_of_thickness_makes_two_volumes(tmp_path):
    for k, height in enumerate((0, 4, 8, 12, 19, 26, 33)):
        thickness = 4 if k < 4 else 7
        dataset = slice_of(pixels_of(k), (0, 0, height), AcquisitionNumber=k, SliceThickness=thickness)
        save(dataset, tmp_path / f"{k}.dcm")
    all_series = find_dicom_series(tmp_path)
    assert sorted(series.frames for series in all_series) == [3, 4]
    assert {read_dicom_series(series).spacing[2] for series in all_series} == {4, 7}


@pytest.mark.fault(
    "UIDs shared by people after anonymising", "the same place in two folders is never one stack"
)
def test_the_same_place_in_two_folders_is_never_one_stack(tmp_path):
    stack(tmp_path / "person1", PatientID="ANON")
    stack(tmp_path / "person2", PatientID="ANON")
    all_series = find_dicom_series(tmp_path)
    assert [{file.parent.name for file in series.files} for series in all_series] == [
        {"person1"},
        {"person2"},
    ]
    for series in all_series:
        read_dicom_series(series)


def test_a_named_patient_keeps_even_slices_of_shared_uids_apart_and_readable(tmp_path):
    stack(tmp_path / "p1", heights=(0, 3, 6))
    for k in range(3):  # the identifiers in one patient's own files differ
        save(slice_of(pixels_of(k), (0, 0, 9 + 3 * k), PatientID=f"X{k}"), tmp_path / "p2" / f"{k}.dcm")
    all_series = find_dicom_series(tmp_path, patient_of=lambda path: path.parent.name)
    assert [(series.patient_id, read_dicom_series(series).array.shape[2]) for series in all_series] == [
        ("p1", 3),
        ("p2", 3),
    ]


@pytest.mark.fault("a series UID per slice", "one volume where they are even")
def test_slices_with_a_series_uid_each_are_joined_where_they_are_even(tmp_path):
    for k in range(4):
        save(slice_of(pixels_of(k), (0, 0, 3 * k), series=f"1.2.{k}", SeriesNumber=7), tmp_path / f"{k}.dcm")
    (series,) = find_dicom_series(tmp_path)
    assert read_dicom_series(series).array.shape[2] == 4


@pytest.mark.fault("a series UID per slice", "apart, with a note, where nothing shows that they belong")
@pytest.mark.parametrize("heights", [(0, 3, 10), (0, 3)])
def test_slices_with_a_series_uid_each_stay_apart_where_nothing_shows_that_they_belong(tmp_path, heights):
    for k, height in enumerate(heights):
        save(slice_of(pixels_of(k), (0, 0, height), series=f"1.2.{k}"), tmp_path / f"{k}.dcm")
    assert len(find_dicom_series(tmp_path)) == len(heights)


def enhanced_frames(traits, orientations=None):
    """Return an enhanced file with two frames at each of three positions; `traits` sets one's group."""
    dataset = enhanced((0, 3, 6, 0, 3, 6))
    for n, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        traits(group, n // 3)
    if orientations is not None:
        del dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
        for n, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            plane = Dataset()
            plane.ImageOrientationPatient = orientations[n // 3]
            group.PlaneOrientationSequence = [plane]
    return dataset


def _item(group, sequence, **values):
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    setattr(group, sequence, [item])


@pytest.mark.fault("two b-values in one enhanced file", "a volume of each")
@pytest.mark.parametrize(
    "traits",
    [
        lambda group, n: _item(group, "MRDiffusionSequence", DiffusionBValue=800.0 * n),
        lambda group, n: _item(group, "MREchoSequence", EffectiveEchoTime=5.0 + n),
        lambda group, n: _item(group, "FrameContentSequence", TemporalPositionIndex=1 + n),
        lambda group, n: _item(group, "MRImageFrameTypeSequence", ComplexImageComponent=("PHASE", "REAL")[n]),
    ],
)
def test_frames_of_an_enhanced_file_are_parted_as_slices_are(tmp_path, traits):
    save(enhanced_frames(traits), tmp_path / "enhanced.dcm")
    all_series = find_dicom_series(tmp_path)
    assert [(series.frames, series.frame_numbers) for series in all_series] == [
        (3, ((0, 1, 2),)),
        (3, ((3, 4, 5),)),
    ]
    second = read_dicom_series(all_series[1])
    assert_array_equal(second.array[:, :, 1], 5 * pixels_of(4).T.astype(np.float32))


def test_frames_of_two_orientations_are_two_volumes(tmp_path):
    save(enhanced_frames(lambda *_: None, (AXIAL, CORONAL)), tmp_path / "enhanced.dcm")
    all_series = find_dicom_series(tmp_path)
    assert sorted(series.plane for series in all_series) == ["axial", "coronal"]


@pytest.mark.fault(
    "two b-values in one enhanced file", "refused with the frames named where nothing parts them"
)
def test_frames_that_nothing_parts_are_named(tmp_path):
    save(enhanced_frames(lambda *_: None), tmp_path / "enhanced.dcm")
    (series,) = find_dicom_series(tmp_path)
    with pytest.raises(DataError, match=r"frame 1 of enhanced\.dcm and frame 4 of enhanced\.dcm are"):
        read_dicom_series(series)

"""The page: one file that needs nothing else, tells every part, and trusts no text that it is given."""

import re
from html.parser import HTMLParser

import pytest

from slicebook.errors import DataError
from slicebook.evaluation.report import read_report
from slicebook.reporting.html import PAGE_NAME, write_page


class Read(HTMLParser):
    """What a page refers to, its texts, and the ids of its sections."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.sections, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):  # noqa: D102
        values = dict(attributes)
        self.sources += [values[name] for name in ("src", "href") if name in values]
        if tag == "section" and "id" in values:
            self.sections.append(values["id"])
        assert tag != "script"
        assert not [name for name in values if name.startswith("on")]

    def handle_data(self, data):  # noqa: D102
        self.texts.append(data)


@pytest.fixture(scope="module")
def page(evaluated):
    return write_page(evaluated).read_text(encoding="utf-8")


def test_the_page_needs_nothing_but_itself(page):
    read = Read(page)
    assert read.sources
    assert [source[:40] for source in read.sources if not source.startswith(("data:", "#"))] == []
    assert "url(" not in page
    assert "@import" not in page


def test_every_part_has_its_section(page):
    assert Read(page).sections == [
        "reconstruction",
        "generation",
        "memorization",
        "downstream",
        "training",
        "provenance",
    ]


def test_every_picture_beside_the_report_is_in_the_page(page, evaluated):
    pictures = [source for source in Read(page).sources if source.startswith("data:image/png")]
    assert len(pictures) == len(list(evaluated.glob("*.png")))


def test_a_part_that_was_not_judged_has_no_section(variant):
    text = write_page(variant("report", downstream=None, memorization=None)).read_text(encoding="utf-8")
    assert Read(text).sections == ["reconstruction", "generation", "training", "provenance"]


def test_what_could_not_be_judged_says_why(variant):
    change = {"downstream": None, "skipped": {"downstream": "there are no masks to teach with"}}
    read = Read(write_page(variant("report", **change)).read_text(encoding="utf-8"))
    assert "left-out" in read.sections
    assert any("there are no masks" in text for text in read.texts)


def test_a_prior_by_itself_has_a_page(variant):
    def alone(made):
        return made | {"model": None}

    change = {"reconstruction": None, "provenance": alone, "training": {}}
    read = Read(write_page(variant("report", **change)).read_text(encoding="utf-8"))
    assert read.sections == ["generation", "memorization", "downstream", "provenance"]


def test_text_of_the_report_is_no_markup(variant):
    change = {"warnings": ["<script>alert(1)</script>"], "provenance__model__recipe__name": "<b>bold</b>"}
    text = write_page(variant("report", **change)).read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "<b>bold" not in text
    assert "&lt;script&gt;" in text


def test_numbers_of_the_page_are_those_of_the_report(page, evaluated):
    report = read_report(evaluated)
    text = " ".join(Read(page).texts)
    assert report.reconstruction.scores["ssim_foreground"].in_words() in text
    assert report.memorization.copies.verdict in text
    assert report.provenance["data"]["split_hash"] in text
    for measure in report.generation.measures():
        assert re.search(rf"{re.escape(measure.measure)}", text)


def test_large_numbers_are_readable(variant):
    change = {"generation__features__texture__samples__frechet_distance__generated": 3091.7}
    text = write_page(variant("report", **change)).read_text(encoding="utf-8")
    assert "3,092" in text
    assert not re.search(r">[\d.]+e\+\d+<", text)


def test_a_folder_without_a_report_says_how_to_get_one(tmp_path):
    with pytest.raises(DataError, match="there is no report; run first: slicebook evaluate"):
        write_page(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"schema_version": 1}', "no json"])
def test_a_report_that_cannot_be_read_is_refused(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(DataError, match="is not a report of this version of Slicebook"):
        write_page(tmp_path)
    assert not (tmp_path / PAGE_NAME).exists()


def test_another_versions_report_is_refused(variant):
    with pytest.raises(DataError, match="is not a report of this version of Slicebook"):
        read_report(variant("report", schema_version=1))

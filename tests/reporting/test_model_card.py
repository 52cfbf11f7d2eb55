"""A card says what the report holds, what it does not hold, and nothing that could name a person."""

import csv
import re
import shlex
from importlib.resources import files

import pytest

from slicebook.cli import main
from slicebook.errors import ConfigError, DataError
from slicebook.evaluation.report import read_report
from slicebook.reporting.model_card import model_card, write_card
from slicebook.reporting.verdicts import PATIENT_GROUPS, Verdict, verdicts

SECTIONS = [
    "Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data",
    "Quantitative analyses", "Ethical considerations", "Caveats and recommendations",
    "How to reproduce these numbers",
]  # fmt: skip


@pytest.fixture
def told(variant):
    """Return the card of the tiny report, some values changed."""
    return lambda **changes: model_card(read_report(variant("report", **changes)))


@pytest.fixture(scope="module")
def whole(evaluated):
    """The card of the tiny report."""
    return model_card(read_report(evaluated))


def part(text, title):
    """One section of a card."""
    return re.split(rf"^#+ {re.escape(title)}$", text, flags=re.MULTILINE)[1].split("\n#")[0]


# --- What it says


def test_it_has_the_sections_of_a_model_card(whole):
    assert re.findall("^## (.*)$", whole, re.MULTILINE) == SECTIONS


def test_it_says_what_it_is_not(whole):
    assert "not a medical device" in whole[:400]
    assert "diagnosis" in part(whole, "Intended use")


def test_no_number_in_it_was_typed_by_hand():
    """But for the paper that its headings are from, and the interval that intensities lie in."""
    template = (files("slicebook.reporting") / "templates" / "model_card.md.j2").read_text(encoding="utf-8")
    known = ("2019", "arxiv.org/abs/1810.03993", "[-1, 1]", "2D", "controls[-1]", ".md.j2")
    for name in known:
        template = template.replace(name, "")
    assert re.findall(r".*\d.*", template) == []


def test_its_answers_are_those_of_the_page(whole, evaluated):
    for verdict in verdicts(read_report(evaluated)):
        assert f"| {verdict.question} | {verdict.answer} | {verdict.finding} |" in whole
        assert f"- {verdict.question} {verdict.rule}" in whole


def test_scores_stand_with_their_intervals_and_conventions(whole, evaluated):
    score = read_report(evaluated).reconstruction.scores["ssim_foreground"]
    section = part(whole, "Are reconstructions accurate?")
    assert f"| ssim_foreground | {score.in_words()} |" in section
    assert f"- ssim_foreground: {score.convention}" in section


def test_samples_stand_beside_real_patients_and_the_tokenizer_alone(told):
    beside = {
        "convention": "c", "generated": 0.3, "generated_range": [0.2, 0.4], "real": 0.75,
        "real_range": [0.5, 0.9], "interval": [0.1, 0.5],
    }  # fmt: skip
    section = part(
        told(
            generation__features__texture__samples__kernel_distance=beside,
            generation__features__texture__tokenizer_only__kernel_distance=beside | {"generated": 0.25},
        ),
        "Are samples realistic?",
    )
    assert "| texture: kernel distance | 0.3 [0.1, 0.5] | 0.75 | [0.5, 0.9] | 0.25 |" in section


def test_the_card_says_how_samples_were_drawn(told):
    section = part(told(sampling__settings__decoder_steps=7), "Are samples realistic?")
    assert "decoder steps 7" in " ".join(section.split())


def test_what_the_segmenter_learnt_stands_by_label(told):
    section = part(
        told(downstream__generated__mean=0.5, downstream__training_set__mean=0.8),
        "Are samples useful for training?",
    )
    assert "| mean | 0.5 | 0.8 |" in section


def test_a_label_that_real_slices_taught_nothing_of_is_named(told):
    text = told(downstream__training_set__labels__3__mean_of_patients=0.0)
    assert re.search(
        r"Label (\d, )*3(, \d)*: the segmenter trained on the training set has a Dice of zero", text
    )


def test_the_audit_stands_with_its_control_and_what_it_cannot_see(whole):
    section = part(whole, "Does it copy patients?")
    assert "| 5% | 1 | 0% |" in section
    assert "What the audit cannot detect:" in section
    assert "another size than the samples: 6 were not searched" in section


def test_the_model_is_told_by_settings_training_and_weights(whole, evaluated):
    made = read_report(evaluated).provenance
    section = part(whole, "Model details")
    assert "| codebook sizes | 16 and 8, dimension 4 |" in section
    assert "| tokens per slice | 40 (32 + 8), mean of slices |" in section
    assert "| denoising | detail below 2 times the noise level is not reconstructed |" in section
    for model in ("model", "prior"):
        assert made[model]["weights_sha256"] in section
    assert re.search(r"\| prior \| 4 \| 24 \| \d+ \| \d+ \| .* \| cpu \| 4 \| 42 \|", section)


def test_the_data_are_told_by_counts_and_hash(whole, evaluated):
    data = read_report(evaluated).provenance["data"]
    section = part(whole, "Evaluation data")
    assert "| size | native |" in section
    assert "| validation | 2 | 2 | 12 | 0 |" in section
    assert data["split_hash"] in section


@pytest.mark.parametrize(
    ("split", "statement"),
    [
        ("test", "used neither for training nor for selecting the checkpoint"),
        ("validation", "used to select the checkpoint: their scores are slightly optimistic"),
        ("train", "was trained on these patients"),
    ],
)
def test_it_says_what_the_models_saw_of_the_patients(split, statement, told):
    assert statement in part(told(split=split), "Evaluation data")


def test_data_of_another_training_are_said_to_be_other(told):
    text = told(provenance__data__split_hash="f" * 64)
    assert "whether a patient is in both" in part(text, "Evaluation data")
    assert "**Another data set than the evaluation data.**" in part(text, "Training data")


def test_what_the_report_warns_of_stands_before_any_section(told):
    assert "- LOOK OUT" in told(warnings=["LOOK OUT"]).split("## ")[0]


# --- What it says of patients


@pytest.mark.parametrize(
    ("valid", "copies_found", "statement"),
    [
        (True, True, "copies of training slices were found. Do not share any sample"),
        (False, True, "copies of training slices were found. Do not share any sample"),
        (True, False, "no copies were found among these, by an audit that detected 0% of 1"),
        (False, False, "the audit is not valid"),
    ],
)
def test_what_may_be_done_with_samples_hangs_on_the_audit(valid, copies_found, statement, told):
    text = told(memorization__copies__valid=valid, memorization__copies__copies_found=copies_found)
    assert statement in part(text, "Ethical considerations")


@pytest.mark.parametrize(
    ("interval", "patients", "statement"),
    [
        ([0.6, 0.8], 6, "they reveal training patients better than chance"),
        ([0.4, 0.8], 6, "one membership-inference attack was not better than chance"),
        ([0.6, 0.8], 5, "too few patients to evaluate"),
        (None, 6, "too few patients to evaluate"),
    ],
)
def test_what_may_be_done_with_weights_hangs_on_membership(interval, patients, statement, told):
    change = {"interval": interval, "training_patients": 6, "held_out_patients": patients}
    text = told(**{f"memorization__membership__{name}": value for name, value in change.items()})
    assert f"- weights: {statement}" in text.replace("*", "")


@pytest.mark.parametrize("split", ["train", "test"])
def test_it_says_whose_slices_judge(split, told):
    text = told(split=split)
    assert f"2 {PATIENT_GROUPS[split]}. The reference" in text
    assert f"Dice on {PATIENT_GROUPS[split]} of a segmenter" in text


def test_without_an_audit_samples_and_weights_are_guarded(told):
    section = part(told(memorization=None), "Ethical considerations")
    assert "not searched for copies. Protect" in section
    assert "weights: not evaluated. Protect" in section


def test_it_names_no_person_and_no_place(told, evaluated):
    text = told(
        provenance__prior__classes=["ward-mueller"],
        provenance__model__file="mueller.safetensors",
        provenance__model__recipe__description="of mueller's patients",
    )
    with (evaluated / "patients.csv").open(encoding="utf-8") as file:
        patients = [row["patient"] for row in csv.DictReader(file)]
    assert patients
    assert [name for name in ("mueller", *patients, str(evaluated.parent)) if name in text] == []


def test_why_a_part_was_not_judged_is_not_repeated_for_errors_name_places(told, monkeypatch):
    with_reason = Verdict("Does it copy?", "skipped", "Why: prepared-mueller: too few.", "Rule.")
    monkeypatch.setattr("slicebook.reporting.model_card.verdicts", lambda _: (with_reason,) * 4)
    assert "mueller" not in told()


# --- What is missing


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("reconstruction", "Are reconstructions accurate?"),
        ("generation", "Are samples realistic?"),
        ("memorization", "Does it copy patients?"),
        ("downstream", "Are samples useful for training?"),
    ],
)
def test_a_part_that_was_not_judged_is_said_to_be_so(name, title, told):
    text = told(**{name: None})
    assert part(text, title).strip() == "Not evaluated."
    assert f"| {title} | not requested | Not evaluated. |" in text
    assert f"- {title} Not evaluated." in part(text, "Caveats and recommendations")


def test_a_tokenizer_alone_has_a_card_that_speaks_of_no_samples(told):
    text = told(provenance__prior=None, generation=None, memorization=None, downstream=None)
    assert "- samples:" not in text
    assert "prior" not in part(text, "Model details")


def test_a_prior_alone_has_a_card(told):
    text = told(provenance__model=None, reconstruction=None)
    assert "SHA-256 of the prior weights" in text
    assert "SHA-256 of the tokenizer weights" not in text


def test_text_of_a_report_breaks_no_table_and_no_page(told):
    text = told(provenance__model__recipe__name="a | b\n# <script>")
    assert text.startswith("# Model card: a \\| b # &lt;script>\n")


# --- The file


def test_it_lies_beside_the_report_or_where_asked(variant, tmp_path):
    folder = variant("report")
    assert write_card(folder / "report.json") == folder / "MODEL_CARD.md"
    assert write_card(folder, tmp_path / "new" / "CARD.md").is_file()


def test_it_is_written_over_and_stays_the_same(variant):
    path = write_card(variant("report"))
    before = path.read_bytes()
    assert write_card(path.parent).read_bytes() == before


def test_a_card_of_somebody_else_is_left_alone(variant):
    path = variant("report") / "MODEL_CARD.md"
    path.write_text("# By hand\n")
    with pytest.raises(ConfigError, match=r"was not written by `slicebook card` .*--out"):
        write_card(path.parent)
    assert path.read_text() == "# By hand\n"


def test_a_card_without_its_mark_is_somebody_elses(variant):
    path = write_card(variant("report"))
    path.write_text(path.read_text(encoding="utf-8").split("\n", 1)[1], encoding="utf-8")
    with pytest.raises(ConfigError, match="left alone"):
        write_card(path.parent)


def test_a_folder_is_no_file_to_write(variant, tmp_path):
    with pytest.raises(ConfigError, match="give another file"):
        write_card(variant("report"), tmp_path)


def test_without_a_report_there_is_no_card(tmp_path):
    with pytest.raises(DataError, match="there is no report"):
        write_card(tmp_path)


def test_the_command_says_where_the_card_is(variant, capsys):
    folder = variant("report")
    assert main.main(["card", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "MODEL_CARD.md")


@pytest.mark.parametrize("missing", [(), ("memorization", "downstream")])
def test_the_command_it_gives_is_one(missing, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = told(**dict.fromkeys(missing))
    ((language, command),) = re.findall(r"^```(\w*)\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
    assert language == "text"  # not run by tests/test_words.py where it stands in the repository
    program, *words = shlex.split(command)
    assert program == "slicebook"
    assert "-n 24" in command
    assert ("--parts" in command) == bool(missing)
    assert main.main(words) == 1  # there is no MODEL, but no fault in the line


def test_a_report_is_all_it_needs(whole, evaluated, tmp_path):
    (tmp_path / "report.json").write_text((evaluated / "report.json").read_text(encoding="utf-8"))
    assert write_card(tmp_path).read_text(encoding="utf-8").endswith(whole)

"""The files around the package: what they name exists, and what is generated is up to date."""

import configparser
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import slicebook
from slicebook.cli.main import app

ROOT = Path(__file__).parents[2]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
OWN_HOSTS = {"github.com"}


def read(*parts: str) -> str:
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def settings(*parts: str) -> Any:
    """A YAML file of the project. YAML reads the key `on` of a workflow as true."""
    return yaml.safe_load(read(*parts))


def lowest(pyproject: Path) -> subprocess.CompletedProcess[str]:
    """Print the constraints of a project's lower bounds with a copy of the script beside it."""
    copy = pyproject.parent / "scripts" / "lowest_constraints.py"
    copy.parent.mkdir()
    copy.write_text(read("scripts", "lowest_constraints.py"), encoding="utf-8")
    return subprocess.run([sys.executable, copy], capture_output=True, text=True, check=False)


def test_the_lowest_constraints_are_those_of_pyproject() -> None:
    script = ROOT / "scripts" / "lowest_constraints.py"
    printed = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout
    assert read("constraints-lowest.txt") == printed, "run scripts/lowest_constraints.py"


@pytest.mark.parametrize(
    ("script", "page"),
    [
        ("api_reference", "api.md"),
        ("cli_reference", "cli.md"),
        ("settings_reference", "settings.md"),
        ("model_drawing", "images/model.svg"),
    ],
)
def test_a_page_that_is_made_from_the_code_is_up_to_date(script: str, page: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    assert read("docs", page) == printed, f"run scripts/{script}.py > docs/{page}"


def test_the_api_reference_has_every_public_name() -> None:
    missing = [name for name in slicebook.__all__ if f"`slicebook.{name}`" not in read("docs", "api.md")]
    assert missing == ["__version__"]


def test_the_command_reference_has_every_command_and_option_of_help() -> None:
    page = read("docs", "cli.md")
    sections = dict(re.findall(r"^## (slicebook[\w -]*)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert len(sections) > 20
    runner = CliRunner()
    for name, section in sections.items():
        printed = runner.invoke(app, [*name.split()[1:], "--help"]).output
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", printed.partition("Options:")[2]))
        options -= {"--help", "--install-completion", "--show-completion"}
        explained = set(re.findall(r"`(--[a-z][a-z-]+)`", section))
        assert options <= explained | set(re.findall(r"--[a-z][a-z-]+", section)), name
        assert explained <= options, name


def test_every_setting_is_explained() -> None:
    rows = re.findall(r"^\| (`\w+`) \|.*\| (.*) \|$", read("docs", "settings.md"), re.MULTILINE)
    assert len(rows) > 60
    assert [name for name, meaning in rows if not meaning.strip()] == []


@pytest.mark.parametrize(
    ("dependencies", "message"),
    [
        ('["numpy<3"]', "'numpy<3' has no lower bound"),
        ('["numpy>=2.0", "numpy>=2.1"]', "numpy has the lower bounds 2.0 and 2.1"),
    ],
)
def test_a_requirement_without_one_lower_bound_is_refused(
    dependencies: str, message: str, tmp_path: Path
) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(
        f'[project]\nname = "x"\ndependencies = {dependencies}\noptional-dependencies = {{}}\n', "utf-8"
    )
    assert message in lowest(pyproject).stderr


def test_ci_runs_the_check_of_a_person_on_every_python_with_lowest_and_highest_versions() -> None:
    workflow = settings(".github", "workflows", "ci.yml")
    job = workflow["jobs"]["check"]
    matrix = job["strategy"]["matrix"]
    classified = re.findall(r"Python :: (3\.\d+)\"", read("pyproject.toml"))
    assert matrix["python"] == classified
    assert matrix["versions"] == ["highest"]
    assert matrix["include"] == [{"python": classified[0], "versions": "lowest"}]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert "scripts/check" in commands
    assert any("constraints-lowest.txt" in command for command in commands)
    assert workflow["permissions"] == {"contents": "read"}


def test_ci_measures_coverage_on_a_python_that_measures_quickly() -> None:
    workflow = settings(".github", "workflows", "ci.yml")
    (environment,) = (step["env"] for step in workflow["jobs"]["check"]["steps"] if "env" in step)
    for name, value in {"COVERAGE_CORE": "sysmon", "PYTEST_ADDOPTS": "--cov=slicebook"}.items():
        (python,) = re.findall(rf"matrix\.python == '(3\.\d+)' && '{value}' \|\| ''", environment[name])
        assert python in workflow["jobs"]["check"]["strategy"]["matrix"]["python"]
        assert int(python.split(".")[1]) >= 12


def test_slow_tests_run_every_week_and_by_the_check_of_a_person() -> None:
    workflow = settings(".github", "workflows", "weekly.yml")
    assert workflow[True]["schedule"]  # YAML reads the key `on` as true
    assert "scripts/check --slow" in [step.get("run") for step in workflow["jobs"]["slow"]["steps"]]
    assert "pytest -m slow" in read("scripts", "check")


def test_the_lock_is_audited_and_a_release_lists_its_components() -> None:
    assert "pip_audit --require-hashes" in read(".github", "workflows", "audit.yml")
    assert "cyclonedx_py requirements" in read(".github", "workflows", "release.yml")


def test_ci_pins_each_action_to_a_major_version() -> None:
    workflows = (ROOT / ".github" / "workflows").glob("*.yml")
    used = [action for path in workflows for action in re.findall(r"uses: (\S+)", path.read_text("utf-8"))]
    assert used
    assert [action for action in used if not re.fullmatch(r"actions/[\w-]+@v\d+", action)] == []


def test_the_hooks_before_a_commit_run_tools_of_the_environment() -> None:
    checked = set(re.findall(r"-m (\w+(?: \w+)?)", read("scripts", "check")))
    for repository in settings(".pre-commit-config.yaml")["repos"]:
        assert repository["repo"] == "local", "a hook that is fetched from elsewhere"
        for hook in repository["hooks"]:
            python, option, tool, *rest = hook["entry"].split()
            assert (hook["language"], python, option) == ("system", "python", "-m")
            assert {tool, " ".join([tool, *rest[:1]])} & checked, (
                f"scripts/check does not run {hook['entry']}"
            )
            subprocess.run([sys.executable, "-m", tool, "--version"], check=True, capture_output=True)


@pytest.mark.parametrize(
    "form", [form for form in FORMS if form.stem != "config"], ids=lambda form: form.name
)
def test_an_issue_form_asks_for_the_output_of_check_and_forbids_patient_files(form: Path) -> None:
    text = form.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    assert {"name", "description", "body"} <= set(content)
    labels = [field["id"] for field in content["body"] if field["type"] != "markdown"]
    assert len(labels) == len(set(labels))
    assert "slicebook check" in text
    assert re.search(r"(?i)no patient files", text)


def test_a_pull_request_asks_for_the_output_of_check_and_forbids_patient_files() -> None:
    text = read(".github", "pull_request_template.md")
    assert "slicebook check" in text
    assert "No patient files" in text


def test_the_commands_that_issue_forms_name_exist() -> None:
    for form in FORMS:
        for command in re.findall(r"`(slicebook [\w-]+)", form.read_text(encoding="utf-8")):
            subprocess.run(
                [sys.executable, "-m", *command.split(), "--help"], check=True, capture_output=True
            )


def test_a_security_problem_is_reported_in_private_and_not_in_an_issue() -> None:
    address = "/security/advisories/new"
    assert address in read("SECURITY.md")
    (link,) = [
        link
        for link in settings(".github", "ISSUE_TEMPLATE", "config.yml")["contact_links"]
        if address in link["url"]
    ]
    assert link["url"] in read("SECURITY.md")


def test_files_around_the_package_name_no_host_but_that_of_the_repository() -> None:
    paths = [
        *(ROOT / ".github").rglob("*.*"),
        *ROOT.glob("constraints*.txt"),
        ROOT / "requirements.lock",
        *ROOT.glob("*.toml"),
    ]
    paths += [ROOT / "SECURITY.md", ROOT / ".pre-commit-config.yaml", ROOT / "docs" / "releasing.md"]
    hosts = {
        host
        for path in paths
        if path.is_file()
        for host in re.findall(r"https?://([\w.-]+)", path.read_text(encoding="utf-8"))
    }
    assert hosts <= OWN_HOSTS


def test_the_contract_of_imports_has_a_layer_for_every_package_and_lets_no_siblings_meet() -> None:
    contract = configparser.ConfigParser()
    contract.read(ROOT / ".importlinter")
    layers = contract["importlinter:contract:layers"]
    listed = re.findall(r"\w+", layers["layers"] + layers["exhaustive_ignores"])
    modules = {path.stem for path in (ROOT / "src" / "slicebook").glob("[!_]*") if path.suffix in {"", ".py"}}
    assert sorted(listed) == sorted(modules | {"__main__"})
    assert layers.getboolean("exhaustive")
    assert ":" not in layers["layers"]  # a colon would let siblings meet


def test_the_project_and_its_citation_name_one_repository() -> None:
    (repository,) = re.findall(r'^Repository = "(.*)"', read("pyproject.toml"), re.MULTILINE)
    assert settings("CITATION.cff")["repository-code"] == repository
    assert f"<{repository}/security" in read("SECURITY.md")

"""The documentation site builds offline, refuses a broken link, and asks no other host; its notebook runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CHROMIUM = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
RUN_NOTEBOOK = """
import json, sys
sys.path.insert(0, "docs")
import notebook
_, made = notebook.app.run()
samples, difference = made["samples"], made["difference"][1]
rows, columns = difference.shape
near = difference[rows // 2 - 12 : rows // 2 + 20, columns // 2 - 12 : columns // 2 + 20]
print(json.dumps({
    "tokens": [grid.shape for grid in made["encoded"].tokens],
    "decodings": len(made["partial"]),
    "near": float(near.sum() / difference.sum()),
    "seeds": [sample.seed for sample in samples],
    "labels": int(samples[0].mask.slices().max()),
}))
"""


def build(source, out):
    """Run the build as scripts/check does."""
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", source, out]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    built = build(DOCS, out)
    assert built.returncode == 0, built.stderr
    return out


def test_the_site_has_a_page_for_each_page_of_docs(site):
    pages = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert pages <= {path.relative_to(site) for path in site.rglob("*.html")}


def test_the_start_page_has_the_commands_and_the_picture_of_the_readme(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    assert "slicebook demo" in re.sub(r"<[^>]+>", "", text)
    (picture,) = re.findall(r'<img alt="Two rows of generated[^>]*src="([^"]+)"', text)
    assert (site / picture).is_file()
    assert "--install-completion" in re.sub(r"<[^>]+>", "", text)


def test_no_page_loads_from_another_host(site):
    loaded = re.compile(
        r"""<(?:script|img|iframe|source)[^>]*\ssrc="(?:https?:)?//|<link[^>]*\shref="(?:https?:)?//"""
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert [page.name for page in pages if loaded.search(page.read_text(encoding="utf-8"))] == []
    styles = [
        path
        for path in site.rglob("*.css")
        if re.search(r"url\(\s*['\"]?(?:https?:)?//", path.read_text("utf-8"))
    ]
    assert styles == []


def test_links_to_files_of_the_repository_lead_to_the_repository(site):
    text = (site / "results.html").read_text(encoding="utf-8")
    assert 'href="https://github.com/slicebook/slicebook/blob/main/benchmarks/README.md"' in text


@pytest.mark.parametrize(
    "link", ["[a page](missing.md)", "[a heading](#missing)", "![a picture](missing.png)"]
)
def test_a_broken_link_fails_the_build(link, tmp_path):
    for path in ("docs/conf.py", "pyproject.toml", "src/slicebook/version.py"):
        copy = tmp_path / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / path).read_bytes())
    (tmp_path / "docs" / "site").mkdir()
    (tmp_path / "docs" / "site" / "site.css").touch()
    (tmp_path / "docs" / "index.md").write_text(f"# Title\n\n{link}\n", encoding="utf-8")
    built = build(tmp_path / "docs", tmp_path / "out")
    assert built.returncode != 0
    assert "missing" in built.stderr


def test_scripts_check_builds_the_site_strictly():
    assert "-m sphinx --quiet --fail-on-warning" in (ROOT / "scripts" / "check").read_text(encoding="utf-8")


def test_the_notebook_runs_from_start_to_end():
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT / "src")}
    ran = subprocess.run(
        [sys.executable, "-c", RUN_NOTEBOOK],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    made = json.loads(ran.stdout.splitlines()[-1])
    assert made["tokens"] == [[4, 16, 32], [4, 8, 16], [4, 4, 8]]
    assert made["decodings"] == 3
    assert made["near"] > 0.5  # a token of the finest level mostly affects the region around it
    assert made["seeds"] == [0, 1]
    assert made["labels"] > 1


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_pages_fit_their_window_and_ask_no_other_host(site, width, scheme):
    from playwright.sync_api import sync_playwright

    asked, complaints = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type == "error" else None
        )
        for name in ("index", "tutorial", "course", "settings", "how-it-works", "how-to/nnunet"):
            page.goto((site / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            broken = page.evaluate(
                "[...document.images].filter(image => !image.naturalWidth).map(image => image.src)"
            )
            assert broken == [], name
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        browser.close()
    assert [url for url in asked if not url.startswith("file:")] == []
    assert complaints == []
    channels = [int(value) for value in re.findall(r"\d+", background)[:3]]
    assert (max(channels) < 60) == (scheme == "dark")

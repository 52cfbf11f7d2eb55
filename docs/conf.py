"""Settings of the documentation site; it is built without a network.

python -m sphinx -W --keep-going docs build/site
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]


def quoted(path: str, name: str) -> str:
    """Return the text in quotes that a file of the project gives a name."""
    (text,) = re.findall(rf'^{name} = "(.*)"', (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    return str(text)


REPOSITORY = quoted("pyproject.toml", "Repository")

project = html_title = "Slicebook"
release = version = quoted("src/slicebook/version.py", "__version__")
author = "The Slicebook authors"
extensions = ["myst_parser"]
exclude_patterns = ["train.sbatch"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
smartquotes = False  # two hyphens stay as they are typed
html_theme = "furo"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_copy_source = html_show_sphinx = html_show_copyright = False
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}


def link_the_repository(app: Sphinx, page: str, source: list[str]) -> None:
    """Let links to files outside docs/ lead to the repository, and links of included text to pages."""

    def replaced(match: re.Match[str]) -> str:
        path = (Path(app.srcdir) / f"{page}.md").parent.joinpath(match[1]).resolve()
        if path.is_relative_to(Path(app.srcdir).resolve()):
            return match[0]
        return f"]({REPOSITORY}/blob/main/{path.relative_to(ROOT)}{match[2]})"

    source[0] = re.sub(r"\]\(((?:\.\./)+[^)#]+)((?:#[^)]*)?)\)", replaced, source[0])


def setup(app: Sphinx) -> None:
    """Register the step above."""
    app.connect("source-read", link_the_repository)

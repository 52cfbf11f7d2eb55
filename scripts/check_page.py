"""Open reports in a browser as people do, and name each fault: page, mode, element, what was found.

    python scripts/check_page.py REPORT.html…    report.json and the pictures lie beside each
    python scripts/check_page.py --self-test     faulty pages, each of which must be found out

`scripts/browser_check` installs what this needs. What a page must hold is in the tables below.
"""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import faulty_pages
from playwright.sync_api import Browser, Page, sync_playwright

# The answers of the first screen, and the part of report.json that each rests on.
ANSWERS = {
    "Is it faithful?": "fidelity",
    "Does it generate?": "generation",
    "Does it copy patients?": "audit",
    "Is it of use?": "usefulness",
}


class Wanted(NamedTuple):
    """A piece of the page, due where report.json has something at a path; at least so many in a section.

    `piece` is a CSS selector, or the file name of a picture that the page must show as it lies beside it.
    """

    due: str
    section: str
    piece: str
    least: int = 1


WANTED = (
    Wanted("fidelity", "fidelity", "table", 2),
    Wanted("fidelity", "fidelity", "pairs.png"),
    Wanted("fidelity", "fidelity", "levels.png"),
    Wanted("fidelity", "fidelity", "worst.png"),
    Wanted("fidelity.rate_distortion", "fidelity", "svg.chart", 3),  # use of codes, SSIM and PSNR over bits
    Wanted("training", "training", "svg.chart", 3),  # tokenizer, masks, prior
    Wanted("generation", "generation", "table"),
    Wanted("generation", "generation", "samples.png"),
    Wanted("generation", "generation", "real.png"),
    Wanted("generation.spectrum", "generation", "svg.chart", 2),  # with that of intensities
    Wanted("generation.anatomy", "generation", "samples-masks.png"),
    Wanted("generation.anatomy", "generation", "real-masks.png"),
    Wanted("generation.anatomy", "generation", "table", 2),
    Wanted("audit", "audit", "table", 2),
    Wanted("audit", "audit", "closest.png"),
    Wanted("usefulness", "usefulness", "table"),
    Wanted("provenance", "provenance", "dl, table"),
)

# What the section "provenance" must tell after a name, and where that is in report.json.
TOLD = {
    "data.split_hash": "provenance.data.split_hash",
    "commit": "provenance.commit",
    "seed": "provenance.seed",
    "versions": "provenance.versions",  # one name for each
}


@dataclass(frozen=True)
class Mode:
    """A way to look at a page.

    Attributes:
        width, height: Of the window, or of what a printer has of a page, in CSS pixels.
        colours: What the reader's system prefers.
        media: Screen or print.
        phone: Whether the window is that of a phone.
        answers: Whether its first screen must hold all answers.
    """

    width: int
    height: int
    colours: Literal["light", "dark"] = "light"
    media: Literal["screen", "print"] = "screen"
    phone: bool = False
    answers: bool = False


# Paper is as narrow as A4 and as short as Letter, less 15 mm on each side.
MODES = {
    "light": Mode(1280, 800, answers=True),
    "dark": Mode(1280, 800, "dark", answers=True),
    "phone": Mode(390, 844, phone=True),
    "phone, dark": Mode(390, 844, "dark", phone=True),
    "print": Mode(680, 941, "dark", "print"),
}
# No sandbox: root has none. The rest keeps the browser itself from asking for anything.
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
LOOK = (Path(__file__).parent / "check_page.js").read_text(encoding="utf-8")
LAYOUT = """() => [...document.querySelectorAll("body, body *")].map((one) => {
  const box = one.getBoundingClientRect();
  const text = one.children.length ? "" : one.textContent.trim().slice(0, 40);
  return `${one.localName} of ${box.width}×${box.height} at ${box.x}, ${box.y} "${text}"`;
})"""

LINES = """(within) => [...document.querySelectorAll(`${within} *`)].filter((one) => !one.children.length)
  .map((one) => one.textContent.trim()).join("\\n")"""


@dataclass
class Seen:
    """How much was looked at in a page, in all modes.

    Attributes:
        faults: A line each.
        elements, pictures, charts: How many the page has.
        contrast: The least of any text.
    """

    faults: list[str]
    elements: int = 0
    pictures: int = 0
    charts: int = 0
    contrast: float = math.inf


class Windows:
    """Windows of a browser: a page in one has nothing but itself, and what it says and asks for is kept."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._pages: dict[tuple[bool, bool], Page] = {}
        self._address = ""
        self._faults: list[str] = []

    def open(self, path: Path, mode: Mode, *, scripts: bool = True) -> tuple[Page, list[str]]:
        """Return a page in a mode, and its faults so far; more may come while it is looked at."""
        key = (mode.phone, scripts)
        if key not in self._pages:
            self._pages[key] = self._window(*key)
        page = self._pages[key]
        page.goto("about:blank")
        self._address, self._faults = path.as_uri(), []
        page.set_viewport_size({"width": mode.width, "height": mode.height})
        page.emulate_media(media=mode.media, color_scheme=mode.colours)
        page.goto(self._address, wait_until="load")
        return page, self._faults

    def _window(self, phone: bool, scripts: bool) -> Page:
        context = self._browser.new_context(is_mobile=phone, has_touch=phone, java_script_enabled=scripts)
        context.route(lambda url: not url.startswith(("file:", "data:")), lambda route: route.abort())
        context.on("request", lambda request: self._asked(request.url))
        page = context.new_page()
        page.on("pageerror", lambda error: self._say(f"error in a script: {error.message}"))
        page.on("console", lambda said: self._heard(said.type, said.text))
        return page

    def _asked(self, address: str) -> None:
        if address.partition("#")[0] not in {self._address, "about:blank"} and not address.startswith(
            "data:"
        ):
            self._say(f"asks for {address}; wanted nothing but itself")

    def _heard(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self._say(f"the console has: {kind}: {text}")

    def _say(self, found: str) -> None:
        self._faults.append(f"page: {found}")


def check(windows: Windows, path: Path, modes: Sequence[str] = tuple(MODES)) -> Seen:
    """Look at a page in each mode, with scripts and without."""
    path, seen = path.resolve(), Seen([])
    if not path.is_file() or not path.with_name("report.json").is_file():
        seen.faults.append(
            f"{path}: wanted a page, and report.json beside it: slicebook evaluate writes both"
        )
        return seen
    report = json.loads(path.with_name("report.json").read_text(encoding="utf-8"))
    pieces, missing = _pieces(report, path.parent)
    seen.faults += [f"{path}: {line}" for line in missing]
    for name in modes:
        mode = MODES[name]
        size = [mode.width, mode.height]
        page, found = windows.open(path, mode)
        layout = page.evaluate(LAYOUT)
        found += _untold(page, report)
        asked = {
            "answers": {question: report.get(part) is not None for question, part in ANSWERS.items()},
            "pieces": pieces,
            "window": mode.width,
            "screen": size if mode.answers else None,
            "paper": size if mode.media == "print" else None,
        }
        looked: dict[str, Any] = page.evaluate(LOOK, asked)
        found += looked["faults"]
        seen.contrast = min(seen.contrast, looked["contrast"])
        seen.elements, seen.pictures, seen.charts = (
            looked[one] for one in ("elements", "pictures", "charts")
        )
        page, said = windows.open(path, mode, scripts=False)
        found += [*said, *_differences(layout, page.evaluate(LAYOUT))]
        seen.faults += [f"{path}: {name}: {line}" for line in dict.fromkeys(found)]
    return seen


def _pieces(report: Mapping[str, Any], folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the pieces that are due, in the words of check_page.js, and pictures that are not there."""
    pieces, missing = [], []
    for due, section, piece, least in WANTED:
        if _value(report, due) is None:
            continue
        asked = {"section": section, "selector": piece, "ending": "", "least": least, "name": piece}
        if piece.endswith(".png"):
            if not (folder / piece).is_file():
                missing.append(f"{piece} is not beside it, and report.json has {due}")
                continue
            asked["selector"] = "img"
            asked["ending"] = base64.b64encode((folder / piece).read_bytes()).decode()
        pieces.append(asked)
    return pieces, missing


def _untold(page: Page, report: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the section "provenance" leaves out."""
    text = page.evaluate(LINES, "#provenance")
    for name, path in TOLD.items():
        value = _value(report, path)
        values = (
            {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
        )
        for told, one in values.items():
            if one is not None and not re.search(
                rf"^{re.escape(told)}\W*{re.escape(str(one))}$", text, re.MULTILINE
            ):
                yield f'#provenance: does not tell that {told} is "{one}"'


def _value(report: Mapping[str, Any], path: str) -> Any:
    found: Any = report
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _differences(layout: Sequence[str], without: Sequence[str]) -> Iterator[str]:
    """Yield the first element that is another without scripts."""
    for one, other in zip(layout, without, strict=False):
        if one != other:
            yield f"{other}: without scripts; with them {one}"
            return
    if len(layout) != len(without):
        yield f"page: {len(without)} elements without scripts, {len(layout)} with them"


def main(arguments: Sequence[str]) -> int:
    """Check pages, or this check itself; return the exit status."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        windows = Windows(browser)
        if arguments == ["--self-test"]:
            missed = faulty_pages.missed(lambda page, modes: check(windows, page, modes).faults)
            print("\n".join(missed) or f"self-test: {len(faulty_pages.FAULTS)} kinds of fault, each found")
            return bool(missed)
        seen = [check(windows, Path(one)) for one in arguments]
    faults = [fault for one in seen for fault in one.faults]
    if faults:
        print(*faults, sep="\n")
        print(f"{len(faults)} faults in {_pages(seen)}", file=sys.stderr)
        return 1
    counts = (
        f"{sum(getattr(one, what) for one in seen)} {what}" for what in ("elements", "pictures", "charts")
    )
    print(
        f"{_pages(seen)}, each {'; '.join(MODES)}; with scripts and without: {', '.join(counts)}, "
        f"text of contrast {min(one.contrast for one in seen):.1f} or more; no fault"
    )
    return 0


def _pages(seen: Sequence[Seen]) -> str:
    return f"{len(seen)} page{'s' if len(seen) > 1 else ''}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

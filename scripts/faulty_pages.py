"""A small page without fault, and what can be done to it: each time, check_page must say so."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

# A gray pixel and a black one: two pictures.
GRAY = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
BLACK = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
PICTURES = {"pairs.png": GRAY, "levels.png": GRAY, "worst.png": BLACK, "samples.png": GRAY, "real.png": GRAY}
REPORT = {
    "fidelity": {"scores": {}},
    "generation": {"spectrum": {}, "anatomy": None},
    "audit": None,
    "usefulness": None,
    "provenance": {
        "commit": "c0ffee",
        "seed": 42,
        "versions": {"torch": "2.1"},
        "data": {"split_hash": "5b1"},
    },
}
SHOWN = [f'<img alt="{name}" src="data:image/png;base64,{pixel}">' for name, pixel in PICTURES.items()]
TABLE = '<div class="scroll"><table><tr><th>score</th></tr><tr><td>0.9</td></tr></table></div>'
CHART = (
    '<svg class="chart" viewBox="0 0 100 60" width="100"><title>A line</title><text x="5" y="20">one</text>'
    '<text x="5" y="50">two</text><polyline class="line" points="0,0 9,9"/></svg>'
)
CARD = (
    '<article class="answer"><h2>{}</h2><p class="verdict">{}</p><details><summary>Why</summary><p>So.</p>'
    "</details></article>"
)
PAGE = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,"><title>A page</title><style>
body {{ background: #fff; color: #222; }}
.scroll {{ overflow-x: auto; }} .line {{ fill: none; stroke: #06c; }} .chart text {{ fill: #222; }}
.key {{ display: block; width: 9px; height: 9px; background: #06c; print-color-adjust: exact; }}
@media screen and (prefers-color-scheme: dark) {{
  body {{ background: #111; color: #eee; }} .line {{ stroke: #6cf; }} .chart text {{ fill: #eee; }}
}}
@media print {{ details::details-content {{ content-visibility: visible; }} }}
/* more */
</style></head><body><h1>A page</h1>
<section class="answers">
{CARD.format("Is it faithful?", "yes")}{CARD.format("Does it generate?", "no")}
{CARD.format("Does it copy patients?", "not asked")}{CARD.format("Is it of use?", "not asked")}
</section>
<section id="fidelity"><h2>Is it faithful?</h2>{TABLE}<!-- table -->{TABLE}
{"".join(SHOWN[:3])}<i class="key"></i>
</section>
<section id="generation"><h2>Does it generate?</h2>{TABLE}
{"".join(SHOWN[3:])}{CHART}<!-- chart -->{CHART}
</section>
<section id="provenance"><h2>Where it comes from</h2><dl><dt>commit</dt><dd>c0ffee</dd><dt>seed</dt>
<dd>42</dd><dt>versions.torch</dt><dd>2.1</dd><dt>data.split_hash</dt><dd>5b1</dd></dl></section>
<!-- end --></body></html>
"""


class Fault(NamedTuple):
    """What is done to the page, in which mode it must be found, and in which words."""

    old: str
    new: str
    said: str
    mode: str = "light"


def _style(rule: str, said: str, mode: str = "light") -> Fault:
    return Fault("/* more */", rule, said, mode)


def _end(piece: str, said: str, mode: str = "light") -> Fault:
    return Fault("<!-- end -->", piece, said, mode)


FAULTS = (
    # Errors and requests
    _end('<img alt="x" src="https://example.invalid/x.png">', "page: asks for https://example.invalid/x.png"),
    _end('<link rel="stylesheet" href="other.css">', "other.css; wanted nothing but itself"),
    _style("h1 { background: url(https://example.invalid/x.png); }", "asks for https://example", "print"),
    _end("<script>console.error('oh')</script>", "the console has: error: oh"),
    _end("<script>console.warn('oh')</script>", "the console has: warning: oh", "phone"),
    _end("<script>throw new Error('oh')</script>", "error in a script: oh"),
    _end("<script>document.querySelector('h1').append(' late')</script>", "without scripts"),
    _end("<script>document.body.append(document.createElement('p'))</script>", "elements without scripts"),
    # Answers
    Fault("Is it of use?", "Is it useful?", 'no answer to "Is it of use?"'),
    Fault('<p class="verdict">no</p>', "", "no verdict"),
    Fault('<p class="verdict">no</p>', '<p class="verdict">not asked</p>', "report.json says judged"),
    Fault('<p class="verdict">not asked</p>', '<p class="verdict">yes</p>', "report.json says not judged"),
    _style(".answers { margin-top: 40rem; }", "the first screen is 1280×800", "dark"),
    _style(".answers { display: none; }", "no answer to"),
    # Pieces
    Fault('<section id="generation">', '<section id="other">', "#generation: 0 of samples.png; wanted 1"),
    Fault(f"<!-- table -->{TABLE}", "", "#fidelity: 1 of table; wanted 2"),
    Fault(f"<!-- chart -->{CHART}", "", "#generation: 1 of svg.chart; wanted 2"),
    _style("svg { display: none; }", "#generation: 0 of svg.chart; wanted 2"),
    Fault(BLACK, GRAY, "#fidelity: 0 of worst.png; wanted 1"),
    Fault("<dd>42</dd>", "<dd>43</dd>", 'does not tell that seed is "42"'),
    Fault("c0ffee", "decaf", 'does not tell that commit is "c0ffee"'),
    Fault("<dt>versions.torch</dt><dd>2.1</dd>", "", 'does not tell that versions.torch is "2.1"'),
    Fault("<title>A page</title>", "", "head: no title"),
    Fault('<html lang="en">', "<html>", "html: no language"),
    # Names, links, headings
    _end('<p id="fidelity">x</p>', "its id stands twice"),
    _end('<a href="#nowhere">x</a>', "leads to #nowhere, which is not there"),
    _end("<h4>x</h4>", "comes after a heading of level 2"),
    _end("<h1>x</h1>", "a second h1"),
    # Pictures and charts
    Fault(GRAY, "AAAA", "did not load"),
    Fault('alt="pairs.png"', "", "no alt text"),
    _style("img { width: 20px; height: 30px; }", "stretched"),
    Fault("<title>A line</title>", "", "no title"),
    Fault('<text x="5" y="20">', '<text x="90" y="20">', "out of its chart"),
    Fault('<text x="5" y="50">', '<text x="5" y="24">', 'lies over #generation text "one"'),
    # Room
    _end('<div style="width: 2000px">x</div>', 'div "x": the page is'),
    _end(f"<p>{'x' * 80}</p>", 'x": the page is', "phone"),
    Fault('<meta name="viewport" content="width=device-width">', "", "no meta viewport?", "phone"),
    _end('<p style="overflow: hidden; height: 9px">x</p>', 'p "x": cut: holds'),
    _end('<div class="scroll"><p style="width: 2000px">x</p></div>', 'div.scroll "x": cut: holds', "print"),
    _end('<figure style="height: 1200px">x</figure>', "1200 high; a page holds 941", "print"),
    _style("body { margin: 0; }", "stands at the edge of the window", "phone"),
    _style("details::details-content { content-visibility: hidden !important; }", "closed on paper", "print"),
    _style("details p { display: none; }", "cannot be opened"),
    # Colours
    _end('<p style="color: #888">x</p>', "text contrast 3.54, wanted 4.5"),
    _end('<p style="color: #555">x</p>', "text contrast", "dark"),
    _end('<p style="opacity: .4">x</p>', "text contrast", "phone, dark"),
    _end('<p style="color: color-mix(in srgb, black 40%, white)">x</p>', "text contrast"),
    _end('<p style="font-size: 30px; color: #aaa">x</p>', "text contrast 2.32, wanted 3"),
    _style(".chart text { fill: #999; }", 'text "one": text contrast 2.85, wanted 4.5'),
    _style(".line { stroke: #bbb; }", "line contrast 1.92, wanted 3"),
    _end('<p style="background: linear-gradient(#eee, #fff)">x</p>', "text over a picture"),
    _style("body { background: #000; color: #fff; }", "dark paper", "print"),
    _end('<p style="background: #000; color: #fff">x</p>', "text contrast 1.00", "print"),
    _style(".key { print-color-adjust: economy; }", "a colour that printers leave out", "print"),
)  # fmt: skip


def missed(check: Callable[[Path, Sequence[str]], list[str]]) -> list[str]:
    """Return the faults that a check of a page, in some modes, does not find, and those it finds in none."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        page, report, worst = (folder / one for one in ("report.html", "report.json", "worst.png"))
        page.write_text(PAGE, encoding="utf-8")
        wrong = [] if "report.json beside it" in str(check(page, ["light"])) else ["no report.json: missed"]
        report.write_text(json.dumps(REPORT), encoding="utf-8")
        for picture, pixel in PICTURES.items():
            (folder / picture).write_bytes(base64.b64decode(pixel))
        wrong += [f"no fault, but found: {line}" for line in check(page, ["light", "dark", "phone", "print"])]
        for fault in FAULTS:
            assert fault.old in PAGE, fault
            page.write_text(PAGE.replace(fault.old, fault.new, 1), encoding="utf-8")
            found = check(page, [fault.mode])
            if not any(fault.said in line for line in found):
                wrong.append(f"missed: {fault.new[:60]} ({fault.mode}): wanted {fault.said}; found {found}")
        page.write_text(PAGE, encoding="utf-8")
        worst.unlink()
        return (
            wrong if "worst.png is not beside it" in str(check(page, ["light"])) else [*wrong, "no worst.png"]
        )

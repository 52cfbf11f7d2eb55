"""The page in chromium: complete by itself, readable on a phone, on a desktop, in the dark and on paper."""

import shutil
from typing import Any

import pytest

from slicebook.reporting.html import write_page

pytestmark = pytest.mark.browser

# Without a sandbox, which root has none of; the others keep the browser itself off the network.
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
VIEWS: dict[str, dict[str, Any]] = {
    "phone": {"width": 360, "height": 780},
    "desktop": {"width": 1280, "height": 800},
    "dark": {"width": 1280, "height": 800, "color_scheme": "dark"},
    "print": {"width": 680, "height": 940, "color_scheme": "dark", "media": "print"},  # A4 less its margins
}
LOOK = """(paper) => {
  const faults = [], every = (selector) => [...document.querySelectorAll(selector)];
  const shown = (element) => element.checkVisibility({contentVisibilityAuto: true});
  if (!paper) every("details").forEach((one) => { one.open = true; });
  else if (every("details > :not(summary)").some((one) => !shown(one))) faults.push("details are closed");

  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) faults.push(`overflow: ${root.scrollWidth} px in ${innerWidth} px`);
  const cut = paper ? /hidden|clip|auto|scroll/ : /hidden|clip/;
  every("body *:not(svg *)").forEach((one) => {
    if (cut.test(getComputedStyle(one).overflowX) && one.scrollWidth > one.clientWidth + 1)
      faults.push(`overflow: ${one.localName} is cut`);
  });

  every("img").forEach((one) => {
    if (!one.naturalWidth) faults.push("an image did not load");
    if (!one.alt.trim()) faults.push("an image has no alt text");
  });
  every("svg").forEach((one) => {
    if (!one.matches("[role=img]:has(title)")) faults.push("a chart has no title");
  });
  every("table").forEach((one) => {
    if (!one.caption || !one.querySelector("thead th[scope=col]")) faults.push("a table has no header");
  });
  let level = 0;
  every("h1, h2, h3, h4, h5, h6").forEach((one) => {
    const next = Number(one.localName[1]);
    if (next > level + 1 || (next === 1 && level)) faults.push(`heading ${one.localName} after h${level}`);
    level = next;
  });
  const ids = every("[id]").map((one) => one.id);
  if (new Set(ids).size < ids.length) faults.push("an id is not unique");

  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const ground = (one) => {
    if (!one) return [255, 255, 255];
    const colour = channels(getComputedStyle(one).backgroundColor);
    return colour[3] === 0 ? ground(one.parentElement) : colour;
  };
  const luminance = (colour) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, at) => {
    const value = colour[at] / 255;
    return sum + weight * (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  }, 0.05);
  every("body *").filter((one) => shown(one) && !one.matches("svg :is(title, desc)")).forEach((one) => {
    if (![...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) return;
    const style = getComputedStyle(one);
    const [dark, light] = [luminance(channels(one.closest("svg") ? style.fill : style.color)),
      luminance(ground(one))].sort((a, b) => a - b);
    if (light / dark < 4.5) faults.push(`contrast ${(light / dark).toFixed(2)}: ${one.textContent.trim()}`);
  });
  if (paper && luminance(ground(document.body)) < 0.8) faults.push("contrast: paper is dark");
  return faults;
}"""


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def html(evaluated):
    return write_page(evaluated).read_text(encoding="utf-8")


def faults_of(chromium, html, folder, width, height, media="screen", color_scheme="light"):
    """Open a page in one view and return its faults, one sentence each."""
    path = folder / "page.html"
    path.write_text(html, encoding="utf-8")
    page, faults = chromium.new_page(viewport={"width": width, "height": height}), []
    page.emulate_media(media=media, color_scheme=color_scheme)
    page.on("console", lambda message: faults.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: faults.append(f"console: {error}"))
    page.on("request", lambda request: faults.append(f"request: {request.url}"))
    page.route("http*://**", lambda route: route.abort())
    page.goto(path.as_uri())
    own = {f"request: {path.as_uri()}"}
    faults += page.evaluate(LOOK, media == "print")
    page.close()
    return [fault for fault in faults if fault not in own and not fault.startswith("request: data:")]


@pytest.mark.parametrize("view", VIEWS)
def test_the_page_has_no_fault(chromium, html, tmp_path, view):
    assert faults_of(chromium, html, tmp_path, **VIEWS[view]) == []


@pytest.mark.parametrize(
    ("view", "old", "new", "fault"),
    [
        ("desktop", "</main>", "<script>console.error('x')</script></main>", "console: x"),
        ("desktop", "</main>", "<script>throw new Error('x')</script></main>", "console: x"),
        ("desktop", "</main>", '<img alt="x" src="https://example.invalid/x.png"></main>', "request: https"),
        ("phone", "</main>", f"<pre>{'x' * 80}</pre></main>", "overflow"),
        ("desktop", "</main>", '<p style="width: 1400px">x</p></main>', "overflow"),
        ("desktop", '<img alt="', '<img title="', "an image has no alt text"),
        ("desktop", "data:image/png;base64,iVBOR", "data:image/png;base64,AAAA", "an image did not load"),
        ("desktop", 'role="img"', "", "a chart has no title"),
        ("desktop", '<th scope="col">', "<th>", "a table has no header"),
        ("desktop", "</main>", "<h4>x</h4></main>", "heading h4 after h2"),
        ("desktop", "</main>", '<p id="memorization">x</p></main>', "an id is not unique"),
        ("dark", "</main>", '<p style="color: #444">x</p></main>', "contrast"),
        ("desktop", "</style>", ".chart text { fill: #aaa !important; }</style>", "contrast"),
        ("print", "content-visibility: visible", "content-visibility: hidden", "details are closed"),
        ("print", ".scroll { overflow: visible;", ".scroll { width: 9px;", "overflow"),
        ("print", "--paper: #fff;", "--paper: #000;", "contrast: paper is dark"),
    ],
)  # fmt: skip
def test_a_broken_page_is_found_out(chromium, html, tmp_path, view, old, new, fault):
    assert old in html
    faults = faults_of(chromium, html.replace(old, new), tmp_path, **VIEWS[view])
    assert any(fault in line for line in faults)

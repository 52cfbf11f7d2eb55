"""The studio in chromium: every tab works, by mouse and keyboard, in any window, and asks nobody else."""

import re
import shutil
import zipfile

import numpy as np
import pytest
from helpers.studio import running_studio

from slicebook.cli import main
from slicebook.io.nifti import write_nifti
from slicebook.reporting.html import write_page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting"),  # of pandas, about gradio
]

# Without a sandbox, which root has none of; the others keep the browser itself off the network.
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
TABS = ("Look", "Generate", "Paint", "Judge")
PATH = re.compile(r"(?<![\w.<])/(?:tmp|var|home|root|work)/")
NAMELESS = """() => [...document.querySelectorAll("button, input, select, textarea, [tabindex='0'], img")]
  .filter((one) => one.checkVisibility() && one.getAttribute("aria-hidden") !== "true")
  .filter((one) => {
    const named = (one.getAttribute("aria-labelledby") ?? "").split(" ");
    const by = named.map((id) => document.getElementById(id)?.textContent);
    const texts = [one.ariaLabel, one.alt, one.title, one.textContent, ...by,
      ...[...(one.labels ?? [])].map((label) => label.textContent)];
    return !texts.some((text) => text?.trim());
  }).map((one) => one.outerHTML.slice(0, 200))"""
OVERFLOW = "() => document.documentElement.scrollWidth - innerWidth"
CONTRAST = """() => {
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
  return [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility({opacityProperty: true})
    && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
    && !["SCRIPT", "STYLE", "OPTION"].includes(one.nodeName)).map((one) => {
    const [dark, light] = [luminance(channels(getComputedStyle(one).color)), luminance(ground(one))]
      .sort((a, b) => a - b);
    return [light / dark, one.textContent.trim().slice(0, 60), one.className];
  }).filter(([ratio]) => ratio < 4.5).map(([ratio, text, name]) => `${ratio.toFixed(2)} ${text} ${name}`);
}"""


@pytest.fixture(scope="module")
def model(trained, evaluated, tmp_path_factory):
    """The tiny generator, with its report beside it."""
    folder = tmp_path_factory.mktemp("model") / "run"
    shutil.copytree(trained.run, folder, ignore=shutil.ignore_patterns("*state*", "tokens*"))
    shutil.copytree(evaluated, folder / "evaluation")
    write_page(folder / "evaluation")
    return folder


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A volume of three slices, whose file is named after a patient."""
    path = tmp_path_factory.mktemp("scans") / "DOE-JANE-1961.nii.gz"
    rows, columns = np.mgrid[-1:1:32j, -1:1:64j]
    disc = (rows**2 + columns**2 < 0.7).astype(np.float32)
    rng = np.random.default_rng(3)
    volume = np.stack([100 * disc.T + rng.normal(0, 5, (64, 32)) for _ in range(3)], -1)
    write_nifti(path, volume.astype(np.float32), affine=np.diag([1.0, 1.0, 3.0, 1.0]))
    return path


@pytest.fixture(scope="module")
def studio(model):
    with running_studio(model) as running:
        yield running


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, studio):
    """Open the page in a view. At the end of the test nothing was asked of others, and no error was told."""
    faults, pages = [], []

    def listen(page):
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"console: {error}"))
        page.on("request", lambda request: faults.append(f"request: {request.url}"))
        page.on("response", lambda answer: faults.append(f"{answer.status} {answer.url}"))

    def open_page(*, width=1280, height=900, color_scheme="light"):
        page = chromium.new_page(
            viewport={"width": width, "height": height}, color_scheme=color_scheme, accept_downloads=True
        )
        pages.append(page)
        listen(page)
        page.goto(studio.address)
        page.get_by_role("tab", name="Look").wait_for()
        return page

    yield open_page
    for page in pages:
        page.close()
    own = (
        f"request: {studio.address}/",
        "request: data:",
        "request: blob:",
        f"200 {studio.address}/",
        "200 data:",
    )
    assert [fault for fault in faults if not fault.startswith(own)] == []


def show(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def look_at(page, scan):
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Open a volume").click()
    chooser.value.set_files(scan)
    page.locator(".sb-look").wait_for()


def said(page, name):
    return page.locator(f"#{name}-status [role]").inner_text()


def test_look_shows_a_volume_and_offers_its_reconstruction(opened, scan, model, tmp_path):
    page = opened()
    look_at(page, scan)
    assert said(page, "look") == "3 axial slices of 32 × 64, voxels of 1 × 1 × 3 mm."
    assert (
        page.get_by_role("img", name="Tokens of level").count() == page.locator(".sb-levels section").count()
    )
    before = page.locator(".sb-stack img").first.get_attribute("src")
    slider = page.get_by_role("slider", name="Slice", exact=False).first
    slider.press("ArrowRight")
    page.wait_for_function("(old) => document.querySelector('.sb-stack img').src !== old", arg=before)
    page.get_by_role("button", name="Reconstruct all slices").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the reconstruction").click()
    shutil.copy(scan, tmp_path / "volume.nii.gz")
    assert (
        main.main(["reconstruct", str(model), str(tmp_path / "volume.nii.gz"), "-o", str(tmp_path / "cli")])
        == 0
    )
    assert unpacked(download.value) == contents(tmp_path / "cli")


def test_generate_draws_what_the_command_draws(opened, model, tmp_path):
    page = opened()
    show(page, "Generate")
    page.get_by_label("Seed of the first").fill("5")
    page.get_by_label("Number", exact=False).first.fill("2")
    page.get_by_role("button", name="Generate").click()
    assert page.get_by_role("img", name="Sample of seed 6 with its mask").get_attribute("src")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    command = page.locator("#generate-view code").inner_text()
    assert command == "slicebook generate MODEL --out DIR -n 2 --seed 5 --steps 16 --decoder-steps 8"
    words = command.replace("MODEL", str(model)).replace("DIR", str(tmp_path / "cli")).split()[1:]
    assert main.main(words) == 0
    assert unpacked(download.value) == contents(tmp_path / "cli")


def test_generate_for_a_mask_that_was_painted_by_keyboard(opened):
    page = opened()
    show(page, "Generate")
    page.get_by_label("For a painted mask").check()
    page.get_by_role("application").focus()
    for key in ("ArrowRight", "ArrowDown", "Space"):
        page.keyboard.press(key)
    assert "pixels painted" in page.locator("#generate-brush output").inner_text()
    page.get_by_label("Number", exact=False).first.fill("1")
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("img", name="Sample of seed 0 with its mask").wait_for()
    assert "--masks mask.nii.gz" in page.locator("#generate-view code").inner_text()


def test_paint_fills_a_brushed_region(opened, scan):
    page = opened()
    show(page, "Paint")
    page.get_by_text("Open a volume in the tab Look. Then paint").wait_for()
    show(page, "Look")
    look_at(page, scan)
    show(page, "Paint")
    box = page.get_by_role("application").bounding_box()
    page.get_by_role("button", name="Fill the region").click()
    page.get_by_text("Nothing is painted yet").wait_for()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 20, box["y"] + box["height"] / 2)
    page.mouse.up()
    page.get_by_role("button", name="Fill the region").click()
    page.get_by_role("img", name="Before, painted region and after, seed 0").wait_for()
    assert said(page, "paint") == "Done. Pixels outside the region are unchanged."


def test_judge_shows_the_report_of_this_model(opened):
    page = opened()
    show(page, "Judge")
    assert page.locator(".sb-card").count() == 4
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Open the whole report").click()
    assert "Slicebook" in popup.value.title()


def test_a_computation_can_be_stopped(opened):
    page = opened()
    show(page, "Generate")
    page.get_by_role("button", name="Sampling").click()
    page.get_by_label("Steps of the prior", exact=False).first.fill("64")
    page.get_by_label("Number", exact=False).first.fill("32")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("Generating").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Generate").wait_for()
    assert said(page, "generate") == "Stopped."
    assert page.locator(".sb-gallery").count() == 0


@pytest.mark.parametrize(
    "view",
    [{"width": 360, "height": 780}, {"width": 1280, "height": 800}, {"color_scheme": "dark"}],
    ids=["phone", "desktop", "dark"],
)
def test_every_tab_can_be_read_and_named(opened, scan, view):
    page = opened(**view)
    look_at(page, scan)
    faults = []
    for name in TABS:
        show(page, name)
        if name == "Paint":
            page.get_by_role("application").wait_for()
        page.wait_for_timeout(300)  # for the colours of a tab to fade in
        faults += [f"{name} has no name: {one}" for one in page.evaluate(NAMELESS)]
        faults += [f"{name} has low contrast: {one}" for one in page.evaluate(CONTRAST)]
        faults += [f"{name} overflows by {wide} px" for wide in [page.evaluate(OVERFLOW)] if wide > 0]
        faults += [f"{name} shows a path" for _ in PATH.findall(page.locator("body").inner_text())]
        faults += [f"{name} shows a file name" for _ in re.findall("JANE", page.content())]
    assert faults == []


def test_the_keyboard_reaches_the_tabs_and_moves_the_divider(opened, scan):
    page = opened()
    look_at(page, scan)
    divider = page.get_by_role("slider", name="Divider")
    divider.focus()
    divider.press("ArrowLeft")
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--split')") == "49%"
    page.get_by_role("tab", name="Generate").focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("button", name="Generate").is_visible()


def contents(folder):
    """Bytes by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def unpacked(download):
    """The same of a zip that was downloaded, without the folder in which everything lies."""
    with zipfile.ZipFile(download.path()) as archive:
        return {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}

"""The pages in a real browser, and two parts of the one without a server under node."""

import functools
import gzip
import io
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import browser_page, demo
from experiments.hostile_page import encoded
from PIL import Image

import groupvit
from groupvit import text as text_room
from groupvit.demo import split_labels
from groupvit.errors import InputError
from groupvit.segmentation import BACKGROUND, drawing, parse_labels
from groupvit.text.imagenet import imagenet_names
from groupvit.text.tokenizer import Tokenizer

REPOSITORY = Path(__file__).parents[1]
SHOTS = REPOSITORY / "runs/browser"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
PATIENCE = 40_000  # milliseconds; CI's cores are busy
ODD = ["Café naïve", "it's the dogs' we'll", "500 m² ½", "привет мир 日本語", "👍🏽 a—b", "x_y #tag @you", "İÇ ß"]
ODD += ["constructor toString", "__proto__"]
NODE = """
import { readFileSync } from "node:fs";
import { tokenizer } from "%s/docs/browser/tokenizer.js";
const { texts, model } = JSON.parse(readFileSync(0));
const read = tokenizer(model, 32);
console.log(JSON.stringify(texts.map((text) => read([text])[0])));
"""


def captions() -> list[str]:
    """Return 1,000 real captions, where there is data (`conftest.data_dir`)."""
    file = Path(os.environ.get("GROUPVIT_DATA", REPOSITORY / "../shared/data")) / "captions/flickr8k-test-0000.tar"
    if not file.is_file():
        return []
    with tarfile.open(file) as tar:
        texts = [tar.extractfile(entry).read().decode() for entry in tar if entry.name.endswith(".txt")]
    return [line for text in texts for line in text.splitlines()][:1000]


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_byte_pairs_in_javascript_are_ours() -> None:
    pairs = gzip.decompress((Path(text_room.__file__).parent / "clip_tokenizer.json.gz").read_bytes())
    draw, nouns = random.Random(0), [*imagenet_names(), "“cat’s”", "don't", "42", "t-shirt,", "Naïve", "???!", "the"]
    texts = [*ODD, *captions(), *(" ".join(draw.choices(nouns, k=draw.randint(1, 30))) for _ in range(1000))]
    given = json.dumps({"texts": texts, "model": json.loads(pairs)["model"]})
    command = ["node", "--input-type=module", "-e", NODE % REPOSITORY.as_posix()]
    rows = json.loads(subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout)
    for text, row, wanted in zip(texts, rows, Tokenizer(32)(texts).tolist(), strict=True):
        assert row + [0] * (32 - len(row)) == wanted, text


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
@pytest.mark.parametrize(
    "text",
    [
        "cat, wet grass,sky",
        "person=man,woman, dog",
        "a=b,c,d=e; 'f'",
        "dog, background=wall,floor",
        "x=y=z",
        "x=",
        "a,a",
    ],
)
def test_labels_in_javascript_are_ours(text: str) -> None:
    script = (
        f'import {{ parseLabels }} from "{REPOSITORY.as_posix()}/docs/browser/segment.js";'
        f"console.log(JSON.stringify(parseLabels({json.dumps(text)}).map(({{ name, words }}) => [name, words])));"
    )
    done = subprocess.run(["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=False)
    try:
        labels = parse_labels(split_labels(text))
    except InputError:
        assert "Mistake" in done.stderr
    else:
        ours = sorted(labels, key=lambda label: label.name != BACKGROUND)  # first, as in a result
        assert json.loads(done.stdout) == [[label.name, list(label.words)] for label in ours]


@dataclass(frozen=True)
class Page:
    """Where a page is, and what a visitor looks for on it."""

    address: str
    words: str  # the input in which words are typed
    message: str  # where it says what went wrong
    legend: str  # its entries
    picture: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("npm"):
        pytest.skip("npm is missing")
    out = tmp_path_factory.mktemp("page")
    command = [sys.executable, "-m", "experiments.browser_page", "--out", str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if "npm could not fetch" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def static(built: Path) -> Iterator[Page]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(built))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        yield Page(address, "#words", "#status", "#legend button", "#picture")
        server.shutdown()


@pytest.fixture(scope="module")
def gradio() -> Iterator[Page]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "groupvit", "demo", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert "Ctrl-C" in running.stdout.readline()
        places = ("textarea", "[data-testid=toast-text]", ".legend-item", "[role=tabpanel] .image-container")
        yield Page(f"http://127.0.0.1:{port}/", *places)
        running.terminate()


@pytest.fixture(params=["static", "gradio"])
def page(request: pytest.FixtureRequest) -> Page:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("Chromium is missing")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page; at the end no error may stand in its console, and no request have gone elsewhere."""
    errors, context = [], []

    def opened(page: Page, width: int = 1100, height: int = 900) -> Any:
        context.append(chromium.new_context(viewport={"width": width, "height": height}))
        tab = context[-1].new_page()
        tab.set_default_timeout(PATIENCE)
        tab.on("console", lambda told: told.type == "error" and errors.append(told.text))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("request", lambda sent: sent.url.startswith((page.address, "data:", "blob:")) or errors.append(sent.url))
        tab.goto(page.address)
        return tab

    yield opened
    for one in context:
        one.close()
    assert errors == []


def wait(tab: Any, selector: str, pattern: str = ".") -> Any:
    from playwright.sync_api import expect

    expect(tab.locator(selector).first).to_contain_text(re.compile(pattern), timeout=PATIENCE)
    return tab.locator(selector)


def photograph(width: int = 640, height: int = 427) -> bytes:
    return encoded(demo.photograph("motorcycle").resize((width, height)), "PNG")


def choose(tab: Any, data: bytes, name: str = "photo.png") -> None:
    file = {"name": name, "mimeType": "image/png", "buffer": data}
    tab.locator("input[type=file]").first.set_input_files(file)


def ask(tab: Any, page: Page, words: str) -> None:
    tab.fill(page.words, words)
    tab.get_by_role("button", name="Segment", exact=True).click()


def names(tab: Any, page: Page) -> set[str]:
    return {entry.split("\n")[0].strip() for entry in tab.locator(page.legend).all_inner_texts()}


@pytest.mark.browser
def test_words_give_a_picture_and_a_legend(page: Page, visit: Callable[..., Any]) -> None:
    tab = visit(page)
    choose(tab, photograph())
    ask(tab, page, "motorcycle=motorcycle,bike, wall")
    wait(tab, page.legend)
    assert {"motorcycle"} <= names(tab, page) <= {"background", "motorcycle", "wall"}
    assert tab.locator(page.picture).first.is_visible()


@pytest.mark.browser
@pytest.mark.parametrize("size", [(640, 427), (1200, 420), (301, 299)])
def test_the_label_map_is_that_of_the_command(size: tuple[int, int], static: Page, visit: Callable[..., Any]) -> None:
    tab, labels = visit(static), ["motorcycle=motorcycle,bike", "wall", "cupboard", "plane=aeroplane,airplane"]
    choose(tab, photograph(*size))
    ask(tab, static, ", ".join(labels))
    wait(tab, "#status", "pixels")
    with tab.expect_download() as saved:
        tab.get_by_role("button", name="Label map").click()
    made = np.asarray(Image.open(saved.value.path()).convert("RGB"))
    segmenter = groupvit.load("photos-trunk", engine="torch", precision="fp32")
    with pytest.warns(UserWarning, match="not by aeroplane"):
        wanted = segmenter.segment(Image.open(io.BytesIO(photograph(*size))), labels)
    assert len(np.unique(wanted.label_map)) > 1
    equal = (made == drawing.label_colours(wanted.names)[wanted.label_map]).all(axis=-1).mean()
    print(f"{100 * equal:.2f} % of the pixels are those of the command")
    assert equal >= 0.99


@pytest.mark.browser
@pytest.mark.parametrize("data", [b"a shopping list", b"", photograph()[:300]], ids=["text", "empty", "half"])
def test_a_wrong_file_gets_one_friendly_line(data: bytes, page: Page, visit: Callable[..., Any]) -> None:
    tab = visit(page)
    choose(tab, data, "notes.png")
    ask(tab, page, "cat, dog")
    told = wait(tab, page.message, "not a photo|not an image|cannot read|no photo|drop one").first.inner_text()
    assert "\n" not in told.strip()
    assert not re.search(r"Error|Traceback|/tmp|undefined", told)


@pytest.mark.browser
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "Type what to look for"),
        ("cat=,dog", "blank word"),
        ("cat, Cat", "there twice"),
        ("background, cat", "needs words"),
        (",".join(map(str, range(101))), "look for fewer"),
    ],
)
def test_words_that_cannot_be_looked_for_are_told(
    words: str, message: str, static: Page, visit: Callable[..., Any]
) -> None:
    tab = visit(static)
    choose(tab, photograph())
    ask(tab, static, words)
    wait(tab, static.message, message)
    assert not tab.locator(static.picture).is_visible()


@pytest.mark.browser
def test_a_photo_chosen_while_another_is_looked_at_is_the_one_shown(static: Page, visit: Callable[..., Any]) -> None:
    tab = visit(static)
    choose(tab, photograph(640, 427), "first.png")
    ask(tab, static, "motorcycle, wall")
    wait(tab, static.message, "Looking")
    choose(tab, photograph(500, 400), "second.png")
    wait(tab, static.message, "second.png: .* 500 × 400 pixels")


@pytest.mark.browser
def test_words_that_the_model_does_not_know_are_told(static: Page, visit: Callable[..., Any]) -> None:
    tab = visit(static)
    choose(tab, photograph())
    ask(tab, static, "motorcycle, zyzzyva; plane=aeroplane,airplane")
    wait(tab, static.message, "does not know: zyzzyva, aeroplane")


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 1100])
def test_a_page_is_never_wider_than_the_screen(width: int, page: Page, visit: Callable[..., Any]) -> None:
    tab = visit(page, width, 700)
    choose(tab, photograph(1200, 834))
    ask(tab, page, "motorcycle=motorcycle,bike, wall, floor, shelf")
    wait(tab, page.legend)
    tab.wait_for_timeout(500)  # pictures arrive after the legend
    SHOTS.mkdir(parents=True, exist_ok=True)
    shot = SHOTS / f"{'static' if page.message == '#status' else 'demo'}-{width}.png"
    tab.screenshot(path=shot, full_page=True)
    with Image.open(shot) as picture:
        assert picture.width == width


@pytest.mark.browser
def test_the_keyboard_is_enough(page: Page, visit: Callable[..., Any]) -> None:
    tab = visit(page)

    def go_to(selector: str) -> None:
        for _ in range(40):
            tab.keyboard.press("Tab")
            if tab.locator(f"{selector}:focus").count():
                return
        raise AssertionError(f"the Tab key never gets to {selector}")

    go_to(":is(input[type=file], [aria-label*=upload])")  # Chromium opens no dialog for a key that a test presses
    choose(tab, photograph())
    go_to(page.words)
    tab.keyboard.type("motorcycle=motorcycle,bike, wall")
    tab.keyboard.press("Enter")
    wait(tab, page.legend)
    tab.wait_for_timeout(500)
    before = tab.locator(page.picture).first.screenshot()
    go_to(page.legend)
    tab.wait_for_timeout(500)
    assert tab.locator(page.picture).first.screenshot() != before


def test_a_folder_that_is_no_page_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("mine")
    with pytest.raises(InputError, match="name another --out"):
        browser_page.main(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["own.txt"]


@pytest.mark.browser
def test_a_legend_and_the_picture_highlight_and_groups_are_another_view(
    static: Page, visit: Callable[..., Any]
) -> None:
    tab = visit(static)
    tab.get_by_role("button", name="Take an example").click()
    wait(tab, static.message, "pixels")
    picture = tab.locator(static.picture)
    plain = picture.screenshot()
    tab.locator(static.legend).first.hover()
    highlighted = picture.screenshot()
    tab.locator(static.legend).first.click()
    tab.mouse.move(1, 1)
    assert plain != highlighted == picture.screenshot()
    picture.hover(position={"x": 5, "y": 5})
    tab.mouse.move(1, 1)
    assert highlighted == picture.screenshot()  # what a click keeps outlasts the pointer in the picture
    tab.locator(static.legend).first.click()
    tab.locator("#words").focus()
    assert picture.screenshot() == plain
    tab.get_by_label("Groups").check()
    tab.mouse.move(1, 1)
    assert picture.screenshot() not in (plain, highlighted)
    assert not tab.locator(static.legend).first.is_visible()
    with tab.expect_download() as saved:
        tab.get_by_role("button", name="Picture").click()
    with Image.open(saved.value.path()) as saved_picture:
        assert saved_picture.size == demo.photograph("motorcycle").size

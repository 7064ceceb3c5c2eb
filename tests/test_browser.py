"""The pages in a real browser, and the tokenizer of the one without a server under node."""

import functools
import gzip
import io
import json
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import demo
from experiments.hostile_page import encoded
from PIL import Image

import groupvit
from groupvit import text as text_room
from groupvit.segmentation import drawing
from groupvit.text.imagenet import imagenet_names
from groupvit.text.tokenizer import Tokenizer

REPOSITORY = Path(__file__).parents[1]
SHOTS = REPOSITORY / "runs/browser"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
PATIENCE = 60_000  # milliseconds; CI's cores are busy
ODD = ["Café naïve", "it's the dogs' we'll", "500 m² ½", "привет мир 日本語", "👍🏽 a—b", "x_y #tag @you", "İÇ ß"]
NODE = """
import { readFileSync } from "node:fs";
import { tokenizer } from "%s/docs/browser/tokenizer.js";
const { texts, model } = JSON.parse(readFileSync(0));
console.log(JSON.stringify(texts.map((text) => tokenizer(model, 32)([text])[0])));
"""


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_byte_pairs_in_javascript_are_ours() -> None:
    pairs = gzip.decompress((Path(text_room.__file__).parent / "clip_tokenizer.json.gz").read_bytes())
    draw, nouns = random.Random(0), [*imagenet_names(), "“cat’s”", "don't", "42", "t-shirt,", "Naïve", "???!", "the"]
    texts = [*ODD, *(" ".join(draw.choices(nouns, k=draw.randint(1, 30))) for _ in range(1000))]
    script = (NODE % REPOSITORY.as_posix()).replace("tokenizer(model, 32)([text])", "read([text])")
    script = script.replace("console", "const read = tokenizer(model, 32);\nconsole")
    given = json.dumps({"texts": texts, "model": json.loads(pairs)["model"]})
    command = ["node", "--input-type=module", "-e", script]
    rows = json.loads(subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout)
    for text, row, wanted in zip(texts, rows, Tokenizer(32)(texts).tolist(), strict=True):
        assert row + [0] * (32 - len(row)) == wanted, text


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
        yield Page(f"http://127.0.0.1:{port}/", "textarea", ".toast-body", ".legend-item", ".image-container img")
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
        tab.on("console", lambda told: told.type in ("error", "warning") and errors.append(told.text))
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
    assert names(tab, page) - {"background"} == {"motorcycle", "wall"}
    assert tab.locator(page.picture).first.is_visible()


@pytest.mark.browser
@pytest.mark.parametrize("size", [(640, 427), (1200, 420), (301, 299)])
def test_the_label_map_is_that_of_the_command(size: tuple[int, int], static: Page, visit: Callable[..., Any]) -> None:
    tab, labels = visit(static), ["motorcycle=motorcycle,bike", "wall", "cupboard"]
    choose(tab, photograph(*size))
    ask(tab, static, ", ".join(labels))
    wait(tab, "#status", "pixels")
    with tab.expect_download() as saved:
        tab.get_by_role("button", name="Label map").click()
    made = np.asarray(Image.open(saved.value.path()).convert("RGB"))
    segmenter = groupvit.load("photos-trunk", engine="torch", precision="fp32")
    wanted = segmenter.segment(Image.open(io.BytesIO(photograph(*size))), labels)
    assert len(np.unique(wanted.label_map)) > 1
    equal = (made == drawing.label_colours(wanted.names)[wanted.label_map]).all(axis=-1).mean()
    print(f"{100 * equal:.2f} % of the pixels are those of the command")
    assert equal >= 0.99

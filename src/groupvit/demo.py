"""`groupvit demo`: a page on which a photo is dropped and words are typed."""

import asyncio
import inspect
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from groupvit import api
from groupvit.errors import InputError
from groupvit.files import png
from groupvit.machine import share_freed_memory
from groupvit.photos import load_rgb
from groupvit.segmentation import BACKGROUND, Segmentation, Segmenter, View, drawing

if TYPE_CHECKING:
    from gradio import Blocks

MAX_BYTES = 20_000_000  # of a request
MAX_PIXELS = 25_000_000
MAX_LENGTH = 8  # times the shorter side: a strip of one row would become millions of patches
MAX_WORDS = 100
MAX_LETTERS = 5000
MAX_WAITING = 20
SECONDS = 60  # for a request to arrive
_KEPT = 600  # seconds
_PIXELS_DRAWN = 2**18  # the page is 420 pixels high, and Gradio writes a PNG for each label
_PIXELS_SAVED = 2**22
_EXAMPLES = {"chelsea": "cat, bed=bed,blanket, wall", "coffee": "cup, spoon, table", "astronaut": "person, flag"}
TITLE = "Segments from words"
_HELP = "Separate labels by commas. Several words for one label: person=man,woman"


def split_labels(text: str) -> list[str]:
    """Return the labels of a line: a comma ends one, but in `person=man,woman` only if a space or a new = follows."""
    parts = re.split(r"[;\n]+|,\s+|,(?=[^,;\n]*=)", text)
    labels = [label.strip() for part in parts for label in ([part] if "=" in part else part.split(","))]
    labels = [label for label in labels if label]
    if sum(1 + label.count(",") for label in labels) > MAX_WORDS or len(text) > MAX_LETTERS:
        raise InputError(f"more than {MAX_WORDS} words or {MAX_LETTERS:,} letters: look for fewer at once")
    return labels


def answer(segmenter: Segmenter, photo: str | None, text: str | None, scale: float, background: float) -> Segmentation:
    """Segment an uploaded photo; an `InputError` says what the visitor may change."""
    if not photo:
        raise InputError("no photo: drop one first")
    image = load_rgb(Path(photo).read_bytes(), "the photo", MAX_PIXELS)
    if max(image.size) > MAX_LENGTH * min(image.size):
        raise InputError(f"the photo is more than {MAX_LENGTH} times as long as wide: cut it")
    if not 0.5 <= scale <= 2 or not 0 <= background <= 1:
        raise InputError("scale lies between 0.5 and 2, background between 0 and 1")
    side = round(scale * segmenter.config.image.short_side)
    view = View(short_side=side, background=background or "auto")
    return segmenter.segment(image, split_labels(text or ""), view)


def page(segmenter: Segmenter) -> "Blocks":
    """Return the page."""
    import gradio as gr

    stages = sum(stage.output_groups > 0 for stage in segmenter.config.image.stages)

    def run(photo: str | None, text: str | None, scale: Any, background: Any) -> list[Any]:
        began = time.perf_counter()
        try:
            segmenter.words.told.clear()  # by another visitor
            with warnings.catch_warnings(record=True) as notes:
                result = answer(segmenter, photo, text, float(scale), float(background))
            shown = _shown(result, stages)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception:
            traceback.print_exc(file=sys.stderr)
            raise gr.Error("That did not work. Try another photo.", print_exception=False) from None
        told = [f"{time.perf_counter() - began:.1f} s, {result.image.width} × {result.image.height} pixels"]
        return [*shown, ". ".join(dict.fromkeys([*told, *(str(note.message) for note in notes)])), *_files(result)]

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(60, _KEPT)) as blocks:
        gr.Markdown(f"# {TITLE}\nDrop a photo and type what to look for. The photo is deleted after ten minutes.")
        with gr.Row():
            with gr.Column():
                photo = _photo_input()
                words = gr.Textbox(label="Labels", info=_HELP, placeholder="cat, grass, person=man,woman", max_lines=4)
                with gr.Accordion("Settings", open=False):
                    scale = gr.Slider(0.5, 2, 1, step=0.25, label="Scale", info="More finds smaller things")
                    info = "Scores below are background. At 0, other words that the model knows compete"
                    background = gr.Slider(0, 1, 0, step=0.05, label="Background", info=info)
                button = gr.Button("Segment", variant="primary")
            with gr.Column():
                with gr.Tabs():
                    with gr.Tab("Labels"):
                        pictures: list[Any] = [
                            gr.AnnotatedImage(label="Point at a label to see its pixels", height=420, format="jpeg")
                        ]
                    for stage in range(1, stages + 1):
                        with gr.Tab(f"Groups, stage {stage}"):
                            kept = {"interactive": False, "buttons": ["download", "fullscreen"]}  # none to share
                            pictures.append(gr.Image(label=f"Groups of stage {stage}", height=420, **kept))
                heads = ["label", "% of the photo", "score"]
                table = gr.Dataframe(headers=heads, label="Scores", interactive=False)
                told = gr.Markdown()
                with gr.Row():
                    names = ("Picture (PNG)", "Label map (PNG)", "JSON", "COCO")
                    files = [gr.DownloadButton(name, size="sm", interactive=False) for name in names]
        if examples := _examples():
            # gr.Examples would build the photo input anew for the visitor, without what `_photo_input` changed.
            shelf = gr.Dataset(components=[photo, words], samples=examples, label="Examples")
            silent: Any = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
            shelf.click(lambda sample: sample, shelf, [photo, words], **silent)
        given, shown = [photo, words, scale, background], [*pictures, table, told, *files]
        gr.on([button.click, words.submit], run, given, shown, api_name="segment", concurrency_limit=1)
    return blocks.queue(max_size=MAX_WAITING)


def _photo_input() -> Any:
    """Return an input whose photos are handed on as they were uploaded, and never fetched from an address."""
    import gradio as gr

    photo: Any = gr.Image(sources=["upload", "webcam", "clipboard"], type="filepath", label="Photo", height=320)
    to_cache = photo.async_move_resource_to_block_cache

    async def uploaded(place: Any) -> str | None:
        if re.match(r"[a-z][a-z0-9+.-]+:", str(place), re.IGNORECASE):
            raise gr.Error("Photos are uploaded, not fetched.", print_exception=False)
        return await to_cache(place)

    photo.async_move_resource_to_block_cache = uploaded
    photo.preprocess = lambda payload: payload and payload.path
    return photo


def _shown(result: Segmentation, stages: int) -> list[Any]:
    """Return the overlay, the groups of each stage (none if a window slid over the photo) and the table."""
    import gradio as gr

    small = result.reduced(_PIXELS_DRAWN)
    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in drawing.label_colours(small.names).tolist()]
    parts = [(i, name) for i, name in enumerate(small.names) if name != BACKGROUND and (small.label_map == i).any()]
    masks = [((small.label_map == i) * 0.6, name) for i, name in parts]
    overlay = gr.AnnotatedImage((small.image, masks), color_map=dict(zip(small.names, colours, strict=True)))
    groups = [drawing.groups(small.image, stage) for stage in small.groups]
    rows = [
        [name, round(100 * share, 1), round(score, 2)]
        for name, share, score in zip(result.names, result.shares, result.scores, strict=True)
    ]
    return [overlay, *groups, *[None] * (stages - len(groups)), rows]


def _files(result: Segmentation) -> list[Any]:
    """Return buttons that load down the pictures, JSON and COCO."""
    import gradio as gr
    from gradio.processing_utils import save_bytes_to_cache

    files = {
        "overlay.png": png(result.reduced(_PIXELS_SAVED).overlay()),
        "labels.png": png(drawing.indexed(result.label_map, result.names)),
        "labels.json": json.dumps(result.to_dict(), indent=2).encode(),
        "coco.json": json.dumps(result.to_coco("photo.jpg")).encode(),
    }
    folder = os.environ["GRADIO_TEMP_DIR"]
    paths = [save_bytes_to_cache(data, name, cache_dir=folder) for name, data in files.items()]
    return [gr.DownloadButton(value=path, interactive=True) for path in paths]


def _examples() -> list[list[str]]:
    """Copy photographs of scikit-image, for visitors without one; its own way to read them takes half a second."""
    spec, folder = find_spec("skimage"), os.environ["GRADIO_TEMP_DIR"]
    if not spec or not spec.origin:
        return []
    files = {Path(spec.origin).parent / f"data/{name}.png": words for name, words in _EXAMPLES.items()}
    return [[shutil.copy(file, folder), words] for file, words in files.items() if file.is_file()]


class _Limits:
    """Middleware that ends requests which are too large or too slow."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.exceptions import HTTPException

        left, until, arrived = MAX_BYTES, time.monotonic() + SECONDS, False

        async def limited() -> Any:
            nonlocal left, arrived
            if arrived:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), until - time.monotonic())
            except TimeoutError:
                raise HTTPException(408, "too slow") from None
            left, arrived = left - len(message.get("body", b"")), not message.get("more_body")
            if left < 0:
                raise HTTPException(413, f"larger than {MAX_BYTES // 10**6} MB")
            return message

        await self.app(scope, limited if scope["type"] == "http" else receive, send)


def serve(model: str = "photos-trunk", host: str = "127.0.0.1", port: int = 7860) -> None:
    """Show the page at an address until Ctrl-C. Uploads lie in a temporary folder that is removed at the end."""
    share_freed_memory()
    segmenter = _load_beside_gradio(model)
    from starlette.middleware import Middleware

    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # Gradio asks its own page whether it is there
    for name in ("SIGTERM", "SIGHUP"):  # so that the folder is removed
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) != signal.SIG_IGN:  # nohup's stays
            signal.signal(number, lambda received, _: sys.exit(128 + received))
    with tempfile.TemporaryDirectory(prefix="groupvit-demo-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        blocks = page(segmenter)
        name = f"[{host.strip('[]')}]" if ":" in host else host
        app = {"middleware": [Middleware(_Limits)], "docs_url": None, "redoc_url": None, "openapi_url": None}
        bounds = {"max_threads": 4, "state_session_capacity": 100, "max_file_size": MAX_BYTES}
        shown = {"share": False, "ssr_mode": False, "show_error": False, "quiet": True, "footer_links": []}
        options = {"app_kwargs": app, "prevent_thread_lock": True, **bounds, **shown}
        try:
            blocks.launch(server_name=name, server_port=port, **options)
        except OSError as error:
            raise InputError(f"cannot listen at {host}, port {port}: choose another --port, or --host") from error
        print(f"groupvit: {blocks.local_url} (Ctrl-C ends it)", flush=True)
        segmenter.segment(np.zeros((448, 672, 3), np.uint8), ["photo"])  # the first one takes seconds more
        threading.Event().wait()


def _load_beside_gradio(model: str) -> Segmenter:
    """Load the model while Gradio is imported: both take seconds."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(api.load, model)
        load_gradio()
    return loading.result()


def load_gradio() -> Any:
    """Import Gradio without the stubs for editors that it writes beside itself each time: half of the import."""
    getfile = inspect.getfile

    def no_source(thing: Any) -> str:
        if getattr(thing, "__module__", "").startswith("gradio."):
            raise OSError
        return getfile(thing)

    inspect.getfile = no_source
    try:
        return import_module("gradio")
    except ImportError as error:
        raise InputError(f'the page needs Gradio ({error}): pip install "groupvit[demo]"') from error
    finally:
        inspect.getfile = getfile

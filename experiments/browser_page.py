"""Builds the page that segments photos in the visitor's browser, without a server: `make browser`.

    python -m experiments.browser_page --out build/browser

Needs npm, which brings onnxruntime-web in the version of `docs/browser/package-lock.json`. Any web server shows the
folder: `python -m http.server --directory build/browser`.
"""

import gzip
import json
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from experiments.command import run_script
from experiments.demo import PHOTOS, photograph

from groupvit import api, text
from groupvit.checkpoints.onnx import Groups, save, save_texts
from groupvit.errors import InputError
from groupvit.models import GroupViT, ModelConfig
from groupvit.segmentation import drawing
from groupvit.segmentation.rivals import STUFF, UNLIKE
from groupvit.text.imagenet import imagenet_texts
from groupvit.text.nouns import PERSON_WORDS
from groupvit.text.templates import SIMPLE_TEMPLATE

SOURCE = Path(__file__).parents[1] / "docs/browser"
EXAMPLE = "motorcycle"
_WASM = "ort-wasm-simd-threaded"
_COLOURS = 101  # of background and as many labels as the page takes


def halved(data: bytes) -> bytes:
    """Return an ONNX model whose large weights are float16, cast to float32 when it is loaded."""
    model = onnx.load_from_string(data)
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and np.prod(weight.dims) >= 256:
            name, values = weight.name, onnx.numpy_helper.to_array(weight)
            weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
            casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def description(model: GroupViT, config: ModelConfig) -> dict[str, Any]:
    """Return what the page must know of the model besides its weights."""
    groups = Groups(model, config)
    return {
        "shortSide": config.image.short_side,
        "patch": config.image.patch_size,
        "embed": config.embed_dim,
        "contextLength": config.text.context_length,
        "scale": groups.scale,
        "sizes": groups.sizes(),
        "maps": f"groups_{len([stage for stage in config.image.stages if stage.has_grouping])}",
        "template": SIMPLE_TEMPLATE,
        "nouns": config.rivals,
        "stuff": sorted(STUFF),
        "people": sorted(PERSON_WORDS | {"person", "people"}),
        "families": imagenet_texts(),
        "unlike": UNLIKE,
        "colours": ["#{:02x}{:02x}{:02x}".format(*c) for c in [(48, 48, 48), *drawing.palette(_COLOURS - 1).tolist()]],
        "example": f"{EXAMPLE}.jpg",
        "words": ", ".join(PHOTOS[EXAMPLE]),
    }


def runtime(out: Path) -> dict[str, bytes]:
    """Fetch onnxruntime-web, copy its script into `out`, and return its WebAssembly."""
    with TemporaryDirectory() as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCE / name, folder)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        try:
            subprocess.run(command, cwd=folder, check=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            raise InputError(f"npm could not fetch onnxruntime-web ({error}): install npm, or try again") from error
        dist = Path(folder) / "node_modules/onnxruntime-web/dist"
        for name in ("ort.wasm.min.mjs", f"{_WASM}.mjs"):
            shutil.copy(dist / name, out)
        return {"ort.wasm": (dist / f"{_WASM}.wasm").read_bytes()}


def main(out: Path = Path("build/browser")) -> None:
    """Build the page.

    Args:
        out: Folder to write; what it held is replaced.
    """
    if out.exists() and not (out / "model.json.gzip").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not a page that was built before: name another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent) as folder:
        build(built := Path(folder) / "page")
        shutil.rmtree(out, ignore_errors=True)
        built.rename(out)
    for path in sorted(out.iterdir(), key=lambda path: -path.stat().st_size):
        print(f"{path.stat().st_size / 1e6:6.2f} MB  {path.name}")
    print(f"{sum(path.stat().st_size for path in out.iterdir()) / 1e6:6.2f} MB  {out}")


def build(out: Path) -> None:
    """Fill a new folder with the page."""
    out.mkdir()
    files = runtime(out)
    model, config = api.load_model("photos-trunk")
    assert model.rivals is not None
    with TemporaryDirectory() as folder:
        for name, write in (("model.onnx", save), ("text.onnx", save_texts)):
            print(write(Path(folder) / name, model, config))
            files[name] = halved((Path(folder) / name).read_bytes())
    files["nouns.f32"] = model.rivals.numpy().tobytes()
    files["tokenizer.json"] = gzip.decompress((Path(text.__file__).parent / "clip_tokenizer.json.gz").read_bytes())
    # Servers would announce files called .gz as encoded, and browsers unpack them before the page does.
    packed = {f"{name}.gzip": gzip.compress(data, mtime=0) for name, data in files.items()}
    known = description(model, config) | {"bytes": sum(map(len, packed.values()))}
    packed["model.json.gzip"] = gzip.compress(json.dumps(known).encode(), mtime=0)
    for name, data in packed.items():
        (out / name).write_bytes(data)
    for name in ("index.html", "app.js", "segment.js", "tokenizer.js", "style.css"):
        shutil.copy(SOURCE / name, out)
    photograph(EXAMPLE).save(out / f"{EXAMPLE}.jpg", quality=90)


if __name__ == "__main__":
    run_script(main)

"""Engines that run the image encoder on a CPU in PyTorch's place: OpenVINO and ONNX Runtime."""

import copy
import hashlib
import os
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from groupvit.errors import InputError, input_error
from groupvit.files import cache_folder, write_atomically
from groupvit.models import ImageFeatures, Ungrouped, weights_digest
from groupvit.models.grouping import assignment
from groupvit.models.image_encoder import ImageEncoder
from groupvit.models.stems import TrunkFeatures, TrunkStem
from groupvit.models.tracing import EXAMPLE, onnx_graph, onnx_runtime

Engine = Literal["torch", "onnxruntime", "openvino"]
"""What runs the image encoder; everything else is PyTorch's in either case."""

Images = Float[Tensor, "batch 3 height width"]

_EXTRAS = {"openvino": "fast", "onnxruntime": "onnx"}
_AT_ONCE = 8  # images: with 32, OpenVINO takes 4 % longer for each
_KEPT = 10  # networks in the cache, of some 100 MB each, and as much compiled
_AXES = {"images": ("batch", None, "height", "width")}


def chosen(engine: str) -> Engine:
    """Return the engine to use: for "auto" OpenVINO where it is installed and there is no GPU, PyTorch otherwise."""
    if engine == "auto":
        fast = not torch.cuda.is_available() and find_spec("openvino") and find_spec("onnx")
        return "openvino" if fast else "torch"
    if engine not in ("torch", "openvino", "onnxruntime"):
        raise InputError(f"engine {engine!r} must be auto, torch, onnxruntime or openvino")
    if engine != "torch" and not (find_spec(engine) and find_spec("onnx")):
        raise InputError(f"the engine {engine} is not installed: pip install 'groupvit[{_EXTRAS[engine]}]'")
    return engine


def encoder_in(engine: Engine, encoder: ImageEncoder) -> Callable[[Images], ImageFeatures]:
    """Return the encoder with its network in another engine, which is built at the first call and kept in the cache.

    It computes in bfloat16 where autocast says so, if the engine can. A trunk's groups stay in PyTorch: k-means on
    rounded features would give other ones.
    """
    if engine == "torch":
        return encoder
    if not isinstance(encoder.stem, TrunkStem):
        return _Whole(encoder, engine)
    changed = copy.copy(encoder)
    changed._modules = dict(encoder._modules)
    changed.stem = _Stem(encoder.stem, engine)
    return changed


class _Whole:
    """An image encoder without a trunk."""

    def __init__(self, encoder: ImageEncoder, engine: Engine):
        self.patch_size = encoder.patch_size
        self.network = _ENGINES[engine](_Plain(encoder, _of_encoder))

    def __call__(self, images: Images) -> ImageFeatures:
        pooled, segments, *stages = self.network(images)
        ungrouped = tuple(Ungrouped(*pair) for pair in zip(stages[::3], stages[1::3], strict=True))
        assignments = tuple(assignment(soft, soft.max(dim=1).indices) for soft in stages[2::3])
        height, width = (-(-size // self.patch_size) for size in images.shape[-2:])
        return ImageFeatures(pooled, segments, ungrouped, assignments, (height, width))


class _Stem(TrunkStem):
    """A trunk in another engine."""

    def __init__(self, stem: TrunkStem, engine: Engine):
        nn.Module.__init__(self)
        self.trunk = stem.trunk
        self.network = _ENGINES[engine](_Plain(stem, lambda made: [made.patches, made.local, made.last]))

    def forward(self, images: Images, early: Any = ()) -> TrunkFeatures:
        return TrunkFeatures(*self.network(images))


class _Plain(nn.Module):
    """A module's features as plain tensors."""

    def __init__(self, module: nn.Module, tensors_of: Callable[[Any], list[Tensor]]):
        super().__init__()
        self.module, self.tensors_of = module, tensors_of

    def forward(self, images: Images) -> list[Tensor]:
        return self.tensors_of(self.module(images))


def _of_encoder(made: ImageFeatures) -> list[Tensor]:
    stages = zip(made.ungrouped, made.assignments, strict=True)
    each = [(given.segments, given.group_tokens, joins.soft) for given, joins in stages]
    return [made.pooled, made.segments, *(tensor for stage in each for tensor in stage)]


class _Graph:
    """A module's ONNX graph, for images of any number and size, in the user's cache."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.threads = torch.get_num_threads()  # of whoever made it: those who call may have fewer

    @cached_property
    def file(self) -> Path:
        """Where the graph lies, by its weights, its options and what wrote it; written if need be."""
        made_of = f"{torch.__version__} {self.module!r} {_options(self.module)} {weights_digest(self.module)}"
        digest = hashlib.sha256(made_of.encode())
        for source in (Path(__file__), *sorted(Path(__file__).parents[1].glob("models/*.py"))):
            digest.update(source.read_bytes())
        file = cache_folder() / "engines" / f"{digest.hexdigest()[:32]}.onnx"
        if not file.is_file():
            return self._written(file)
        with suppress(OSError):  # another user's
            os.utime(file)
        return file

    def _written(self, file: Path) -> Path:
        """Write the graph, and return where: for this process alone if the cache is full or another user's."""
        with _TRACING, torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            generator = torch.Generator().manual_seed(0)
            example = torch.randn(EXAMPLE, generator=generator, dtype=torch.float32)
            outputs = [f"output_{i}" for i, _ in enumerate(self.module(example))]
            graph = onnx_graph(self.module, {"images": example}, outputs, dict.fromkeys(outputs, ("batch",)) | _AXES)
        try:
            write_atomically(file, graph)
            _forget_oldest(file.parent)
        except InputError:
            with input_error("nowhere to write the network for the engine", OSError):
                folder = tempfile.mkdtemp()
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            write_atomically(file := Path(folder, file.name), graph)
        return file

    def loaded(self, load: Callable[[Path], Any]) -> Any:
        """Return what `load` makes of the file, written afresh if it was damaged."""
        try:
            return load(self.file)
        except MemoryError:
            raise
        except Exception:  # the engines raise nearly anything
            with input_error("this engine cannot run the network", Exception, advice="take the engine torch"):
                self.file = self._written(self.file)
                return load(self.file)


def _forget_oldest(folder: Path) -> None:
    """Remove the networks that were not used for longest; else each evaluated checkpoint would leave its own."""
    with suppress(OSError):  # another process removes them, too
        for file in sorted(folder.glob("*.onnx"), key=lambda file: file.stat().st_mtime)[:-_KEPT]:
            file.unlink()
        for compiled in folder.iterdir():
            if compiled.is_dir() and not compiled.with_suffix(".onnx").exists():
                shutil.rmtree(compiled, ignore_errors=True)


def _options(module: nn.Module) -> str:
    """Return the numbers, words and choices of a module's parts; its `repr` lacks many."""
    parts = ((name, sorted(vars(part).items())) for name, part in module.named_modules())
    plain = ((name, key, value) for name, items in parts for key, value in items if key != "training")
    return repr([each for each in plain if isinstance(each[2], str | int | float | tuple | None)])


_TRACING = threading.Lock()  # torch writes one graph at a time


class _OpenVINO(_Graph):
    """A module in OpenVINO, compiled once for each precision and kept compiled in the cache."""

    def __init__(self, module: nn.Module):
        super().__init__(module)
        self.lock = threading.Lock()  # a compiled model answers one call at a time
        self.models: dict[str, Any] = {}

    def __call__(self, images: Images) -> list[Tensor]:
        with self.lock:
            precision = "bf16" if torch.is_autocast_enabled("cpu") else "f32"
            if precision not in self.models:
                self.models[precision] = self.compiled(precision)
            made = [self.models[precision](_array(part)).to_tuple() for part in images.split(_AT_ONCE)]
        outputs = zip(*made, strict=True)
        return [torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts)) for parts in outputs]

    def compiled(self, precision: str) -> Any:
        """Return the compiled model."""
        settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": self.threads}

        def load(file: Path) -> Any:
            # Of its own for each precision: compiled for float32 and loaded for bfloat16, a model computes NaN.
            cached = settings | {"CACHE_DIR": str(file.with_suffix(f".{precision}"))}
            return openvino_core().compile_model(str(file), "CPU", cached)

        return self.loaded(load)


@cache
def openvino_core() -> Any:
    """Return OpenVINO's core, without its telemetry: each import would tell Google Analytics, from a forked process.

    There is one for good: once the last one is gone, its libraries are unloaded, and threads that used them crash.
    """
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    import openvino

    return openvino.Core()


class _ONNXRuntime(_Graph):
    """A module in ONNX Runtime, always in float32."""

    def __call__(self, images: Images) -> list[Tensor]:
        return [torch.from_numpy(made) for made in self.session.run(None, {"images": _array(images)})]

    @cached_property
    def session(self) -> Any:
        """The loaded model."""

        def load(file: Path) -> Any:
            runtime = onnx_runtime()
            options = runtime.SessionOptions()
            options.intra_op_num_threads = self.threads
            return runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

        return self.loaded(load)


_ENGINES = {"openvino": _OpenVINO, "onnxruntime": _ONNXRuntime}


def _array(images: Images) -> Any:
    return images.float().contiguous().numpy()

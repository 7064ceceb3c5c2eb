"""Train a vision transformer on captioned images until segments emerge, then name the segments with any words.

The public names are imported when they are first used, so `import groupvit` itself loads nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groupvit.api import load
    from groupvit.models import ModelConfig, build_model
    from groupvit.segmentation.segmenter import Segmenter
    from groupvit.segmentation.view import View

__version__ = "0.1.0"
__all__ = ["ModelConfig", "Segmenter", "View", "__version__", "build_model", "load"]

_HOMES = {
    "ModelConfig": "groupvit.models",
    "Segmenter": "groupvit.segmentation.segmenter",
    "View": "groupvit.segmentation.view",
    "build_model": "groupvit.models",
    "load": "groupvit.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'groupvit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

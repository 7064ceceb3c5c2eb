"""A Hugging Face Space that shows the page of `groupvit demo`."""

import re
import shutil
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import groupvit
from groupvit import api
from groupvit.checkpoints import native
from groupvit.demo import TITLE, load_gradio
from groupvit.errors import InputError, input_error
from groupvit.files import new_folder

_README = """---
title: {title}
emoji: 🧩
colorFrom: green
colorTo: blue
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
license: {licence}
---

Written by `groupvit demo --space` of groupvit {version}. Push this folder to a Space.
"""


def write_space(folder: Path, model: str) -> None:
    """Write a Hugging Face Space: the package with the model, `app.py`, `requirements.txt` and a README."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already: choose an empty folder")
    place, package, gradio = api.locate(model), Path(groupvit.__file__).parent, load_gradio()
    with input_error("what the page needs is not known", PackageNotFoundError, advice="install the package first"):
        own = requires("groupvit") or ()
    others = [name for name in api.BUNDLED if name != model]
    name = model if model in api.BUNDLED else "model"
    needed = [re.sub(r"\s*;.*", "", line) for line in own if not re.search(r"extra == ['\"](?!demo['\"])", line)]
    lines = ["--extra-index-url https://download.pytorch.org/whl/cpu", *needed]
    values = {"title": TITLE, "gradio": gradio.__version__, "version": groupvit.__version__}
    values["licence"] = "apache-2.0" if model in api.BUNDLED else "other"
    with new_folder(folder) as space:
        try:
            shutil.copytree(package, space / "groupvit", ignore=shutil.ignore_patterns("__pycache__", *others))
        except shutil.Error as error:  # of each file its own
            raise InputError(f"cannot write {folder}: {error.args[0][0][2]}") from error
        if model not in api.BUNDLED:
            native.save(space / "model", *api.load_model(place))
        app = f'from groupvit.demo import serve\n\nserve("{name}", host="0.0.0.0")\n'
        (space / "app.py").write_text(app)
        (space / "requirements.txt").write_text("\n".join(lines) + "\n")
        (space / "README.md").write_text(_README.format(**values), encoding="utf-8")

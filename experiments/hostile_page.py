"""What hostile requests get from `groupvit demo`, and what they cost it.

    python -m experiments.hostile_page --record      # a table of docs/RELIABILITY.md

Starts the page and sends it broken photos, senseless words and values, paths and addresses, malformed requests, slow
clients and fifty visitors at once. No answer may hold a traceback or a path of the machine; the page must then still
answer, and have grown by less than 100 MB. Gradio tells a visitor where his own upload lies in the temporary folder.
"""

import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from experiments.command import run_script
from experiments.record import commit, record_table
from PIL import Image

from groupvit.errors import InputError

WORDS = "cat, dog"
API = "/gradio_api"
_LEAKS = re.compile(r"Traceback|File \"|\.py\b|site-packages|root:x:|" + re.escape(str(Path(__file__).parents[1])))
Visitor = httpx.Client


def client(address: str) -> Visitor:
    """Return a client that takes a new connection for each request."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(base_url=address, timeout=200, trust_env=False, limits=limits)


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    """Return the bytes of a picture's file."""
    data = io.BytesIO()
    image.save(data, kind)
    return data.getvalue()


PHOTO = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)))


def bomb() -> bytes:
    """Return a PNG of 30,000 x 30,000 black pixels in a hundred kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(30_000 * 3751), 9)
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def upload(visitor: Visitor, data: bytes, name: str = "a.jpg") -> Any:
    """Upload a file and return the value that stands for it."""
    answer = visitor.post(f"{API}/upload", files={"files": (name, data)})
    answer.raise_for_status()
    return {"path": answer.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def ask(visitor: Visitor, *values: Any) -> str:
    """Call the page's function and return how it ended."""
    answer = visitor.post(f"{API}/call/segment", json={"data": values})
    if answer.status_code != 200:
        return told(answer)
    text = visitor.get(f"{API}/call/segment/{answer.json()['event_id']}").text
    event, data = re.findall(r"event: (\w+)\ndata: (.*)", text)[-1]
    if event == "complete":
        return "masks: " + json.loads(data)[-5].partition(",")[2].strip()
    return f"{event}: {data}"


def told(answer: httpx.Response) -> str:
    """Return the status and the beginning of the text of an answer."""
    return f"{answer.status_code} {' '.join(answer.text.split())}"


def photo(data: bytes | Callable[[], bytes], name: str = "a.jpg") -> Callable[[Visitor], str]:
    """Return a request with that photo."""
    return lambda visitor: ask(visitor, upload(visitor, data() if callable(data) else data, name), WORDS, 1, 0)


def words(text: Any, scale: Any = 1, background: Any = 0) -> Callable[[Visitor], str]:
    """Return a request with a good photo and these values."""
    return lambda visitor: ask(visitor, upload(visitor, PHOTO), text, scale, background)


def place(value: Any) -> Callable[[Visitor], str]:
    """Return a request whose photo is this value."""
    return lambda visitor: ask(visitor, value, WORDS, 1, 0)


def file(path: str, **more: Any) -> Callable[[Visitor], str]:
    """Return a request whose photo is said to lie at that place."""
    return place({"path": path, "meta": {"_type": "gradio.FileData"}, **more})


def get(path: str, method: str = "GET", **options: Any) -> Callable[[Visitor], str]:
    """Return a plain request; what the answer repeats of its address is left out."""
    return lambda visitor: told(visitor.request(method, path, **options)).replace(path.partition("=")[2] or path, "...")


def slow(visitor: Visitor) -> str:
    """Send a byte a second of an upload and return what comes."""
    url = visitor.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=100) as line:
        head = f"POST {API}/upload HTTP/1.1\r\nHost: {url.host}\r\nContent-Length: 100000\r\n"
        line.sendall((head + "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n").encode())
        began = time.monotonic()
        while time.monotonic() - began < 90:
            try:
                line.sendall(b"x")
                line.settimeout(1)
                answer = line.recv(200).decode()
                return f"{answer.partition(chr(13))[0].partition(' ')[2]} after {time.monotonic() - began:.0f} s"
            except TimeoutError:
                continue
            except OSError:
                break
    return f"closed after {time.monotonic() - began:.0f} s"


def crowd(visitor: Visitor) -> str:
    """Send fifty good requests at once; the queue holds fewer."""

    def one(_: int) -> str:
        with client(str(visitor.base_url)) as other:
            return words(WORDS)(other)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(one, range(50)))
    served = sum(answer.startswith("masks") for answer in answers)
    return f"{served} masks, {50 - served} refused, such as " + next((a for a in answers if a[:5] != "masks"), "none")


NOISE = os.urandom(1 << 20)
REQUESTS: dict[str, Callable[[Visitor], str]] = {
    "an empty file": photo(b""),
    "half a JPEG": photo(PHOTO[: len(PHOTO) // 2]),
    "noise named .jpg": photo(NOISE[:5000]),
    "a text": photo(b"no photo", "a.txt"),
    "an SVG with a script": photo(b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "a.svg"),
    "HTML": photo(b"<script>alert(1)</script>", "a.html"),
    "a pickle": photo(b"cos\nsystem\n(S'true'\ntR.", "a.pkl"),
    "a zip": photo(b"PK\3\4" + bytes(100), "a.zip"),
    "PostScript": photo(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a.eps"),
    "a PNG of 900 megapixels in 110 kB": photo(bomb, "a.png"),
    "a strip of 20,000 x 2 pixels": photo(lambda: encoded(Image.new("L", (20_000, 2)), "PNG"), "a.png"),
    "one pixel": photo(lambda: encoded(Image.new("L", (1, 1)), "PNG"), "a.png"),
    "floating-point pixels": photo(lambda: encoded(Image.new("F", (9, 9)), "TIFF"), "a.tiff"),
    "21 MB of noise": photo(lambda: NOISE * 21),
    "a file named ../../../etc/passwd": photo(PHOTO, "../../../etc/passwd"),
    "a file whose name has 5,000 letters": photo(PHOTO, "a" * 5000 + ".jpg"),
    "a file whose name has line breaks and quotes": photo(PHOTO, "a\r\n\"'<b>.jpg"),
    "a file without a name": photo(PHOTO, ""),
    "no photo": place(None),
    "no words": words(""),
    "commas only": words(" , ,=,, "),
    "10,000 labels": words(",".join(f"label {i}" for i in range(10_000))),
    "10,000 words of one label": words("thing=" + ",".join(f"w{i}" for i in range(10_000))),
    "one word of a million letters": words("a" * 1_000_000),
    "a script as a label": words("<script>alert(1)</script>, <img src=x onerror=alert(1)>"),
    "the same label twice": words("cat, Cat"),
    "no letters at all": words("\0, \x1b[2J"),
    "emoji and other scripts": words("🐈, 狗, кошка"),
    "a number for words": words(42),
    "a list for words": words([["cat"]] * 100),
    "nothing for words": words(None),
    "a scale of a billion": words(WORDS, 1e9),
    "a scale that is text": words(WORDS, "__import__('os')"),
    "a scale of nothing": words(WORDS, None),
    "a background of -1": words(WORDS, 1, -1),
    "a background with one label": words("cat", 1, 0.5),
    "the photo /etc/passwd": file("/etc/passwd"),
    "the photo ../../etc/passwd": file("../../etc/passwd"),
    "a photo of another's home": file(str(Path.home() / ".bashrc")),
    "the photo http://169.254.169.254/": file("http://169.254.169.254/latest/meta-data"),
    "the photo file:///etc/passwd": file("file:///etc/passwd"),
    "a photo with the address of another": file("a.jpg", url="http://127.0.0.1:1/a.jpg"),
    "a data: address": file("a.jpg", url="data:image/png;base64,AAAA"),
    "a photo that is text": place("cat.jpg"),
    "a photo that is a list": place([1, 2]),
    "a photo without a path": place({"path": None}),
    "download of /etc/passwd": get(f"{API}/file=/etc/passwd"),
    "download of ../../etc/passwd": get(f"{API}/file=..%2f..%2f..%2f..%2fetc/passwd"),
    "download of the program": get(f"{API}/file={Path(__file__).parents[1] / 'pyproject.toml'}"),
    "a page through this server": get(f"{API}/proxy=http://127.0.0.1:1/"),
    "JSON cut short": get(f"{API}/call/segment", "POST", content=b'{"data": ['),
    "JSON 20,000 deep": get(f"{API}/call/segment", "POST", content=b'{"data":' + b"[" * 20_000),
    "30 MB of JSON": lambda visitor: ask(visitor, "a" * 30_000_000),
    "too few values": lambda visitor: ask(visitor, None),
    "too many values": lambda visitor: ask(visitor, *[None] * 1000),
    "another function": get(f"{API}/call/eval", "POST", json={"data": ["1"]}),
    "answers of another visitor": get(f"{API}/call/segment/{'0' * 32}"),
    "DELETE /": get("/", "DELETE"),
    "a header of 100 kB": get("/", headers={"X": "a" * 100_000}),
    "an upload of a byte a second": slow,
    "fifty visitors at once": crowd,
}


def send(visitor: Visitor, request: Callable[[Visitor], str]) -> str:
    """Send a request and return the answer in one line; an `InputError` says what it gave away."""
    try:
        answer = request(visitor)
    except httpx.HTTPStatusError as error:
        answer = told(error.response)
    except httpx.TransportError as error:
        answer = f"closed ({type(error).__name__})"
    if leak := _LEAKS.search(answer):
        raise InputError(f"the answer has {leak[0]!r}: {answer[:2000]}")
    return answer


@contextmanager
def running(model: str) -> Iterator[tuple[Visitor, int]]:
    """Start the page; yield a client and the number of the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "groupvit", "demo", "--model", model, "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout
            if not process.stdout.readline():
                log.seek(0)
                raise InputError(log.read())
            with client(f"http://127.0.0.1:{port}") as visitor:
                yield visitor, process.pid
        finally:
            process.terminate()
            process.wait()


def memory(pid: int) -> float:
    """Return the megabytes that a process holds."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1000


def main(model: str = "photos-trunk", record: bool = False) -> None:
    """Send every request and print the answers.

    Args:
        model: Model of the page.
        record: Write the table to docs/RELIABILITY.md.
    """
    began_at, rows = commit() if record else "", []
    with running(model) as (visitor, pid):
        for _ in range(3):
            assert words(WORDS)(visitor).startswith("masks")
        before = memory(pid)
        for name, request in REQUESTS.items():
            rows.append({"request": name, "answer": send(visitor, request)[:110].replace("|", "/")})
            print(f"{name}: {rows[-1]['answer']}", flush=True)
        assert words(WORDS)(visitor).startswith("masks")
        rows.append({"request": "memory afterwards", "answer": f"{memory(pid) - before:+.0f} MB"})
        print(rows[-1])
    if record:
        record_table("RELIABILITY.md", "page", rows, began_at)


if __name__ == "__main__":
    run_script(main)

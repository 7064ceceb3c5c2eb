"""What mkdocs needs to show this repository as it is: its README as first page, its links out of docs/, and the page
that runs in the visitor's browser, where `make browser` has built it."""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
NOTEBOOK = "examples/quickstart.ipynb"
BROWSER = ROOT / "build" / "browser"
REPOSITORY = os.environ.get("REPOSITORY_URL")  # without it, a link to a file outside docs/ shows as its text


def on_config(config: Any) -> Any:
    if (BROWSER / "index.html").is_file():
        config.nav.insert(1, {"In the browser": "browser/index.html"})
    return config


def on_files(files: Files, config: Any) -> Files:
    for file in [file for file in files if file.src_uri.startswith("browser/")]:
        files.remove(file)  # the page's sources
    for path in BROWSER.rglob("*"):
        if path.is_file():
            files.append(
                File.generated(config, f"browser/{path.relative_to(BROWSER).as_posix()}", abs_src_path=str(path))
            )
    for page, source in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, NOTEBOOK, abs_src_path=str(ROOT / NOTEBOOK)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to where files are on the site or in the repository; let a table begin right below a comment."""
    source = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    on_site = {file: name for name, file in PAGES.items()} | {NOTEBOOK: NOTEBOOK}

    def led(link: re.Match[str]) -> str:
        text, url, anchor = link.groups("")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), url))
        if target in on_site:
            return f"{text}({on_site[target]}{anchor})"
        if not (ROOT / target).exists():  # no link, but code that looks like one; or it is broken, which mkdocs says
            return link[0]
        if target.startswith("docs/"):
            return f"{text}({target.removeprefix('docs/')}{anchor})"
        return f"{text}({REPOSITORY}/blob/HEAD/{target})" if REPOSITORY else text[1:-1]

    markdown = re.sub(r"(?m)^(<!--.*-->)\n(?=\|)", r"\1\n\n", markdown)
    return re.sub(r"(\[[^][]*\])\(([^\s():#]+)(#[^\s()]*)?\)", led, markdown)

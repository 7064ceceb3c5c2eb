"""The site is whole: mkdocs finds all that is linked, and visitors load nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("material")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = os.environ | {"REPOSITORY_URL": "https://example.org/groupvit"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_document_is_a_page_and_the_readme_the_first(site):
    pages = {page.parent.name for page in site.glob("*/index.html")}
    assert {path.stem for path in (REPOSITORY / "docs").glob("*.md")} <= pages
    assert "group tokens claim the patches" in (site / "index.html").read_text()
    assert "The rooms, and who may import whom" in (site / "contributing/index.html").read_text()


def test_nothing_is_loaded_from_elsewhere(site):
    for page in [*site.rglob("*.html"), *site.rglob("*.css")]:
        loaded = re.findall(r"""(?:src=|<link[^>]+href=|url\(|@import )["']?(https?://[^"'\s)>]+)""", page.read_text())
        assert [url for url in loaded if not url.startswith("https://example.org")] == [], page


def test_links_out_of_the_documents_lead_to_files_of_the_repository(site):
    linked = set()
    for page in site.rglob("*.html"):
        linked |= set(re.findall(r'href="https://example\.org/groupvit/blob/HEAD/([^"#]+)', page.read_text()))
    assert "src/groupvit/models/grouping.py" in linked
    assert [path for path in linked if not (REPOSITORY / path).exists()] == []


def test_tables_below_a_comment_are_tables(site):
    for name in ("RESULTS", "RELIABILITY", "MODEL_CARD"):
        text = (site / name / "index.html").read_text()
        assert "<table>" in text
        assert not re.search(r"<p>[^<]*\|[ -]*---", text), name


def test_the_gallery_shows_every_picture_that_was_drawn_and_none_is_large(site):
    shown = re.findall(r'src="([\w-]+\.webp)"', (site / "gallery/index.html").read_text())
    drawn = [path.name for path in (REPOSITORY / "docs/gallery").glob("*.webp")]
    assert sorted(shown) == sorted(drawn)
    assert len(shown) == 24
    assert max(path.stat().st_size for path in site.rglob("*.webp")) < 200_000


def test_the_reference_describes_what_the_package_offers(site):
    import groupvit

    text = (site / "reference/index.html").read_text()
    for name in set(groupvit.__all__) - {"__version__"}:
        assert re.search(rf'id="groupvit\.[\w.]*\.{name}"', text), name

"""The notebook runs, and holds its outputs."""

import ast
from importlib import import_module
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples/quickstart.ipynb"


def test_the_notebook_holds_its_pictures_and_is_small() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    pictures = [output for cell in cells for output in cell.outputs if "image/jpeg" in output.get("data", {})]
    assert len(pictures) >= 5
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert NOTEBOOK.stat().st_size < 2_000_000


def test_what_the_notebook_imports_is_there() -> None:
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    for node in [node for cell in cells if "%pip" not in cell for node in ast.walk(ast.parse(cell))]:
        if isinstance(node, ast.ImportFrom):
            module = import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name) or import_module(f"{module.__name__}.{alias.name}")


@pytest.mark.browser  # where it is read; `make test` has no time for it
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert notebook.cells[-1].outputs[0].text.split() == ["coco.json", "labelme.json", "voc.png"]

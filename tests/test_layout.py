"""The house: who may import whom, and what is never imported or named."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import groupvit

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src/groupvit"
SOURCES = sorted(PACKAGE.rglob("*.py"))

MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "machine": set(),
    "photos": set(),
    "progress": set(),
    "models": set(),
    "text": set(),
    "checkpoints": {"models", "text"},
    "segmentation": {"machine", "models", "text"},
    "data": {"machine", "text"},
    "training": {"machine", "models", "text", "checkpoints", "data"},
    "evaluation": {"models", "text", "segmentation", "data"},
    "api": {"checkpoints", "machine", "models", "segmentation"},
    "demo": {"api", "machine", "segmentation"},
    "__init__": {"api", "models", "segmentation"},
    "__main__": {"cli"},
    "cli": {
        "__init__",
        "api",
        "checkpoints",
        "data",
        "demo",
        "evaluation",
        "machine",
        "models",
        "segmentation",
        "text",
        "training",
    },
}
NEVER_IMPORTED = {"torchvision", "timm", "open_clip", "mmcv", "mmseg", "lightning", "pytorch_lightning", "apex"}


def imports(source: Path) -> Iterator[list[str]]:
    """Every imported name, split at its dots, those inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno}: a relative import"
            yield from ([*str(node.module).split("."), alias.name] for alias in node.names)


def room(names: list[str]) -> str:
    """The folder or file right below the package that an import leads to."""
    name = (names[1:] or ["__init__"])[0]
    return name if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file() else "__init__"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(PACKAGE)))
def test_imports_follow_the_tree(source: Path) -> None:
    own = source.relative_to(PACKAGE).with_suffix("").parts[0]
    rooms = {room(names) for names in imports(source) if names[0] == "groupvit" and names[1:] != ["__version__"]}
    assert rooms <= MAY_IMPORT[own] | {own, "errors", "files", "photos", "progress"}


def test_a_module_says_in_its_name_what_it_holds() -> None:
    assert not [source for source in SOURCES if re.search(r"\b(utils?|common|misc|helpers?)\b", source.stem)]
    assert not [source for source in SOURCES if source.parent.name in {"utils", "common", "misc", "helpers"}]


def test_nothing_imports_what_a_cpu_build_of_torch_has_not() -> None:
    for folder in ("src", "tests", "experiments", "benchmarks"):
        for source in (REPOSITORY / folder).rglob("*.py"):
            assert not NEVER_IMPORTED & {names[0] for names in imports(source)}, source


def test_no_path_of_one_machine_stands_in_code_or_docs() -> None:
    files = [
        path for folder in ("src", "experiments", "benchmarks", "docs") for path in (REPOSITORY / folder).rglob("*")
    ]
    for path in [*files, REPOSITORY / "README.md"]:
        if path.suffix in {".py", ".md", ".json", ".toml", ".yaml", ".yml"}:
            found = re.search(r"(?<![\w.])/(work|tmp|home|root)/|\.\./shared", path.read_text(encoding="utf-8"))
            assert found is None, f"{path}: {found}"


def test_importing_the_package_loads_neither_torch_nor_numpy() -> None:
    heavy = "import sys, groupvit; assert not {'torch', 'numpy', 'tyro'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", heavy], check=True)


@pytest.mark.parametrize("name", groupvit.__all__)
def test_each_public_name_is_there(name: str) -> None:
    assert getattr(groupvit, name)
    assert name in dir(groupvit)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        groupvit.nonsense  # noqa: B018


def test_the_citation_and_the_changelog_know_the_version() -> None:
    assert f"\nversion: {groupvit.__version__}\n" in (REPOSITORY / "CITATION.cff").read_text()
    assert f"\n## [{groupvit.__version__}]" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_shapes_in_signatures_are_checked_while_testing() -> None:
    assert any(type(finder).__module__.startswith("jaxtyping") for finder in sys.meta_path)

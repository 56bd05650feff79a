"""Which part of the project may import which, read from the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tagi_lightning

PACKAGE = Path(tagi_lightning.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAY_USE_LIGHTNING = {"stages", "callbacks", "cli"}
MODELS = {"torch.nn", "lightning", "pytorch_lightning", "peft"}


def part(path):
    """Returns the subpackage a source belongs to, or its own name at the top."""
    return path.relative_to(PACKAGE).parts[0]


def imported(path):
    """Returns the absolute names of everything a source imports, at any depth, also inside functions."""
    package = ("tagi_lightning", *path.relative_to(PACKAGE).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *filter(None, [node.module])))
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def below(names, *roots):
    return sorted(name for name in names if any(name == root or name.startswith(f"{root}.") for root in roots))


def test_the_walk_sees_the_imports_it_looks_for():
    assert below(imported(PACKAGE / "stages" / "base.py"), "lightning", "pytorch_lightning")
    assert below(imported(PACKAGE / "model.py"), "tagi_lightning.lora")
    assert {"lora.py", "model.py", "stages", "cli", "data"} <= {part(path) for path in SOURCES}


@pytest.mark.parametrize("path", [p for p in SOURCES if part(p) not in MAY_USE_LIGHTNING], ids=lambda p: p.stem)
def test_the_core_imports_neither_lightning_nor_what_is_built_on_it(path):
    roots = ("lightning", "pytorch_lightning", *(f"tagi_lightning.{name}" for name in MAY_USE_LIGHTNING))
    assert below(imported(path), *roots) == []


@pytest.mark.parametrize("path", [p for p in SOURCES if part(p) != "cli"], ids=lambda p: p.stem)
def test_only_the_command_line_imports_data_modules(path):
    assert below(imported(path), "data_modules") == []


@pytest.mark.parametrize("path", [p for p in SOURCES if part(p) == "data"], ids=lambda p: p.stem)
def test_the_data_layer_imports_no_model(path):
    others = {f"tagi_lightning.{part(p).removesuffix('.py')}" for p in SOURCES} - {"tagi_lightning.data"}
    assert below(imported(path), *MODELS, *(others - {"tagi_lightning.__init__"})) == []


@pytest.mark.parametrize("path", [p for p in SOURCES if part(p) not in ("bench", "cli")], ids=lambda p: p.stem)
def test_only_the_command_line_imports_the_benchmark(path):
    assert below(imported(path), "tagi_lightning.bench") == []


def test_importing_the_core_does_not_load_lightning():
    code = (
        "import sys, tagi_lightning.model, tagi_lightning.evaluation.systems, tagi_lightning.storage.serialization, "
        "tagi_lightning.losses\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('lightning', 'pytorch_lightning')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

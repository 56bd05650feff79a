"""The documentation as a site: nothing is left out, links lead somewhere, the reference is complete, it builds."""

import importlib.util
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from commands import ROOT

from tagi_lightning.cli import VERBS

DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
COMMANDS_ALONE = ("cli", "bench", "doctor", "report", "reproduce", "ui")
"""Parts of the package that are used through their commands."""


def load_reference():
    """Returns the module that writes the generated pages."""
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generated():
    return load_reference().pages()


def leaves(nav):
    if isinstance(nav, str):
        return [nav]
    return [
        leaf
        for entry in nav
        for value in (entry.values() if isinstance(entry, dict) else [entry])
        for leaf in leaves(value)
    ]


def slug(heading):
    """Returns a heading's anchor, as Python-Markdown makes it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-")


def anchors(text):
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)}


def test_the_navigation_names_every_page_once(generated):
    assert sorted(leaves(SITE["nav"])) == sorted([*PAGES, *generated])


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page, generated):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        path = (DOCS / page).parent.joinpath(file).resolve() if file else DOCS / page
        name = str(path.relative_to(DOCS))
        text = {**PAGES, **generated}.get(name)
        assert text is not None or path.is_file(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(text), f"{page} links to {target}"


def test_every_module_is_on_one_page_of_the_api():
    listed = [
        name
        for page, text in PAGES.items()
        if page.startswith("api/")
        for name in re.findall(r"^::: (\S+)", text, re.M)
    ]
    assert len(listed) == len(set(listed))
    sources = [*(ROOT / "src" / "tagi_lightning").rglob("*.py"), *(ROOT / "data_modules").rglob("*.py")]
    paths = [path.relative_to(ROOT / "src" if "src" in path.parts else ROOT) for path in sources]
    modules = {
        ".".join(path.with_suffix("").parts)
        for path in paths
        if path.name != "__init__.py" and path.parts[1] not in COMMANDS_ALONE
    }
    assert set(listed) == modules | {"tagi_lightning"}


def test_the_reference_has_every_verb_stage_and_option_with_a_description(generated):
    commands = generated["reference/commands.md"]
    assert re.findall(r"^## tagi (\S+)$", commands, re.MULTILINE) == list(VERBS)
    assert "`--instruction` | `str or null` | `null` | What the task is, in words." in commands
    stages = generated["reference/stages.md"]
    lora = stages.partition("### tagi.lora\n")[2]
    assert "| `rank` | `int` | `32` | Rank r of every update" in lora.partition("#")[0]
    assert "`backbone" not in stages.partition("## ")[2]
    assert "| `setting` | `def or def+2pos` | `def` |" in generated["reference/data.md"]
    rows = [row for text in generated.values() for row in text.splitlines() if row.startswith("| `")]
    assert len(rows) > 200
    assert [row for row in rows if row.endswith("|  |")] == []


def test_a_section_that_the_readme_does_not_have_is_told():
    reference = load_reference()
    assert reference.section("Limits, said plainly").startswith("- ")
    with pytest.raises(ValueError, match="'Nowhere'"):
        reference.section("Nowhere")


def test_citation_and_package_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert (citation["version"], citation["license"]) == (setup["metadata"]["version"], setup["metadata"]["license"])
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    paper = citation["preferred-citation"]
    assert " ".join(each["family-names"] for each in paper["authors"]) == "Liao He Xu Zhang Hao Liu Liu Zhao"


@pytest.mark.slow
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs", reason="make install brings mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in Path(tmp_path).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//', text), page.name
        assert not re.findall(r'<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href="(?:https?:)?//', text), page.name
    assert "<svg" in (tmp_path / "images" / "data-path.svg").read_text(encoding="utf-8")

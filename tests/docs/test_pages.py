"""What the pages say holds: links lead somewhere, manifests are valid, generated parts are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from draft_service.api.openai_types import ChatBody, CompletionBody, StreamOptions
from draft_service.api.responses.request import ResponsesBody
from pipedec.sizing.reference import with_tables
from pipedec.spec import load_manifest, reference
from tests.docs.pages import PAGES, ROOT, anchors, blocks, inline, links

FOLDERS = "pipedec|stage_service|draft_service|operator|crds|charts|benchmarks|tests|examples|docs"

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pages
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    wrong = []
    for link in links(page):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        inside = ROOT if page.name == "README.md" else ROOT / "docs"
        if not (target.exists() and target.is_relative_to(inside)) or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


@pages
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = [name for code in inline(page) for name in re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w", code)]
    assert [name for name in named if not (ROOT / name).exists()] == []


@pages
def test_every_manifest_is_valid(page: Path) -> None:
    for text in blocks(page, "yaml"):
        if "kind: PipeDecDeployment" in text:
            load_manifest(text)


def test_there_are_manifests_and_links_to_check() -> None:
    """That the tests above look at something."""
    assert sum("kind: PipeDecDeployment" in text for page in PAGES for text in blocks(page, "yaml")) >= 3
    assert sum(len(links(page)) for page in PAGES) > 50


def test_the_manifests_reference_is_that_of_the_code() -> None:
    """After a change: `python -m pipedec.spec.reference > docs/manifest.md`."""
    assert (ROOT / "docs" / "manifest.md").read_text() == reference.render()


def test_the_tables_of_sizing_are_those_of_the_code() -> None:
    """After a change: `python -m pipedec.sizing.reference docs/sizing.md`."""
    page = (ROOT / "docs" / "sizing.md").read_text()
    assert page == with_tables(page)


def test_every_field_of_a_request_is_on_the_endpoints_page() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    fields = {name for body in (CompletionBody, ChatBody, StreamOptions, ResponsesBody) for name in body.model_fields}
    assert {name for name in fields if f"`{name}`" not in page} == set()


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site"))
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    assert {page.stem for page in PAGES if page.name != "README.md"} <= {
        page.stem for page in (tmp_path / "site").glob("*.html")
    }


def test_every_benchmark_is_in_the_list() -> None:
    """Programs of `benchmarks`, but for those that a benchmark starts itself."""
    single = {file.stem for file in (ROOT / "benchmarks").glob("*.py") if "__main__" in file.read_text()}
    folders = {file.parent.name for file in (ROOT / "benchmarks").glob("*/__main__.py")}
    listed = re.findall(
        r"^\| `python -m benchmarks\.(\w+)", (ROOT / "docs" / "development.md").read_text(), re.MULTILINE
    )
    assert sorted(listed) == sorted(single | folders)

"""What the documents say is so: citations, links, presets, and the commands and the Python in them.

``<!-- run -->`` above a fenced block has it run, in a folder with ``crops``; what follows ``run:`` is added to its
last line. Every other line that calls ``reid`` must at least be understood by its verb.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest

from pipelines.cli import VERBS, main
from pipelines.results.presets import preset_page
from reid_core import method as contract
from reid_core.data.datasets import synthetic

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("reid_core", "pipelines", "tune_spaces", "benchmarks", "tests")
NUMBER = r"\d+(?:\.\d+)?"
CITATION = re.compile(rf"methods\.md\s+({NUMBER}(?:(?:,| and| to) {NUMBER})*)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = re.compile(r"^<!-- run(?:: (.*?))? -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
LONGEST_README = 130  # lines
HELP = [(verb,) for verb in VERBS if verb not in ("train", "sweep")]
HELP += [("train", method) for method in contract.names()]
HELP += [("sweep", "hcd", "--space", space) for space in ("labelling", "alpha_m")]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def python_files() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def test_every_citation_has_its_heading() -> None:
    text = (ROOT / "docs/methods.md").read_text()
    numbers = {heading.split()[0].rstrip(".") for heading in HEADING.findall(text)}
    cited = [
        (name(path), number)
        for path in python_files()
        for listed in CITATION.findall(path.read_text())
        for number in re.findall(NUMBER, listed)
    ]
    assert len(cited) > 50
    assert [pair for pair in cited if pair[1] not in numbers] == []


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_cites_nothing(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) > 5
    assert "methods.md" not in shown


def test_every_decision_that_a_method_names_is_there() -> None:
    text = (ROOT / "docs/methods.md").read_text()
    named = {
        row
        for path in sorted((ROOT / "reid_core/methods").glob("*.py"))
        for ends in re.findall(r"\b([B-E]\d+) to ([B-E]\d+)\b", path.read_text())
        for row in ends
    }
    assert named >= {"B1", "B10", "C1", "C22", "D1", "D10", "E1", "E12"}
    assert [row for row in sorted(named) if f"\n| {row} |" not in text] == []


def test_presets_page_is_what_the_code_says() -> None:
    assert (ROOT / "docs/presets.md").read_text() == preset_page()


def test_readme_is_a_door() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST_README


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them: small letters, no punctuation, hyphens for spaces."""
    headings = HEADING.findall(FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(FENCE.sub("", page.read_text())) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in LINK.findall(page.read_text())
    }
    assert [name(page) for page in PAGES[1:] if page not in linked] == []


def reid_commands(page: Path) -> list[list[str]]:
    """The words after ``reid`` or ``python -m pipelines`` of every command in the blocks of a page."""
    blocks = [body for language, body in FENCE.findall(page.read_text()) if language == "sh"]
    lines = [line for body in blocks for line in body.replace("\\\n", " ").splitlines()]
    found = []
    for line in lines:
        words = shlex.split(line.replace("python -m pipelines", "reid"), comments=True)
        if "reid" in words:
            found.append(words[words.index("reid") + 1 :])
    return found


COMMANDS = sorted({tuple(words) for words in chain(*map(reid_commands, PAGES))})


def test_commands_of_all_verbs_are_shown() -> None:
    assert {words[0] for words in COMMANDS} >= set(VERBS) - {"demo"}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_are_understood(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def run(*given: object) -> int:
        started.append(given)
        return 0

    verb = import_module(f"pipelines.{words[0]}")
    for module in [verb, getattr(verb, "labelling", verb), getattr(verb, "training", verb)]:
        monkeypatch.setattr(module, "run", run, raising=False)
    assert main(words) == 0
    assert started or {"--help", "--list"} & set(words)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the commands find: crops of 16 persons, all in one folder."""
    drawn = synthetic.draw(str(tmp_path / "set"), ids=32, cameras=4, images=3)
    shutil.move(f"{drawn}/bounding_box_train", tmp_path / "crops")
    shutil.rmtree(drawn)
    return tmp_path


MARKED = [page for page in PAGES if RUN.search(page.read_text())]


@pytest.mark.slow
@pytest.mark.parametrize("page", MARKED, ids=name)
def test_marked_blocks_run(page: Path, folder: Path) -> None:
    bin_folder = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}"}
    for added, language, body in RUN.findall(page.read_text()):
        code = f"{body.rstrip()} {added}"
        command = {"sh": ["bash", "-euc", code], "python": [sys.executable, "-c", code]}[language]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"

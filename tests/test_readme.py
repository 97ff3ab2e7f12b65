import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_the_examples_in_the_readme_run(monkeypatch):
  monkeypatch.chdir(ROOT)
  failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
  assert tried > 5 and not failed


def anchors(page: Path) -> set[str]:
  headings = re.findall(r"(?m)^#+ (.*)$", page.read_text())
  return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page):
  for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
    if not link.startswith("https:"):
      path, _, heading = link.partition("#")
      target = (page.parent / path).resolve() if path else page
      assert target.exists(), link
      assert not heading or heading in anchors(target), link

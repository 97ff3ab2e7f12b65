import doctest
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_examples_in_the_readme_run(monkeypatch):
  monkeypatch.chdir(ROOT)
  failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
  assert tried > 5 and not failed

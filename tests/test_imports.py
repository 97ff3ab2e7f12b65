"""The package's public face, and its one direction of imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mmgen_jax

ROOT = Path(__file__).parents[1]
# Left to right: a module imports only from its own group or groups to its left.
ORDER = [
  {"config", "state", "data"},
  {
    "diffaugment",
    "likelihoods",
    "losses",
    "objectives",
    "quantise",
    "schedules",
    "total_correlation",
  },
  {"multimodal_objectives"},
  {"optim", "parallel", "fusion", "models", "contrastive", "safetensors", "torch_file"},
  {"metrics.extractor", "metrics.pretrained"},
  {"balance"},
  {"steps"},
  {
    "checkpoint",
    "health",
    "manifest",
    "log",
    "signals",
    "provenance",
  },
  {"fuse", "initial"},
  {"loop", "describe", "process"},
  {"metrics", "attribution"},
  {
    "generate",
    "imputation",
    "interpret",
    "latent_scores",
    "pictures",
    "records",
    "representation",
  }
  | {"attribute", "measures", "multimodal_scores", "recognise", "retrieve", "scores"}
  | {"spread", "distances", "panels", "walks"},
  {"evaluate", "comparison", "recommendation", "preview", "prompt"},
  {"sweep", "trial", "workers"},
  {"report"},
]


def test_import_is_light():
  code = (
    "import mmgen_jax, sys; bad = {'tensorflow', 'matplotlib', 'absl.flags', 'jax'};"
    "sys.exit(','.join(bad & set(sys.modules)) or 0)"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def test_the_whole_public_api_needs_no_tensorflow_no_matplotlib():
  code = (
    "import mmgen_jax, sys; [getattr(mmgen_jax, n) for n in mmgen_jax.__all__];"
    "sys.exit(','.join({'tensorflow', 'matplotlib'} & set(sys.modules)) or 0)"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", mmgen_jax.__all__)
def test_every_public_name_is_documented(name):
  assert getattr(mmgen_jax, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
  with pytest.raises(AttributeError, match="nonsense"):
    mmgen_jax.nonsense  # noqa: B018


def _group(module: str) -> int:
  parts = module.split(".")[1:]
  for name in (".".join(parts[:2]), parts[0]):  # a module may stand apart from its kind
    for i, names in enumerate(ORDER):
      if name in names:
        return i
  raise AssertionError(f"{module} has no place in ORDER")


def test_modules_import_only_to_their_left():
  wrong = []
  for path in (ROOT / "mmgen_jax").rglob("*.py"):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if module == "mmgen_jax.__init__":
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      names = []
      if isinstance(node, ast.ImportFrom) and node.module:
        names = (
          [f"mmgen_jax.{a.name}" for a in node.names]
          if node.module == "mmgen_jax"
          else [node.module]
        )
      elif isinstance(node, ast.Import):
        names = [a.name for a in node.names]
      for name in names:
        if name.startswith("mmgen_jax.") and _group(name) > _group(module):
          wrong.append(f"{module} imports {name}")
  assert not wrong, wrong

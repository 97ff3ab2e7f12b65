"""Four CPU devices, one cache of compiled programs, and where real data may be."""

import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=4",
    "--xla_backend_optimization_level=0",  # of machine code: halves what compiling costs
  ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of what the tests cost, and many ask for the same program.
_CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # else a worker's, from its parent
  _CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def data_root():
  """The folder of real data (tfds/, raw/) that MMGEN_TEST_DATA names, or a skip."""
  root = os.environ.get("MMGEN_TEST_DATA", "")
  if not os.path.isdir(root):
    pytest.skip(
      "real data: set MMGEN_TEST_DATA to a folder with tfds/mnist (prepared) and"
      " raw/free_spoken_digit.zip"
    )
  return root


def pytest_sessionfinish():
  if _CACHE:
    shutil.rmtree(_CACHE, ignore_errors=True)

"""Four CPU devices, strict JAX settings, and where real data may be."""

import os

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

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

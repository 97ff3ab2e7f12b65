import numpy as np
import pytest

from mmgen_jax.data import factors

NAMES = list(factors.SIZES)


def some(n=64, seed=0):
  return factors.factors_of(np.random.default_rng(seed).integers(0, factors.TOTAL, n))


def test_indices_and_factors_are_one_to_one():
  assert factors.TOTAL == np.prod(list(factors.SIZES.values()))
  indices = np.random.default_rng(0).integers(0, factors.TOTAL, 1000)
  got = factors.factors_of(indices)
  np.testing.assert_array_equal(factors.index_of(got), indices)
  np.testing.assert_array_equal(factors.factors_of(np.array([33]))[0], [0, 0, 0, 1, 1])
  with pytest.raises(ValueError, match="737279"):
    factors.factors_of(np.array([factors.TOTAL]))


def test_a_picture_depends_on_its_factors_alone():
  chosen = some(300)  # more than a block
  whole = factors.render(chosen)
  assert set(np.unique(whole)) == {0, 255}
  np.testing.assert_array_equal(whole[[290]], factors.render(chosen[[290]]))
  border = np.ones((64, 64), bool)
  border[1:-1, 1:-1] = False
  assert not whole[:, border].any()


@pytest.mark.parametrize("name", NAMES)
def test_every_factor_changes_the_picture(name):
  a, b = some(), some()
  column, size = NAMES.index(name), factors.SIZES[name]
  a[:, 0] = b[:, 0] = 2  # hearts: the others have symmetries
  b[:, column] = (b[:, column] + size // 2) % size
  assert (factors.render(a) != factors.render(b)).any((1, 2, 3)).all()


def test_moments_of_the_pictures_are_the_factors():
  chosen = some(200)
  chosen[:, 0] = np.arange(200) % 2  # centred shapes
  on = factors.render(chosen)[..., 0] > 0
  area = on.sum((1, 2))
  grid = (np.arange(64) + 0.5) / 64
  x, y = (on.sum(axis) @ grid / area for axis in (1, 2))
  np.testing.assert_allclose(x, 0.25 + 0.5 * chosen[:, 3] / 31, atol=0.01)
  np.testing.assert_allclose(y, 0.25 + 0.5 * chosen[:, 4] / 31, atol=0.01)
  side = 64 * factors.LARGEST * (0.5 + 0.1 * chosen[:, 1])
  np.testing.assert_allclose(area, side**2, rtol=0.15)


def test_symmetries_are_those_of_the_shapes():
  turned = lambda shape, step: factors.render(
    np.array([[shape, 5, t, 16, 16] for t in (1, 1 + step)])
  )
  assert np.mean(np.diff(turned(0, 10), axis=0) != 0) < 0.004  # square, a quarter
  assert np.mean(np.diff(turned(1, 20), axis=0) != 0) < 0.004  # ellipse, a half
  assert np.mean(np.diff(turned(2, 20), axis=0) != 0) > 0.01  # heart


def test_load_gives_disjoint_splits_of_rendered_pictures(tmp_path):
  options = {"train_examples": 30, "validation_examples": 5, "test_examples": 6}
  seen = []
  for split, count in (("train", 30), ("validation", 5), ("test", 6)):
    examples = factors.load(split, tmp_path, **options)
    assert len(examples) == count
    rows = examples.rows(np.arange(count))
    chosen = np.stack([rows["labels"][name] for name in NAMES], 1)
    np.testing.assert_array_equal(rows["image"], factors.render(chosen))
    seen += factors.index_of(chosen).tolist()
  assert len(set(seen)) == 41
  assert factors.spec().modalities["image"].likelihood == "bernoulli"


def test_options_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="800000"):
    factors.spec(train_examples=800_000)
  with pytest.raises(ValueError, match="got -1"):
    factors.spec(seed=-1)

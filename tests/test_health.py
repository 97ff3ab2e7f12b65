"""Warnings come early, once, and not in health."""

import pytest

from mmgen_jax import health

SOUND = {
  "gan/r1": 1.0,
  "gan/r2": 1.3,
  "gan/real_above_fake": 0.7,
  "gan/logits_real": 5.0,
  "gan/logits_fake": 3.0,
  "held_out/logits_real": 4.8,
  "held_out/logits_fake": 3.0,
}


def test_the_overfitting_share_is_where_held_out_examples_are():
  assert health.overfitting(2.0, 2.0, -1.0) == 0.0
  assert health.overfitting(2.0, 0.5, -1.0) == pytest.approx(0.5)
  assert health.overfitting(2.0 + 7, -1.0 + 7, -1.0 + 7) == pytest.approx(1.0)
  assert health.overfitting(1.0, 0.0, 1.0) == 0.0  # nothing is told apart


@pytest.mark.parametrize(
  "change, what",
  [
    ({"gan/r2": 6.0}, "divergence"),
    ({"gan/r2": 0.1}, "divergence"),
    ({"gan/real_above_fake": 0.99}, "certainty"),
    ({"held_out/logits_real": 3.5}, "overfitting"),
    ({"fusion/share_image": 2e-4, "fusion/share_word": 0.3}, "silence of image"),
  ],
)
def test_each_failure_is_named(change, what):
  assert health.warnings(SOUND) == {}
  assert list(health.warnings({**SOUND, **change})) == [what]


def test_a_shift_of_all_held_out_logits_is_no_overfitting():
  held_out = {"held_out/logits_real": 2.8, "held_out/logits_fake": 1.0}  # unaugmented
  assert health.warnings({**SOUND, **held_out}) == {}
  held_out["held_out/logits_real"] = 1.5
  assert list(health.warnings({**SOUND, **held_out})) == ["overfitting"]
  blind = {"gan/logits_real": 3.02, "held_out/logits_real": 2.9}
  assert health.warnings({**SOUND, **blind}) == {}


def test_other_families_are_left_alone():
  assert health.warnings({"vae/elbo": -90.0, "held_out/elbo": -95.0}) == {}


def test_a_warning_is_told_once_until_it_has_passed():
  watch = health.make_watch(patience=1)
  assert watch({**SOUND, "gan/r2": 9.0})[0].startswith("R2 is 9 times R1")
  assert watch({"gan/r2": 9.5}) == []
  assert watch({"gan/r2": 1.0}) == []
  assert len(watch({"gan/r2": 9.0})) == 1
  assert len(watch({"held_out/logits_real": 3.0})) == 1  # beside the newest of others


def test_what_comes_and_goes_is_told_once():
  watch, bad = health.make_watch(patience=3), {**SOUND, "gan/real_above_fake": 0.99}
  assert [len(watch(x)) for x in (bad, bad, SOUND, SOUND)] == [0, 0, 0, 0]  # at first
  assert [len(watch(x)) for x in (bad, bad, bad)] == [0, 0, 1]
  assert [len(watch(x)) for x in (SOUND, bad, SOUND, SOUND, bad)] == [0] * 5
  assert [len(watch(x)) for x in (SOUND,) * 3 + (bad,) * 3] == [0] * 5 + [1]

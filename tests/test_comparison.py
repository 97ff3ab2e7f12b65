"""What is said of methods: intervals, columns of one protocol, costs, advice."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from test_report import parse

from mmgen_jax import comparison, recommendation
from mmgen_jax.report import compare, scatter

COST = {"train_secs": 10.0, "train_flops": 1e12, "evaluate_secs": 2.0}


def record(metric, value, given=(), target="image", split="test", **more):
  given = None if given is None else list(given)
  fixed = {"name": "tiny", "split": split, "fingerprint": split}
  judge = {"name": "judge", "sha256": "a", "accuracy": 1.0, "accuracy_count": 9}
  return {
    "metric": metric,
    "value": value,
    "given": given,
    "target": target,
    "interval": None,
    "samples": 100,
    "weights": "ema",
    "data": fixed,
    "judge": judge,
    **more,
  }


def run(method, seed, records=(), status="finished", secs=10.0, **more):
  outcome = {
    **COST,
    "train_secs": secs,
    "parameters": {"net": 5},
    "memory_bytes": {"host": 2**30},
    "device": "1 x cpu (cpu)",
  }
  name = f"{method}-seed{seed}"
  fields = {"shown": True, "outcome": outcome, "needs": (), **more}
  return comparison.Run(name, method, seed, status=status, records=records, **fields)


def study(**secs):
  """Three seeds: b's frechet distance is better by far, readable is a tie."""
  values = {"a": (10.0, 11.0, 12.0), "b": (5.0, 5.5, 4.5)}
  out = []
  for method, seed in itertools.product("ab", range(3)):
    rs = [record("frechet", values[method][seed]), record("readable", 0.9)]
    out.append(run(method, seed, rs, secs=secs.get(method, 10.0)))
  return out


def test_intervals_are_students_and_welchs():
  x, y = np.array([1.0, 2.5, 3.0, 7.0]), np.array([0.5, 0.0, 1.5])
  s = comparison.summary(x)
  want = stats.t.interval(0.95, 3, x.mean(), stats.sem(x))
  np.testing.assert_allclose((s.low, s.high, s.deviation), (*want, x.std(ddof=1)))
  gap, low, high = comparison.difference(x, y)
  welch = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
  np.testing.assert_allclose((gap, low, high), (x.mean() - y.mean(), *welch))
  assert math.isnan(comparison.summary([1.0]).low)
  assert math.isnan(comparison.difference([1.0], y)[1])


def test_a_students_interval_holds_the_mean_as_often_as_it_says():
  rng = np.random.default_rng(0)
  draws = [comparison.summary(row) for row in rng.standard_normal((2000, 3))]
  assert abs(np.mean([s.low < 0 < s.high for s in draws]) - 0.95) < 0.02


@pytest.mark.parametrize(
  "changes",
  [
    {"samples": 99},
    {"judge": {"name": "judge", "sha256": "b"}},
    {"of": "another likelihood"},
    {"reference": {"samples": 50}},
    {"data": {"name": "tiny", "split": "test", "fingerprint": "other"}},
  ],
)
def test_unlike_protocols_are_never_in_one_column(changes):
  like = [run("a", 0, [record("frechet", 1.0)]), run("b", 0, [record("frechet", 2.0)])]
  (column,) = comparison.columns(like)
  assert set(column.cells) == {"a", "b"}
  like[1] = run("b", 0, [record("frechet", 2.0, **changes)])
  columns = comparison.columns(like)
  assert [set(c.cells) for c in columns] == [{"a"}, {"b"}]
  page = compare.render(compare.compare(like, "x"))
  assert "not to be compared across" in page


def test_a_method_costs_what_it_is_made_from_once():
  soup = run(
    "soup", 0, [record("frechet", 1.0)], secs=0.0, needs=("c-seed0", "c-seed1")
  )
  start = run("start", 0, secs=7.0, shown=False)
  parts = [run("c", i, secs=1.0, shown=False, needs=("start-seed0",)) for i in range(2)]
  costs = comparison.costs([start, *parts, soup])
  assert list(costs) == ["soup"] and costs["soup"]["train_secs"].mean == 9.0


def test_failures_are_counted_apart_from_divergence():
  failed = lambda seed, code: run(
    "a", seed, status="failed", outcome={"error": "x", "exit_code": code}
  )
  runs = [run("a", 0, [record("frechet", 1.0)]), failed(1, 70), failed(2, -9)]
  want = {"runs": 3, "finished": 1, "diverged": 1, "failed": 1, "skipped": 0}
  assert comparison.troubles(runs, "a") == want


def test_the_gap_is_how_much_worse_it_is_on_what_was_held_out():
  rs = [record("coherence/strict", 0.8, ["caption"]), record("frechet", 9.0)]
  rs += [record("coherence/strict", 0.95, ["caption"], split="train")]
  rs += [record("coherence/strict", 0.5, ["caption"], split="test_combinations")]
  rs += [record("frechet", 7.0, split="train")]
  runs = [run("a", 0, rs)]
  got = {(g.metric, g.split): g.cells["a"].mean for g in comparison.gaps(runs)}
  assert got == pytest.approx(
    {("coherence/strict", "train"): 0.15, ("frechet", "train"): 2.0}
  )
  (gap,) = comparison.gaps(runs, ["test_combinations"])
  assert gap.cells["a"].mean == pytest.approx(0.3)
  rs[-1]["samples"] = 50  # a distance of fewer samples is larger by itself
  assert {g.metric for g in comparison.gaps(runs)} == {"coherence/strict"}


def test_the_front_is_what_no_other_beats():
  points = {"a": (1.0, 1.0), "b": (2.0, 3.0), "c": (3.0, 2.0), "d": (2.0, 3.0)}
  assert recommendation.pareto(points) == ["a", "b", "d"]


def advice(runs, budget=None):
  columns, costs = comparison.columns(runs), comparison.costs(runs)
  found = recommendation.recommend(columns, costs, "test", budget)
  return found, " ".join(recommendation.words(found, costs, budget))


def test_advice_follows_quality_and_budget():
  found, words = advice(study(a=10.0, b=100.0))
  assert found.method == "b" and found.ranks == {"a": 1.75, "b": 1.25}
  assert "Choose b" in words and "The seeds tell it apart" in words
  assert not found.cheaper  # a is worse, and the seeds show it
  found, words = advice(study(a=10.0, b=100.0), budget=30.0)
  assert found.method == "a" and "Beyond the budget: b" in words
  found, words = advice(study(), budget=1.0)
  assert found.method is None and "No method is affordable" in words


def test_methods_stand_against_the_best_baseline_of_each_measure():
  runs = [r._replace(baseline=r.method == "a") for r in study()]
  runs += [run("c", i, [record("frechet", 100.0)], baseline=True) for i in range(3)]
  columns = comparison.columns(runs)
  found = recommendation.against_baselines(columns, ["a", "c"])
  (best, gaps) = next((b, g) for c, b, g in found if c.record["metric"] == "frechet")
  welch = stats.ttest_ind([-5.0, -5.5, -4.5], [-10.0, -11.0, -12.0], equal_var=False)
  assert best == "a"
  np.testing.assert_allclose(gaps["b"], (6.0, *welch.confidence_interval(0.95)))
  page = compare.render(compare.compare(runs, "x"))
  assert "Against baselines" in page and "against a" in page


def test_advice_calls_a_tie_a_tie():
  runs = study(a=10.0, b=100.0)
  for r in runs:
    r.records[0]["value"] = (0.0, 10.0, 20.0)[r.seed] + (r.method == "a")
  found, words = advice(runs)
  assert found.method == "b" and found.cheaper == ["a"]
  assert "take that as a tie" in words and "Cheaper" in words


def test_page_and_markdown(tmp_path):
  runs = [*study(), run("c<d>", 0, status="failed", outcome={"error": "<b>boom</b>"})]
  c = compare.compare(runs, "study", budget_minutes=1.0)
  line = {"elbo": [1.0, 3.0, 2.0]}
  text = compare.render(c, {"vae": {"naive": line, "matched": line}})
  assert "vae: elbo" in text and "<td>1.5</td>" in text
  # Well-formed, nothing fetched, nothing executed; the links are to runs beside it.
  parse(text.replace('href="runs/', 'href="#'))
  assert "&lt;b&gt;boom&lt;/b&gt;" in text and "<b>boom" not in text
  lines = compare.markdown(c).splitlines()
  assert "| measure | a | b |" in lines
  assert any(
    line.startswith("| Frechet distance, prior → image ↓ | 11 (") for line in lines
  )
  empty = compare.compare([run("a", 0, status="new", outcome={})], "study")
  assert "No run is finished yet" in compare.render(empty)


def test_the_picture_has_every_point_and_its_interval():
  points = {"a": scatter.Point(1.0, 2.0, 1.0, 3.0), "b": scatter.Point(2.0, 2.5)}
  drawn = scatter.scatter(points, ["a", "b"], "x", "s")
  assert drawn.count("<circle") == 2 and drawn.count("stroke-width:1.4") == 1

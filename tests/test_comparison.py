"""What is said of methods: intervals, columns of one protocol, costs, advice."""

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
from scipy import stats
from test_report import parse

from mmgen_jax import comparison, recommendation
from mmgen_jax.report import compare, scatter

# Every metric that is emitted, by which side is better.
HIGHER = """
  coherence/strict coherence/strict_macro coherence/shape coherence/shape_macro
  joint_coherence/strict joint_coherence/shape mean_coherence/given_2 readable
  modes/count precision recall coverage inception_score reconstruction/token_accuracy
  loss/elbo loss/logp loss/logp_image log_likelihood/k64 accuracy/digit
  accuracy_of_all/digit damaged/digit/image/noise/0.5 robustness/digit/image/noise
  recall_at_1 recall_at_10_label disentanglement/mig disentanglement/dci_disentanglement
  disentanglement/dci_completeness disentanglement/dci_informativeness
  disentanglement/sap disentanglement/factor_vae_score disentanglement/beta_vae_score
  latents/linear_probe latents/neighbours latents/anomaly_auroc
"""
LOWER = """
  frechet kid reconstruction/mse reconstruction/mae modes/reverse_kl modes/kl_to_uniform
  loss/bits_per_dimension loss/bits_per_code nll/digit nll_scaled/digit brier/digit
  ece/digit ece_scaled/digit mean_rank mean_rank_label median_rank median_rank_label
  latents/imputed_mse/mean latents/imputed_mse/sample
"""
NEITHER = """
  density loss/kl loss/logits_real loss/logits_fake latents/kl latents/active_units
  precision_share conflict shapley/coherence shapley/digit utilisation/digit
  shapley/log_likelihood/k64 latents/imputed_mse/training_mean
  temperature/digit floor/frechet floor/kid floor/precision floor/recall floor/density
  floor/coverage floor/inception_score floor/modes/count floor/modes/kl_to_uniform
"""
COST = {"train_secs": 10.0, "train_flops": 1e12, "evaluate_secs": 2.0}


def record(metric, value, given: Any = (), target: Any = "image", split="test", **more):
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
  of = lambda n: {"samples": n, "reference": {"samples": n}}  # whatever was given
  rs += [record("frechet", 9.0, ["caption"], **of(50))]
  rs += [record("frechet", 7.0, ["caption"], split="train", **of(400))]
  rs += [record("reconstruction/mse", 2.0, ["image"], samples=50)]
  rs += [record("reconstruction/mse", 1.0, ["image"], split="train", samples=400)]
  found = {g.metric for g in comparison.gaps(runs)}
  assert found == {"coherence/strict", "reconstruction/mse"}


def test_every_metric_has_its_better_side():
  sides = {1: HIGHER, -1: LOWER, 0: NEITHER}
  want = {metric: side for side, names in sides.items() for metric in names.split()}
  assert {metric: comparison.better(metric) for metric in want} == want


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


NAMES = ("m0", "m1", "m2", "m3", "m4")


def many(names=NAMES, means=True, seeds=2):
  """Of all directions: a makes what belongs together, b has the better distances."""
  out = []
  for (at, method), seed in itertools.product(enumerate("ab"), range(seeds)):
    noise = 0.01 * seed
    right, far = 0.9 - 0.3 * at + noise, 20.0 - 5.0 * at + noise
    rs = [record("joint_coherence/strict", right, (), list(names))]
    rs.append(record("loss/elbo", 100 * right, None, None))
    for target, count in itertools.product(names, range(len(names))):
      others = [name for name in names if name != target]
      for given in itertools.combinations(others, count):
        rs.append(record("frechet", far, given, target))
        rs += [record("coherence/strict", right, given, target)] * bool(given)
    for count in range(1, len(names)) if means else ():
      rs.append(record(f"mean_coherence/given_{count}", right, None, None))
    rs += [
      {**r, "data": {**r["data"], "split": "train", "fingerprint": "x"}} for r in rs
    ]
    out.append(run(method, seed, rs))
  return out


def test_a_question_counts_once_however_many_directions_it_has():
  found, words = advice(many())
  sizes = {name: len(q) for name, q in recommendation.questions(found.shared).items()}
  assert sizes == {
    "joint coherence, prior": 1,
    "coherence, given others": 4,  # the means, in place of 75 directions
    "Frechet distance, prior": 5,
    "Frechet distance, given others": 75,
    "held-out ELBO": 1,
  }
  # Coherence (both) and the ELBO are a's, 80 of 86 columns are b's.
  assert found.method == "a" and found.ranks == pytest.approx({"a": 1.4, "b": 1.6})
  assert "Frechet distance, given others (75 measures)" in words
  assert "coherence, given others (4 measures): a best in 4" in words
  assert "Each of these counts once" in words and len(words) < 900


def test_few_directions_are_told_one_by_one():
  found, words = advice(many(NAMES[:2], means=False))
  assert "coherence, m0 → m1: a 90.5 % against b 60.5 %" in words
  assert "coherence, m1 → m0: a 90.5 % against b 60.5 %" in words
  found, words = advice(study(a=10.0, b=100.0))
  assert "(Frechet distance, prior → image; readable, prior → image). The" in words


def test_ranks_that_are_equal_are_equal_to_the_last_bit():
  values = {"a": (1.0, 2.0, 3.0), "b": (2.0, 3.0, 1.0), "c": (3.0, 1.0, 2.0)}
  rs = lambda v: [record("frechet", x, (), f"m{i}") for i, x in enumerate(v)]
  two = lambda v: [record("frechet", x, ("k",), f"m{i}") for i, x in enumerate(v)]
  runs = [run(m, 0, rs(v) + two(v[::-1])) for m, v in values.items()]
  found, _ = advice(runs)
  assert found.ranks == dict.fromkeys("abc", 2.0)


def test_means_over_directions_stand_for_them_only_where_they_are():
  runs = many(NAMES[:3])
  lone = [r for r in many(NAMES[:3], means=False) if r.method == "a"]
  runs += [r._replace(method="c", id=f"c-seed{r.seed}") for r in lone]
  found, _ = advice(runs)
  kept = [c for c in found.shared if c.record["metric"] == "coherence/strict"]
  assert len(kept) == 9 and all(set(c.cells) == set("abc") for c in kept)
  assert len(advice([r for r in runs if r.method != "c"])[0].shared) == 2 + 12 + 2


def test_the_page_names_questions_where_directions_are_many():
  text = compare.render(compare.compare(many(), "study"))
  parse(text.replace('href="runs/', 'href="#'))
  part = lambda name: text.split(f'<section id="{name}">')[1].split("</section>")[0]
  heads = lambda name: part(name).split("</thead>")[0].count("<th>")
  assert heads("stability") == 5 + 5 and heads("quality") == 1 + 5
  assert "mean sd of Frechet distance, given others (75 measures)" in part("stability")
  assert "1.0<small>mean rank</small>" in part("quality")
  # All directions are there to be opened.
  assert "Frechet distance, given others: 75 measures</summary>" in part("quality")
  assert "m0 + m1 → m2" in part("quality")
  drawn = re.findall("<figcaption>(.*?),", part("pareto"))
  assert drawn == ["joint coherence", "coherence", *["Frechet distance"] * 2]
  shown = part("generalisation").split("<details>")[0]
  assert "coherence, any 1 given" in shown and "m0 → m1" not in shown
  assert "Frechet distance, given others: 75 measures" in part("generalisation")
  few = compare.render(compare.compare(many(NAMES[:2], means=False), "study"))
  assert "<details><summary>Frechet" not in few and "sd of coherence, m0 → m1" in few


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


def fall(method, seed, curve, given, baseline=False):
  """A run with one curve under damage, and another of fewer inputs."""
  about = {"target": "digit", "curve": curve, "reference": {"strengths": [0, 1, 2]}}
  metric = "robustness/digit/image/noise"
  rs = [record(metric, 0.0, given, **about)]
  rs.append(record(metric, 0.0, (), **about | {"curve": [0.1, 0.1, 0.1]}))
  return run(method, seed, rs, baseline=baseline)


def test_robustness_is_of_all_inputs_against_the_most_accurate_baseline():
  both = ("image", "sound")
  runs = [fall("eye", s, [0.8, 0.6, 0.4], ["image"], baseline=True) for s in range(2)]
  runs += [fall("blind", 0, [0.5, 0.5, 0.5], ["image"], baseline=True)]
  runs += [fall("two", s, [0.9, 0.8 + 0.1 * s, 0.7], both) for s in range(2)]
  (found,) = comparison.robustness(runs, "test")
  assert found.baseline == "eye" and found.effective.keys() == {"blind", "two"}
  assert found.relative["eye"].mean == pytest.approx(0.6)
  assert found.relative["two"].values == pytest.approx((0.8, 0.85))
  # As "eye" falls, .9, .7, .5 would be left.
  assert found.effective["two"].values == pytest.approx((0.3 / 3, 0.4 / 3))
  page = compare.render(compare.compare(runs, "x"))
  assert "effective against eye" in page and "+11.7" in page
  (alone,) = comparison.robustness([r._replace(baseline=False) for r in runs], "test")
  assert alone.baseline is None and not alone.effective
  assert not comparison.robustness(runs, "train")


def test_curves_over_other_severities_stand_apart():
  runs = [fall("a", 0, [0.8, 0.6, 0.4], ["image"], baseline=True)]
  runs += [fall("b", 0, [0.8, 0.6, 0.4], ["image"])]
  for r in runs[1].records:
    r["reference"] = {"strengths": [0, 2, 3]}
  found = comparison.robustness(runs, "test")
  assert len(found) == 2 and not any(k.effective for k in found)


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


def test_names_are_written_towards_the_middle_of_the_picture():
  points = {"cheap one": scatter.Point(1.0, 2.0), "dear one": scatter.Point(9.0, 2.5)}
  drawn = scatter.scatter(points, [], "x", "s")
  cheap, dear = (
    re.search(
      rf'cx="([\d.]+)".*?<text x="([\d.]+)"[^>]*anchor="(\w+)"[^>]*>{name}', part
    )
    for name, part in zip(points, drawn.split("<g>")[1:], strict=True)
  )
  assert cheap and dear and (cheap[3], dear[3]) == ("start", "end")
  assert float(cheap[2]) > float(cheap[1]) and float(dear[2]) < float(dear[1])


def test_names_of_points_near_each_other_are_written_apart():
  near = {f"a long name {i}": scatter.Point(9.0 + i / 20, 2.0) for i in range(5)}
  points = {"cheap": scatter.Point(1.0, 1.0), **near}
  drawn = scatter.scatter(points, [], "x", "s")
  lines = [
    float(y)
    for name in near
    for y in re.findall(rf'y="([\d.]+)" text-anchor="end"[^>]*>{name}', drawn)
  ]
  assert len(lines) == len(near)
  assert min(b - a for a, b in itertools.pairwise(sorted(lines))) >= 11

"""Early warnings: what the logged means of a run say before samples show it."""

from collections.abc import Callable, Mapping

Means = Mapping[str, float]
_APART = 5.0  # R2 over R1, either way
_CERTAIN = 0.98  # share of pairs that D has the right way round
_APART_LOGITS = 0.1  # of real and generated; nearer, D tells nothing apart
_MEMORISED = 0.5  # of the way from training examples down to generated ones
_PATIENCE = 10  # times that metrics are logged
_SILENT = 1e-3  # share of a posterior's precision
_SHARE = "fusion/share_"


def overfitting(real: float, held_out: float, fake: float) -> float:
  """(D(train) - D(held out)) / (D(train) - D(G(z))), of mean logits; 0 where D is blind.

  0: held-out examples look like training examples to the discriminator; 1: like
  generated ones. Karras et al., "Training Generative Adversarial Networks with Limited
  Data", 2020, eq. 1, https://arxiv.org/abs/2006.06676.
  """
  return (real - held_out) / (real - fake) if real - fake > 1e-6 else 0.0


def warnings(means: Means) -> dict[str, str]:
  """{what is wrong: a message} of metrics, by the names that the steps log.

  Of a fusion run: an expert whose log-variances all went up to their bound gets next to
  no gradient, and its modality may be lost. Of a GAN: R1 and R2 stay near each other as
  long as generated and real examples are equally hard (Huang et al., 2024, section 2.4,
  https://arxiv.org/abs/2501.05441).
  """
  found, get = {}, means.get
  r1, r2 = get("gan/r1"), get("gan/r2")
  if r1 is not None and r2 is not None and max(r1, r2) > 0:
    ratio = r2 / max(r1, 1e-12)
    if not 1 / _APART < ratio < _APART:
      found["divergence"] = (
        f"R2 is {ratio:.2g} times R1 (gan/r2, gan/r1): the game may be diverging; a"
        " larger penalty (loss.r1_gamma, burn_in.gamma) or a lower rate would hold it"
      )
  above = get("gan/real_above_fake")
  if above is not None and above > _CERTAIN:
    found["certainty"] = (
      f"{above:.1%} of real examples are above their generated ones"
      " (gan/real_above_fake): the generator may have stopped learning"
    )
  names = [f"{of}/logits_{x}" for of in ("gan", "held_out") for x in ("real", "fake")]
  if all(name in means for name in names):
    real, fake, real_held_out, fake_held_out = (means[name] for name in names)
    # Augmentation, which only training has, shifts logits; those of samples tell by what.
    share = overfitting(real, real_held_out - fake_held_out + fake, fake)
    if share > _MEMORISED and real - fake > _APART_LOGITS:
      found["overfitting"] = (
        f"held-out examples are {share:.0%} of the way from training to generated ones"
        " in the discriminator's logits: it learns examples by heart; more data or"
        " disc_augment would help"
      )
  for name in sorted(n.removeprefix(_SHARE) for n in means if n.startswith(_SHARE)):
    if means[_SHARE + name] < _SILENT:
      found[f"silence of {name}"] = (
        f"the encoder of {name} has {means[_SHARE + name]:.1g} of the posterior's"
        f" precision ({_SHARE}{name}): it says next to nothing; a lower"
        " optim.learning_rate, a longer optim.warmup_steps or a larger loss.cross would"
        " keep it"
      )
  return found


def make_watch(patience: int = _PATIENCE) -> Callable[[Means], list[str]]:
  """`watch(means)` -> what is newly wrong, with the newest value of each metric.

  What has been found `patience` times more than not is told, once; and again only if it
  had passed for as many times. A discriminator that is certain of the first samples, and
  a value that comes and goes about its bound, are told of not at all, or once.
  """
  newest: dict[str, float] = {}
  held: dict[str, int] = {}
  told: set[str] = set()

  def watch(means: Means) -> list[str]:
    newest.update(means)
    found, new = warnings(newest), []
    for what in {*held, *found}:
      more = held.get(what, 0) + (1 if what in found else -1)
      held[what] = min(max(more, 0), patience)
      if held[what] == patience and what not in told:
        told.add(what)
        new.append(found[what])
      elif held[what] == 0:
        told.discard(what)
    return sorted(new)

  return watch

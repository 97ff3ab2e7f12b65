"""Train steps by family; each module has the same six functions.

`init`, `make_train_step`, `make_eval_step`, `make_generate`, `subsets`, `build`.
"""

from mmgen_jax.steps import (
  alignment,
  autoregressive,
  extension,
  fusion,
  gan,
  hvae,
  multimodal,
  recognition,
  vae,
  vq,
)

STEPS = {
  "gan": gan,
  "vae": vae,
  "hvae": hvae,
  "vq": vq,
  "autoregressive": autoregressive,
  "fusion": fusion,
  "multimodal": multimodal,
  "recognition": recognition,
  "alignment": alignment,
  "extension": extension,
}


def class_label(config) -> str:
  """The label whose classes a model is conditioned on; "" where there is none."""
  conditional = config.family in ("gan", "autoregressive") and config.model.classes
  return config.model.label if conditional else ""

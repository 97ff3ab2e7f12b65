"""Train steps by family; each module has the same six functions.

`init`, `make_train_step`, `make_eval_step`, `make_generate`, `subsets`, `build`.
"""

from mmgen_jax.steps import (
  alignment,
  extension,
  fusion,
  gan,
  multimodal,
  recognition,
  vae,
)

STEPS = {
  "gan": gan,
  "vae": vae,
  "fusion": fusion,
  "multimodal": multimodal,
  "recognition": recognition,
  "alignment": alignment,
  "extension": extension,
}

"""Train steps by family; each module has the same six functions.

`init`, `make_train_step`, `make_eval_step`, `make_generate`, `subsets`, `build`.
"""

from mmgen_jax.steps import fusion, gan, multimodal, vae

STEPS = {"gan": gan, "vae": vae, "fusion": fusion, "multimodal": multimodal}

"""Multimodal learning and image generation in JAX: GANs, VAEs, and their fusion.

The public names are below; each is imported from its module when first used, so that
`import mmgen_jax` costs nothing.
"""

import importlib

_NAMES = {
  "config": ["load_config"],
  "data": ["load_data"],
  "data.feeds": ["batch_indices", "missing_mask", "resident_feed", "streamed_feed"],
  "data.modality": ["Modality", "audio", "image", "text"],
  "fusion.feature": ["AttentionFusion", "GatedFusion", "MeanFusion"],
  "fusion.model": [
    "mixture_of_products",
    "precision_shares",
    "product_of_experts",
    "random_subset",
    "sample_gaussian",
  ],
  "likelihoods": ["make_likelihood"],
  "losses": [
    "gaussian_kl",
    "gaussian_log_prob",
    "gradient_penalty",
    "make_adversarial",
  ],
  "metrics.bootstrap": ["mean_interval"],
  "metrics.frechet": ["frechet_distance", "gaussian_frechet", "kid", "moments"],
  "models.conv": ["ConvDecoder", "ConvEncoder"],
  "models.gan": ["Discriminator", "Generator"],
  "models.multimodal": ["MultimodalVAE"],
  "models.text": ["TextDecoder", "TextEncoder"],
  "optim": ["make_optimizer"],
  "parallel": ["compile_step", "make_mesh", "put_inputs", "put_replicated"],
  "state": ["State"],
  "steps": ["STEPS"],
}
_ALIASES = {"load_config": "load", "load_data": "load"}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str):
  if name not in _MODULE_OF:
    raise AttributeError(f"module 'mmgen_jax' has no attribute {name!r}")
  module = importlib.import_module(f"mmgen_jax.{_MODULE_OF[name]}")
  return getattr(module, _ALIASES.get(name, name))


def __dir__():
  return sorted([*globals(), *__all__])

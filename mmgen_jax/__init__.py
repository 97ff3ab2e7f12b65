"""Multimodal learning and image generation in JAX: GANs, VAEs, and their fusion.

The public names are below; each is imported from its module when first used, so that
`import mmgen_jax` costs nothing.
"""

import importlib

_NAMES = {
  "attribution": [
    "conflict",
    "integrated_gradients",
    "interaction",
    "fusion_weights",
    "precision_shares_by_latent",
    "shapley",
  ],
  "balance": ["blending_weights", "modality_dropout", "modulation", "scale_gradient"],
  "config": ["load_config"],
  "contrastive": ["info_nce", "make_pairs", "pair_loss", "siglip"],
  "data": ["load_data"],
  "data.corrupt": ["corrupt"],
  "data.feeds": ["batch_indices", "missing_mask", "resident_feed", "streamed_feed"],
  "data.modality": ["Modality", "audio", "image", "text"],
  "diffaugment": ["make_augmentation"],
  "fuse": ["fuse_checkpoints"],
  "fusion.ensemble": [
    "average_discriminators",
    "average_logits",
    "average_probabilities",
    "distillation_loss",
    "mixture_of_posteriors",
    "mixture_sample",
    "posterior_distillation_loss",
    "product_of_posteriors",
    "stack_networks",
  ],
  "fusion.feature": [
    "AttentionFusion",
    "BottleneckFusion",
    "ConcatFusion",
    "CrossAttentionFusion",
    "FilmFusion",
    "GatedFusion",
    "LatentFusion",
    "LowRankFusion",
    "MeanFusion",
    "TensorFusion",
    "make_fusion",
  ],
  "fusion.model": [
    "mixture_of_products",
    "precision_shares",
    "product_of_experts",
    "products",
    "random_subset",
    "sample_gaussian",
  ],
  "fusion.posteriors": ["Density", "Posterior"],
  "fusion.fisher": ["diagonal_fisher", "fisher_average"],
  "fusion.match": ["activation_matching", "match_many", "weight_matching"],
  "fusion.permute": [
    "apply_permutation",
    "find_symmetry",
    "permutable_fraction",
    "random_permutations",
  ],
  "fusion.repair": ["make_layer_outputs", "repair"],
  "fusion.task_vectors": ["dare", "task_arithmetic", "ties"],
  "fusion.weight": [
    "average",
    "ema_update",
    "greedy_soup",
    "interpolate",
    "layer_weights",
    "loss_barrier",
    "slerp",
    "swa_update",
  ],
  "health": ["overfitting"],
  "likelihoods": ["make_likelihood"],
  "losses": [
    "contrast",
    "gaussian_kl",
    "gaussian_log_prob",
    "gradient_penalty",
    "lecam_penalty",
    "make_adversarial",
    "wasserstein_penalty",
  ],
  "metrics.bootstrap": ["mean_interval"],
  "metrics.calibration": ["calibration_error", "fit_temperature", "reliability"],
  "metrics.disentanglement": ["dci", "mig", "sap"],
  "metrics.frechet": ["frechet_distance", "gaussian_frechet", "kid", "moments"],
  "metrics.likelihood": [
    "active_units",
    "bits_per_dimension",
    "importance_bounds",
    "mean_kl_by_dimension",
  ],
  "metrics.manifold": ["manifold"],
  "metrics.modes": ["inception_score", "kl_floor", "modes", "stacked_mode"],
  "metrics.multimodal_likelihood": ["make_log_likelihood"],
  "metrics.retrieval": ["expected_rank", "recall_at"],
  "metrics.robustness": ["effective_robustness", "relative_robustness"],
  "metrics.shared_factor": ["beta_vae_score", "factor_vae_score"],
  "models.alignment": ["Aligner"],
  "models.condition": ["ConditionEncoder", "Given"],
  "models.conv": ["ConvDecoder", "ConvEncoder"],
  "models.gan": ["Discriminator", "Generator"],
  "models.hvae": ["HierarchicalVAE"],
  "models.latents": ["CouplingFlow", "fit_flow", "fit_mixture"],
  "models.multimodal": ["MultimodalVAE"],
  "models.pixelcnn": ["PixelCNN"],
  "models.r3gan": ["R3Discriminator", "R3Generator", "grouped_conv"],
  "models.recognition": ["Recognizer"],
  "models.text": ["TextDecoder", "TextEncoder"],
  "models.vae": ["MLPVAE"],
  "multimodal_objectives": [
    "jensen_shannon",
    "jmvae",
    "mixture_log_prob",
    "mopoe",
    "mvae",
    "mvtcae",
    "stratified_dreg",
    "stratified_elbo",
    "stratified_iwae",
  ],
  "models.vq": ["MapAutoencoder"],
  "objectives": [
    "calibrated_log_prob",
    "capacity",
    "capacity_at",
    "dreg",
    "elbo",
    "free_bits",
    "iwae",
    "kl_by_dimension",
    "log_weights",
    "optimal_variance",
    "vamp_log_prob",
  ],
  "optim": ["make_optimizer"],
  "parallel": ["compile_step", "make_mesh", "put_inputs", "put_replicated"],
  "prompt": ["load_trained", "sample"],
  "representation": [
    "auroc",
    "impute",
    "interpolate_latents",
    "linear_probe",
    "nearest_neighbours",
  ],
  "quantise": ["Fsq", "nearest", "perplexity", "revive", "straight_through"],
  "state": ["State"],
  "steps": ["STEPS"],
  "total_correlation": [
    "beta_tc",
    "decompose_kl",
    "density_ratio_loss",
    "factor",
    "permute_latents",
  ],
}
_ALIASES = {
  "fuse_checkpoints": "fuse",
  "interpolate_latents": "interpolate",
  "load_config": "load",
  "load_data": "load",
  "make_augmentation": "make_pipe",
  "stack_networks": "stack",
}
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

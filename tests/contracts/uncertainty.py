"""Calls of calibrators, conformal sets, densities and Gaussian processes."""

from jaxlab.uncertainty import batch_calibration_init, init_adaptive_temperature, nig_predictive
from tests.contracts.calls import KEY, B, Built, b, c, call, f, n, p, s, t, u

_TEMPERATURE = Built(lambda: init_adaptive_temperature(KEY.draw(0), num_cues=4))
_BAR = (f(B, 4), s(5))
_POINTS = (f(5, 2), u(5))
_LOOP = {"gradients": "loop"}
_STEPS = {"gradients": "steps"}

TABLE = {
  "adaptive_temperature": call(_TEMPERATURE, f(B, 4)),
  "apply_temperature": call(f(B, 4), temperature=u(B)),
  "bar_borders": call(f(20), 4),
  "bar_cdf": call(*_BAR, f(2)),
  "bar_entropy": call(*_BAR),
  "bar_mean": call(*_BAR),
  "bar_mode": call(*_BAR),
  "bar_quantile": call(*_BAR, 0.3),
  "bar_sample": call(KEY, *_BAR),
  "bar_variance": call(*_BAR),
  "basis_curve": call("pow4", t(5), u(4)),
  "basis_curve:rows": call("ilog2", u(B), u(2)),
  "batch_calibration": call(f(5, 4)),
  "batch_calibration:given": call(f(B, 4), mean=f(4), std=u(4)),
  "batch_calibration_init": call(num_classes=4),
  "batch_calibration_update": call(
    Built(lambda: batch_calibration_init(num_classes=4)), f(5, 4)
  ).but(keeps=True),
  "class_error_estimate": call(p(B, 4), u(B, 4)),
  "classification_error_target": call(f(B, 4), c(B)).but(skip=_STEPS),
  "combined_curve": call(u(B, 13), length=5),
  "conformal_quantile": call(u(20), alpha=0.1).but(static="alpha"),
  "conformal_quantile:between": call(u(20), alpha=0.1, method="mquantiles").but(static="alpha"),
  "curve_exceedance": call(u(4, 13), 0.5, length=5),
  "curve_predictive_log_prob": call(u(4, 13), u(5), length=5),
  "ensemble_variance": call(p(2, B, 4)),
  "epistemic_covariance": call(n(B, 4, 4)),
  "epistemic_variance": call(n(B, 4, 4)),
  "epistemic_from_error": call(u(B), 0.1),
  "error_features": call(
    f(B, 2),
    include=("x", "density", "distance", "variance", "seen"),
    density=f(B),
    distance=u(B),
    variance=u(B),
    seen=u(B),
  ),
  **{
    f"error_from_target:{kind}": call(f(B), kind=kind)
    for kind in ("log_squared", "squared", "inverse_softplus")
  },
  **{
    f"error_target:{kind}": call(f(B), f(B), kind=kind).but(skip=_STEPS)
    for kind in ("log_squared", "squared", "inverse_softplus")
  },
  "exit_conformal_thresholds": call(u(20, 4), c(20), alpha=0.1, min_points=2).but(static="alpha"),
  "expected_improvement": call(*_BAR, 0.3),
  "expected_improvement_gaussian": call(f(B), u(B), 0.3),
  "fit_adaptive_temperature": call(
    KEY, f(5, 4), u(5, 2), c(5), num_steps=2, batch_size=2, hidden=2
  ),
  "fit_gp": call(*_POINTS, num_steps=2).but(skip=_LOOP),
  "fit_linear_svm": call(f(5, 2), c(5), num_classes=4).but(skip=_LOOP),
  "fit_linear_svm:two": call(f(5, 2), c(5), num_classes=2, num_steps=2).but(skip=_LOOP),
  "fit_temperature": call(f(5, 4), c(5), num_steps=4).but(skip=_LOOP),
  "gaussian_kl": call(f(B), u(B), f(B), u(B)),
  "gaussian_predictive": call(*_POINTS, f(B, 2), mask=b(5)),
  "gaussian_log_density": call(f(B, 2), f(5, 2), mask=b(5)),
  "gp_log_marginal_likelihood": call(*_POINTS, mask=b(5)),
  "gp_mixture_log_prob": call(*_POINTS, f(B, 2), f(B), u(2), u(2), u(2), n(2)),
  "gp_posterior": call(*_POINTS, f(B, 2)),
  "init_adaptive_temperature": call(KEY, num_cues=4),
  "is_learning_curve": call(u(B, 5)),
  **{
    f"kernel_matrix:{kernel}": call(
      f(B, 2), f(5, 2), lengthscale=0.5, outputscale=1.0, kernel=kernel
    )
    for kernel in ("rbf", "matern12", "matern32", "matern52")
  },
  "kde_log_density": call(f(B, 2), f(5, 2), bandwidth=0.5, mask=b(5)),
  "learning_curve_log_density": call(u(13), u(5), length=6),
  "learning_curve_log_likelihood": call(u(13), u(5), length=6),
  "least_squares_predictive": call(*_POINTS, f(B, 2)),
  "linear_svm_scores": call(f(5, 2), c(5), f(B, 2), num_classes=4).but(skip=_LOOP),
  "max_probability": call(p(2, B, 4)).but(skip=_STEPS),
  "mean_probability": call(p(2, B, 4)),
  "nig_log_predictive": call(*_POINTS, f(B, 2), f(B), mask=b(5)),
  "nig_predictive": call(*_POINTS, f(B, 2), mask=b(5)),
  "noise_grid_predictive": call(*_POINTS, f(B, 2), u(4), u(4), mask=b(5)),
  "min_max_scale": call(f(B), u(), u()),
  "nearest_distance": call(f(B, 2), f(5, 2), mask=b(5)),
  "mixture_predictive": call(n(2, 4, B, 4), n(2, 4, B)),
  "mixture_predictive:geometric": call(n(2, 4, B, 4), n(4, B), reduction="geometric"),
  "normalize_features": call(f(B, 4)),
  "pair_confidence": call(n(B, 4, 4)),
  "pair_marginal": call(n(B, 4, 4)),
  "prediction_sets": call(u(B, 4), 0.5),
  "prefix_predictives": call(nig_predictive, f(B, 4, 2), f(B, 4)),
  "probability_interval": call(u(B, 4), u(B, 4)),
  "probability_of_improvement": call(*_BAR, 0.3),
  "probability_of_improvement_gaussian": call(f(B), u(B), 0.3),
  "probe_accuracy_by_layer": call(KEY, f(5, B, 2), c(5), num_classes=4, num_splits=2).but(
    static="train_fraction", skip=_STEPS
  ),
  "sequence_confidence": call(n(B), n(B)),
  "task_pool_predictive": call(*_POINTS, f(B, 2), f(4, 2), u(4), mask=b(5)),
  "total_error_estimate": call(f(B), u(B), 0.1),
  "replicate_variance": call(f(B, 4)),
  "seen_indicator": call(f(B, 2), f(5, 2), mask=b(5)).but(skip=_STEPS),
  "set_statistics": call(b(5, 4), c(5)),
  "smooth_kde_log_density": call(f(B, 2), f(5, 2), mask=b(5)),
  "transform_cues": call(f(B, 4), f(2, B, 4), top_k=2).but(quiet="logits"),
  "upper_confidence_bound": call(*_BAR),
  "upper_confidence_bound_gaussian": call(f(B), u(B)),
  "verbalizer_logits": call(f(B, 2, 8), c(4, 2), b(4, 2)),
  "vote_probability": call(p(2, B, 4)).but(skip=_STEPS),
}

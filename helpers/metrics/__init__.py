"""Numbers that judge a model (`quality`) and a joint embedding of several batches (`integration`)."""

from helpers.metrics.quality import (
    active_units,
    coverage_joint,
    coverage_per_dimension,
    explained_variance,
    knn_label_accuracy,
    logistic_accuracy,
    principal_axes,
    r2,
    r2_per_sample,
    reconstruction_error,
    spread,
    total_correlation,
    two_sample_nn,
)

__all__ = [
    "active_units",
    "coverage_joint",
    "coverage_per_dimension",
    "explained_variance",
    "knn_label_accuracy",
    "logistic_accuracy",
    "principal_axes",
    "r2",
    "r2_per_sample",
    "reconstruction_error",
    "spread",
    "total_correlation",
    "two_sample_nn",
]

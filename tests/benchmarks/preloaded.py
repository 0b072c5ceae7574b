"""What the parts of most benchmarks import, see `benchmarks.common.child`."""

import ray
import ray.data
import torch

import braintumor_ray.predict.predictor
import braintumor_ray.scoring.job
from braintumor_ray.models.vision_libraries import import_timm

__all__ = ["braintumor_ray", "ray", "torch"]
import_timm()

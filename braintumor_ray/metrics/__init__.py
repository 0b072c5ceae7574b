"""Classification metrics, thresholds and calibration; numpy and scikit-learn, no Ray."""

from braintumor_ray.errors import BrainTumorError


class MetricsError(BrainTumorError):
    """Labels, probabilities or groups from which no metric can be computed."""

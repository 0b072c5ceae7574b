"""Where training and evaluation are tracked."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from braintumor_ray.options import Option


@dataclass(frozen=True, kw_only=True)
class TrackingOptions:
    """Where a command's run is tracked.

    Attributes:
        mlflow: URI of a tracking server, or the folder of a file store; None: not tracked.
        mlflow_experiment: the experiment that the run belongs to.
    """

    PANEL: ClassVar = "Tracking"

    mlflow: Annotated[
        str | None,
        Option("MLflow server, or a folder such as ./mlruns (extra 'mlflow').", "URI|FOLDER"),
    ] = None
    mlflow_experiment: Annotated[str, Option("The run's experiment in MLflow.", "NAME")] = (
        "braintumor-ray"
    )


@dataclass(frozen=True, kw_only=True)
class TrainTrackingOptions(TrackingOptions):
    """As `TrackingOptions`, for a command that ends in a bundle.

    Attributes:
        mlflow_model: name of the bundle in the model registry; None: braintumor- and the recipe.
    """

    mlflow_model: Annotated[
        str | None,
        Option("The bundle's name in MLflow's model registry.", "NAME", typed="braintumor-RECIPE"),
    ] = None

"""Two small convolutional networks that are trained from scratch."""

from torch import Tensor, nn


class Cnn3Conv(nn.Module):
    """Three valid 3x3 convolutions 32-64-128, each ReLU; pooling after the first two.

    The third pooling belongs to the head, so that the target map is the ReLU of the third
    convolution: (B, 128, 60, 60) for 256 px inputs.
    """

    num_features = 128

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3),
            nn.ReLU(),
        )

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to the target map (B, 128, h, w)."""
        features: Tensor = self.layers(images)
        return features


class SmallCnn(nn.Module):
    """Five convolutions with BatchNorm, 16 to 96 channels, stride 8 in all; for phantoms."""

    num_features = 96

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 48, 64, 96)
        strides = (2, 2, 1, 2, 1)
        layers: list[nn.Module] = []
        previous = 3
        for width, stride in zip(widths, strides, strict=True):
            layers += [
                nn.Conv2d(previous, width, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            previous = width
        self.layers = nn.Sequential(*layers)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to the target map (B, 96, S/8, S/8)."""
        features: Tensor = self.layers(images)
        return features

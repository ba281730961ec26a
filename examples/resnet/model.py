"""A convolutional network of the shape of ResNet-18 (He et al., 2015, arXiv:1512.03385)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from slipway.export import Dim, ExportSpec


def convolution(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    """Returns a convolution followed by batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, 3, stride)
        self.second = convolution(outputs, outputs, 3, 1)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else convolution(inputs, outputs, 1, stride)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        inner = self.second(functional.relu(self.first(image)))
        return functional.relu(inner + self.shortcut(image))


class ResNet18(nn.Module):
    """Maps images (batch, 3, height, width) to logits (batch, 100), both float32.

    The layers are those of the paper's table 1, with `width` channels in the first of them.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.stem = convolution(3, width, 7, 2)
        blocks = []
        inputs = width
        for stage, outputs in enumerate(widths):
            blocks.append(ResidualBlock(inputs, outputs, stride=1 if stage == 0 else 2))
            blocks.append(ResidualBlock(outputs, outputs, stride=1))
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, 100)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = functional.relu(self.stem(image))
        features = functional.max_pool2d(features, 3, stride=2, padding=1)
        features = self.blocks(features)
        return self.head(features.mean(dim=(2, 3)))


def build_model() -> ResNet18:
    """Returns the model with the weights that a seed gives, the same everywhere."""
    torch.manual_seed(18)
    return ResNet18().eval()


def export_spec() -> ExportSpec:
    batch = Dim("batch", min=1, max=16)
    # The network halves the image five times.
    rows = Dim("rows", min=1, max=8)
    columns = Dim("columns", min=1, max=8)
    return ExportSpec(
        model=build_model(),
        args=torch.randn(2, 3, 64, 96),
        dynamic_shapes={"image": {0: batch, 2: 32 * rows, 3: 32 * columns}},
        output_names=["logits"],
    )

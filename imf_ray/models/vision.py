"""Image encoders. For each camera, a ResNet trunk and a spatial softmax make a feature vector.

torchvision is imported only when a trunk is built. It imports torch's compiler, which takes longer
than torch itself, and most processes of a run build no trunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torchvision.models import ResNet18_Weights


VISION_BACKBONE_MODES = ("resnet",)
RESNET18_WIDTHS = (64, 128, 256, 512)
RESNET18_BLOCKS = (2, 2, 2, 2)
RESNET18_STRIDES = (1, 2, 2, 2)
_CHANNELS_PER_GROUP = 16
"""Channels per group of GroupNorm, as in Diffusion Policy (arXiv 2303.04137)."""


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // _CHANNELS_PER_GROUP), channels)


class ResNetTrunk(nn.Module):
    """The convolutional part of a ResNet of basic blocks (arXiv 1512.03385).

    The defaults give torchvision's resnet18 without its pooling and classifier, with the same
    state-dict keys. A trunk trained from scratch uses GroupNorm with 16 channels per group, as in
    Diffusion Policy (arXiv 2303.04137), because averaged weights (EMA) and small batches break
    BatchNorm. A pretrained trunk keeps its BatchNorm as a fixed affine map
    (`torchvision.ops.FrozenBatchNorm2d`).

    Args:
        stage_widths: channels of the four stages. The stem has as many as the first stage.
        blocks_per_stage: basic blocks of the four stages.
        stage_strides: strides of the four stages. A last stride of 1 doubles the size of the
            feature maps, so that keypoints of small images are located more precisely.
        pretrained_weights: a member of torchvision's ResNet18_Weights ("IMAGENET1K_V1"), or None.
            It determines the architecture. The weights themselves are loaded like any others, see
            `agents/backbone_weights.py`, so that a saved trunk is rebuilt without them.

    Raises:
        ValueError: unknown weights, or pretrained weights with sizes other than resnet18's.
    """

    def __init__(
        self,
        stage_widths: Sequence[int] = RESNET18_WIDTHS,
        blocks_per_stage: Sequence[int] = RESNET18_BLOCKS,
        stage_strides: Sequence[int] = RESNET18_STRIDES,
        pretrained_weights: str | None = None,
    ) -> None:
        from torchvision.ops import FrozenBatchNorm2d

        super().__init__()
        stages = {
            "stage_widths": tuple(stage_widths),
            "blocks_per_stage": tuple(blocks_per_stage),
            "stage_strides": tuple(stage_strides),
        }
        for option, values in stages.items():
            if len(values) != 4 or min(values) < 1:
                raise ValueError(
                    f"{option}={values}: a ResNet trunk has four stages; provide four numbers >= 1"
                )
        self.out_channels = stage_widths[-1]
        self._norm: Callable[[int], nn.Module] = (
            _group_norm if pretrained_weights is None else FrozenBatchNorm2d
        )
        self.conv1 = nn.Conv2d(3, stage_widths[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = self._norm(stage_widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        widths_in = (stage_widths[0], *stage_widths[:-1])
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            self._stage(*sizes)
            for sizes in zip(widths_in, stage_widths, blocks_per_stage, stage_strides, strict=True)
        )

        if pretrained_weights is None:
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        else:
            _check_is_resnet18(stages, pretrained_weights)
            find_weights(pretrained_weights)

    def _stage(self, width_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        from torchvision.models.resnet import BasicBlock, conv1x1

        downsample = None
        if stride != 1 or width_in != width:
            downsample = nn.Sequential(conv1x1(width_in, width, stride), self._norm(width))
        first = BasicBlock(width_in, width, stride, downsample, norm_layer=self._norm)
        rest = [BasicBlock(width, width, norm_layer=self._norm) for _ in range(blocks - 1)]
        return nn.Sequential(first, *rest)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to features (N, out_channels, ceil(H / 32), ceil(W / 32)).

        32 is the stride of the stem, 4, times the product of the default strides.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class SpatialSoftmax(nn.Module):
    """Layer that computes the mean image position of each keypoint (arXiv 1504.00702, 1509.06113).

    A 1x1 convolution makes one map per keypoint, and a softmax turns it into a distribution over
    pixels. The output is the mean x and y of each distribution, from -1 to 1 between the outermost
    pixels.
    """

    def __init__(self, in_channels: int, num_keypoints: int = 32) -> None:
        super().__init__()
        self.keypoint_conv = nn.Conv2d(in_channels, num_keypoints, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, in_channels, H, W) to (N, 2 * num_keypoints): x0, y0, x1, y1, ..."""
        maps = self.keypoint_conv(features)
        height, width = maps.shape[-2:]
        probability = maps.flatten(-2).softmax(dim=-1).unflatten(-1, (height, width))
        x = torch.linspace(-1, 1, width, dtype=maps.dtype, device=maps.device)
        y = torch.linspace(-1, 1, height, dtype=maps.dtype, device=maps.device)
        mean_x = probability.sum(dim=-2) @ x
        mean_y = probability.sum(dim=-1) @ y
        return torch.stack((mean_x, mean_y), dim=-1).flatten(-2)


class CameraEncoder(nn.Module):
    """Encoder of one camera: ResNet trunk, spatial softmax, Linear and ReLU."""

    def __init__(self, trunk: ResNetTrunk, num_keypoints: int = 32) -> None:
        super().__init__()
        self.out_dim = 2 * num_keypoints
        self.trunk = trunk
        self.spatial_softmax = SpatialSoftmax(trunk.out_channels, num_keypoints)
        self.project = nn.Sequential(nn.Linear(self.out_dim, self.out_dim), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to features (N, 2 * num_keypoints)."""
        return self.project(self.spatial_softmax(self.trunk(images)))


class MultiViewResNetEncoder(nn.Module):
    """Encodes the cameras of an observation, with separate or shared weights.

    Args:
        camera_names: the cameras, in the order of the output.
        vision_backbone_mode: one of `VISION_BACKBONE_MODES`.
        use_separate_rgb_encoder_per_camera: use one encoder per camera; False shares one encoder.
        pretrained_backbone_weights: see `ResNetTrunk`.
        freeze_backbone: do not train the trunks; keypoints and projections still train.
        freeze_encoders: do not train the encoders at all.
        num_keypoints: number of keypoints of the spatial softmax. A camera has 2 * num_keypoints
            features.
        stage_widths, blocks_per_stage, stage_strides: see `ResNetTrunk`.
        crop_size: side in pixels of a square crop; None encodes the whole image. The crop is at a
            random offset in training and central otherwise.

    Raises:
        ValueError: an unknown mode, no camera, a duplicate camera, or as in `ResNetTrunk`.
    """

    def __init__(
        self,
        camera_names: Sequence[str],
        vision_backbone_mode: str = "resnet",
        use_separate_rgb_encoder_per_camera: bool = True,
        pretrained_backbone_weights: str | None = None,
        freeze_backbone: bool = False,
        freeze_encoders: bool = False,
        num_keypoints: int = 32,
        stage_widths: Sequence[int] = RESNET18_WIDTHS,
        blocks_per_stage: Sequence[int] = RESNET18_BLOCKS,
        stage_strides: Sequence[int] = RESNET18_STRIDES,
        crop_size: int | None = None,
    ) -> None:
        super().__init__()
        if vision_backbone_mode not in VISION_BACKBONE_MODES:
            raise ValueError(
                f"vision_backbone_mode={vision_backbone_mode!r} is unknown; "
                f"choose one of {', '.join(VISION_BACKBONE_MODES)}"
            )
        if not camera_names or len(set(camera_names)) != len(camera_names):
            raise ValueError(
                f"camera_names={list(camera_names)}: provide at least one camera, and each once"
            )
        self.camera_names = tuple(camera_names)
        self.crop_size = crop_size
        self.out_dim = 2 * num_keypoints
        self._shared = not use_separate_rgb_encoder_per_camera

        def build_encoder() -> CameraEncoder:
            trunk = ResNetTrunk(
                stage_widths, blocks_per_stage, stage_strides, pretrained_backbone_weights
            )
            trunk.requires_grad_(not freeze_backbone)
            encoder = CameraEncoder(trunk, num_keypoints)
            return encoder.requires_grad_(False) if freeze_encoders else encoder

        names = ("shared",) if self._shared else map(_module_name, self.camera_names)
        self.encoders = nn.ModuleDict({name: build_encoder() for name in names})

    def forward(self, images: Mapping[str, Tensor]) -> Tensor:
        """Encode images that are already normalized (mean and deviation per colour channel).

        Args:
            images: one (N, 3, H, W) float tensor per camera. Sizes may differ between cameras, and
                cameras that are not in `camera_names` are ignored.

        Returns:
            (N, K, 2 * num_keypoints), K cameras in the order of `camera_names`.

        Raises:
            ValueError: a camera is missing.
        """
        features = [
            self.encoders["shared" if self._shared else _module_name(name)](image)
            for name, image in self.select(images).items()
        ]
        return torch.stack(features, dim=1)

    def encode_windows(
        self,
        images: Mapping[str, Tensor],
        normalize: Callable[[Tensor], Tensor],
        offsets: Tensor | None = None,
        bf16: bool = False,
    ) -> Tensor:
        """Crop, normalize and encode windows of images.

        Args:
            images: {camera: (B, T, H, W, 3) uint8}.
            normalize: maps (N, H, W, 3) uint8 to (N, 3, H, W) float.
            offsets: (B, K, 2) in [0, 1), see `crop`; None takes central crops.
            bf16: encode in bfloat16.

        Returns:
            (B, T, K, 2 * num_keypoints), K cameras in the order of `camera_names`.

        Raises:
            ValueError: a camera is missing, or as `crop`.
        """
        crops = {
            name: self.crop(image, None if offsets is None else offsets[:, camera])
            for camera, (name, image) in enumerate(self.select(images).items())
        }
        window = crops[self.camera_names[0]].shape[:2]
        flat = {name: normalize(image.flatten(0, 1)) for name, image in crops.items()}
        device = next(iter(flat.values())).device.type
        with torch.autocast(device, torch.bfloat16) if bf16 else nullcontext():
            return self(flat).unflatten(0, window)

    def crop(self, images: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Crop images to squares of `crop_size`; return them unchanged if it is None.

        Args:
            images: (B, T, H, W, C). The T images of a row get the same crop.
            offsets: (B, 2) in [0, 1): vertical and horizontal position of the crop, from the top
                left (0) to the bottom right (1); None takes the central crop.

        Raises:
            ValueError: the images are smaller than the crop.
        """
        if self.crop_size is None:
            return images
        size, (height, width) = self.crop_size, images.shape[2:4]
        if min(height, width) < size:
            raise ValueError(
                f"crop_size={size} is larger than the images of {height} x {width} pixels; lower "
                "crop_size or use larger images"
            )
        if offsets is None:
            top, left = (height - size) // 2, (width - size) // 2
            return images[:, :, top : top + size, left : left + size]
        max_offset = torch.tensor([height - size + 1, width - size + 1], device=offsets.device)
        top_left = (offsets * max_offset).long().tolist()
        crops = [  # slicing row by row is three times as fast as indexing
            image[:, top : top + size, left : left + size]
            for image, (top, left) in zip(images, top_left, strict=True)
        ]
        return torch.stack(crops)

    def select(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the images of `camera_names`, in that order.

        Raises:
            ValueError: a camera is missing.
        """
        missing = [name for name in self.camera_names if name not in images]
        if missing:
            raise ValueError(
                f"images of camera {', '.join(missing)} are missing (given: "
                f"{', '.join(images) or 'none'}); provide them or remove them from camera_names"
            )
        return {name: images[name] for name in self.camera_names}


def _module_name(camera: str) -> str:
    """Return the name of a camera's encoder in the state dict: the camera's, if PyTorch allows it.

    PyTorch refuses dots and the names of `ModuleDict`'s own attributes.
    """
    name = camera.replace(".", "%2E")
    return f"{name}%" if hasattr(nn.ModuleDict, name) else name


def _check_is_resnet18(stages: Mapping[str, tuple[int, ...]], weights: str) -> None:
    resnet18 = {
        "stage_widths": RESNET18_WIDTHS,
        "blocks_per_stage": RESNET18_BLOCKS,
        "stage_strides": RESNET18_STRIDES,
    }
    for option, values in stages.items():
        if values != resnet18[option]:
            raise ValueError(
                f"pretrained_backbone_weights={weights!r} require {option}={resnet18[option]}, got "
                f"{values}; use those values or pretrained_backbone_weights=null"
            )


def find_weights(name: str) -> ResNet18_Weights:
    """Return the entry of torchvision's list of weights for ResNet-18.

    Raises:
        ValueError: the name is unknown.
    """
    from torchvision.models import ResNet18_Weights

    if name not in ResNet18_Weights.__members__:
        raise ValueError(
            f"pretrained_backbone_weights={name!r} is unknown; "
            f"choose null or one of {', '.join(ResNet18_Weights.__members__)}"
        )
    return ResNet18_Weights[name]

"""Image encoders: shapes, weights per camera, spatial softmax and crops."""

import pytest
import torch
from torchvision.models import resnet18

from imf_ray.models.vision import MultiViewResNetEncoder, ResNetTrunk, SpatialSoftmax, _group_norm

NARROW = {"stage_widths": (16, 32, 64, 128), "blocks_per_stage": (1, 1, 1, 1)}
CAMERAS = ("r_vis", "top", "front")


@pytest.mark.parametrize("size", [96, 256])
def test_output_is_one_feature_vector_per_camera_in_order(size: int) -> None:
    encoder = MultiViewResNetEncoder(CAMERAS, **NARROW)
    images = {name: torch.randn(2, 3, size, size) for name in reversed(CAMERAS)}
    features = encoder(images)
    assert features.shape == (2, 3, 64)
    torch.testing.assert_close(features[:, 1], encoder.encoders["top"](images["top"]))


@pytest.mark.parametrize("name", ["cam.0", "keys", "forward", "kamera_rück", "相机", "a b", "a/b"])
def test_a_camera_may_have_any_name(name: str) -> None:
    encoder = MultiViewResNetEncoder([name, "top"], **NARROW)
    assert len(encoder.encoders) == 2
    features = encoder({"top": torch.zeros(1, 3, 32, 32), name: torch.ones(1, 3, 32, 32)})
    assert features.shape == (1, 2, 64)
    MultiViewResNetEncoder([name, "top"], **NARROW).load_state_dict(encoder.state_dict())


def test_separate_weights_are_three_times_the_shared_ones() -> None:
    def count(separate: bool) -> int:
        encoder = MultiViewResNetEncoder(
            CAMERAS, use_separate_rgb_encoder_per_camera=separate, **NARROW
        )
        return sum(p.numel() for p in encoder.parameters())

    assert count(True) == 3 * count(False)


def test_a_shared_encoder_gives_all_cameras_the_same_features() -> None:
    encoder = MultiViewResNetEncoder(CAMERAS, use_separate_rgb_encoder_per_camera=False, **NARROW)
    image = torch.randn(2, 3, 96, 96)
    features = encoder(dict.fromkeys(CAMERAS, image))
    torch.testing.assert_close(features[:, 0], features[:, 2])


def test_frozen_trunk_gets_no_gradient_and_the_rest_does() -> None:
    encoder = MultiViewResNetEncoder(["top"], freeze_backbone=True, **NARROW)
    encoder({"top": torch.randn(2, 3, 96, 96)}).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is None) == (".trunk." in name)


def test_default_trunk_is_torchvisions_resnet18() -> None:
    reference = resnet18(norm_layer=_group_norm)
    trunk = ResNetTrunk()
    state = {k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    trunk.load_state_dict(state)
    image = torch.randn(1, 3, 96, 96)
    pooled = trunk(image).mean(dim=(-2, -1))
    torch.testing.assert_close(reference.fc(pooled), reference(image))


def test_pretrained_trunk_has_fixed_statistics() -> None:
    state = resnet18().state_dict()
    trunk = ResNetTrunk(pretrained_weights="IMAGENET1K_V1").train()
    trunk.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    before = trunk.bn1.running_mean.clone()
    trunk(torch.randn(2, 3, 64, 64))
    assert torch.equal(trunk.bn1.running_mean, before)


def test_spatial_softmax_finds_the_pixel_of_a_one_hot_map() -> None:
    layer = SpatialSoftmax(in_channels=1, num_keypoints=1)
    torch.nn.init.constant_(layer.keypoint_conv.weight, 100.0)
    features = torch.zeros(3, 1, 5, 9)
    for i, (row, column) in enumerate([(0, 0), (2, 4), (4, 6)]):
        features[i, 0, row, column] = 1
    expected = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [0.5, 1.0]])
    torch.testing.assert_close(layer(features), expected)


def test_crops_are_squares_at_their_offsets() -> None:
    encoder = MultiViewResNetEncoder(["top"], **NARROW, crop_size=5)
    images = torch.arange(3 * 2 * 8 * 9 * 3).reshape(3, 2, 8, 9, 3)
    offsets = torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.999, 0.999]])
    top_left = [(0, 0), (2, 2), (3, 4)]
    for row, (top, left) in enumerate(top_left):
        expected = images[row, :, top : top + 5, left : left + 5]
        assert torch.equal(encoder.crop(images, offsets)[row], expected)
    assert torch.equal(encoder.crop(images), images[:, :, 1:6, 2:7])
    with pytest.raises(ValueError, match="crop_size=5 is larger than"):
        encoder.crop(images[:, :, :4])


def test_strides_determine_the_size_of_the_feature_maps() -> None:
    trunk = ResNetTrunk(**NARROW, stage_strides=(1, 2, 2, 1))
    assert trunk(torch.randn(1, 3, 96, 96)).shape == (1, 128, 6, 6)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match="choose one of resnet"):
        MultiViewResNetEncoder(CAMERAS, vision_backbone_mode="vit")
    with pytest.raises(ValueError, match="each once"):
        MultiViewResNetEncoder(["top", "top"])
    with pytest.raises(ValueError, match="four numbers"):
        ResNetTrunk(stage_widths=(16, 32))
    with pytest.raises(ValueError, match="IMAGENET1K_V1"):
        ResNetTrunk(pretrained_weights="imagenet")
    with pytest.raises(ValueError, match=r"stage_widths=\(64, 128, 256, 512\)"):
        ResNetTrunk(stage_widths=(16, 32, 64, 128), pretrained_weights="IMAGENET1K_V1")
    encoder = MultiViewResNetEncoder(["top", "front"], **NARROW)
    with pytest.raises(ValueError, match="camera front are missing"):
        encoder({"top": torch.randn(1, 3, 96, 96)})

"""Storage of images: encodings, containers, array layouts and channel orders, read or named."""

import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from imf_ray.data.channel_order import (
    AUTO,
    BGR,
    ORDER_ATTRIBUTE,
    RAW,
    RGB,
    StoredImages,
    check_channel_order,
)
from imf_ray.data.hdf5.frames import check_frames, open_frames
from imf_ray.data.hdf5.layouts import recorded_order
from imf_ray.data.image_decoding import decode_image
from imf_ray.errors import UserError
from tests.helpers.episode_files import HEIGHT, LENGTH, WIDTH, smooth_images

STEPS = slice(2, 5)
IMAGES = smooth_images()
GREY = IMAGES[..., :1].repeat(3, axis=-1)
PADDING = np.random.default_rng(0)


@pytest.fixture
def file() -> Iterator[h5py.File]:
    with h5py.File("frames", "w", driver="core", backing_store=False) as file:
        yield file


def encode(
    image: np.ndarray | Image.Image, format: str, mode: str = "RGB", **options: Any
) -> bytes:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    content = io.BytesIO()
    picture.convert(mode).save(content, format, **options)
    return content.getvalue()


def with_preview(image: np.ndarray) -> bytes:
    """A JPEG with a smaller JPEG in a segment before its data."""
    preview, content = encode(image[:8], "JPEG"), encode(image, "JPEG", quality=95, subsampling=0)
    segment = b"\xff\xe5" + (len(preview) + 2).to_bytes(2) + preview
    return content[:2] + segment + content[2:]


ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "JPEG": lambda image: encode(image, "JPEG", quality=95, subsampling=0),
    "JPEG progressive": lambda image: encode(
        image, "JPEG", quality=95, subsampling=0, progressive=True
    ),
    "JPEG restart markers": lambda image: encode(
        image, "JPEG", quality=95, subsampling=0, restart_marker_blocks=1
    ),
    "JPEG with a preview": with_preview,
    "PNG": lambda image: encode(image, "PNG"),
    "PNG opaque alpha": lambda image: encode(image, "PNG", "RGBA"),
    "PNG palette": lambda image: encode(Image.fromarray(image).quantize(256), "PNG", "P"),
}


def padded(contents: Sequence[bytes], fill: Callable[[int], bytes]) -> np.ndarray:
    length = max(map(len, contents)) + 5
    rows = [content + fill(length - len(content)) for content in contents]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), length)


def variable_length(
    file: h5py.File, contents: Sequence[bytes], dtype: Any = np.uint8, row: tuple[int, ...] = ()
) -> h5py.Dataset:
    dataset = file.create_dataset("top", (len(contents), *row), h5py.vlen_dtype(dtype))
    for step, content in enumerate(contents):
        dataset[(step, *(0 for _ in row))] = np.frombuffer(content, dtype)
    return dataset


def store(file: h5py.File, values: np.ndarray) -> h5py.Dataset:
    return file.create_dataset("top", data=values)


CONTAINERS: dict[str, Callable[[h5py.File, Sequence[bytes]], h5py.Dataset]] = {
    "rows padded with zeros": lambda f, c: store(f, padded(c, lambda n: b"\0" * n)),
    "rows padded with ones": lambda f, c: store(f, padded(c, lambda n: b"\xff" * n)),
    "rows padded with noise": lambda f, c: store(f, padded(c, PADDING.bytes)),
    "signed rows": lambda f, c: store(f, padded(c, lambda n: b"\0" * n).view(np.int8)),
    "rows with a last axis": lambda f, c: store(f, padded(c, lambda n: b"\0" * n)[..., None]),
    "byte strings": lambda f, c: store(f, np.array(c, f"S{max(map(len, c))}")),
    "byte strings in a column": lambda f, c: store(f, np.array(c, f"S{max(map(len, c))}")[:, None]),
    "opaque": lambda f, c: store(
        f, padded(c, lambda n: b"\0" * n).view(f"V{max(map(len, c)) + 5}")
    ),
    "variable length": variable_length,
    "variable length, signed": lambda f, c: variable_length(f, c, np.int8),
    "variable length in a column": lambda f, c: variable_length(f, c, row=(1,)),
}
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "channels last": lambda images: images,
    "channels first": lambda images: np.moveaxis(images, -1, 1),
    "opaque alpha": lambda images: np.insert(images, 3, 255, axis=-1),
    "opaque alpha, channels first": lambda images: np.insert(
        np.moveaxis(images, -1, 1), 3, 255, axis=1
    ),
}


def in_order(images: np.ndarray, order: str) -> np.ndarray:
    return images if order == RGB else images[..., ::-1]


@pytest.mark.parametrize("order", [RGB, BGR])
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("encoding", ENCODERS)
def test_the_color_read_is_the_color_written(
    file: h5py.File, encoding: str, container: str, order: str
) -> None:
    contents = [ENCODERS[encoding](image) for image in in_order(IMAGES, order)]
    dataset = CONTAINERS[container](file, contents)
    frames = open_frames(dataset, order)
    assert frames.shape == (LENGTH, HEIGHT, WIDTH, 3)
    tolerance = {"PNG": 0, "PNG opaque alpha": 0}.get(encoding, 16)
    np.testing.assert_allclose(frames[STEPS].astype(int), IMAGES[STEPS], atol=tolerance)
    expected = StoredImages(HEIGHT, WIDTH, encoding.split()[0], True, None)
    assert check_frames(frames, "top", LENGTH) == expected
    # Without the option, they are taken for what act-plus-plus stores.
    np.testing.assert_array_equal(open_frames(dataset)[STEPS], open_frames(dataset, BGR)[STEPS])


@pytest.mark.parametrize("order", [RGB, BGR])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_are_read_in_any_layout(file: h5py.File, layout: str, order: str) -> None:
    dataset = store(file, LAYOUTS[layout](in_order(IMAGES, order)))
    frames = open_frames(dataset, order)
    assert frames.shape == IMAGES.shape
    np.testing.assert_array_equal(frames[STEPS], IMAGES[STEPS])
    assert frames[STEPS].flags.c_contiguous
    assert check_frames(frames, "top", LENGTH) == StoredImages(HEIGHT, WIDTH, RAW, True, None)
    np.testing.assert_array_equal(open_frames(dataset)[STEPS], open_frames(dataset, RGB)[STEPS])


def test_raw_rgb_images_are_not_copied(file: h5py.File, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, arrays = store(file, IMAGES), []
    read = h5py.Dataset.__getitem__
    monkeypatch.setattr(
        h5py.Dataset, "__getitem__", lambda *args: arrays.append(read(*args)) or arrays[-1]
    )
    assert open_frames(dataset)[STEPS] is arrays[0] and len(arrays) == 1


@pytest.mark.parametrize("order", [AUTO, RGB, BGR])
@pytest.mark.parametrize(
    "values",
    [
        GREY[..., 0],
        GREY[..., :1],
        np.moveaxis(GREY[..., :1], -1, 1),
        np.array([encode(image, "PNG", "L") for image in GREY]),
        np.array([encode(image, "PNG", "LA") for image in GREY]),
    ],
)
def test_grey_images_get_three_channels_in_any_order(
    file: h5py.File, values: np.ndarray, order: str
) -> None:
    frames = open_frames(store(file, values), order)
    np.testing.assert_array_equal(frames[STEPS], GREY[STEPS])
    stored = check_frames(frames, "top", LENGTH)
    assert not stored.has_color and not stored.is_assumed(AUTO) and "grey" in stored.describe(AUTO)


def test_the_images_of_a_camera_may_have_different_encodings(file: h5py.File) -> None:
    encoders = [*ENCODERS.values()]
    contents = [encoders[step % len(encoders)](image) for step, image in enumerate(IMAGES)]
    frames = open_frames(CONTAINERS["variable length"](file, contents), RGB)
    np.testing.assert_allclose(frames[0:LENGTH].astype(int), IMAGES, atol=16)
    assert check_frames(frames, "top", LENGTH).encoding == "JPEG, PNG"


def test_images_are_turned_as_their_exif_data_says(file: h5py.File) -> None:
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    contents = [
        encode(i[::-1, ::-1], "JPEG", quality=95, subsampling=0, exif=turned) for i in IMAGES
    ]
    frames = open_frames(CONTAINERS["byte strings"](file, contents), RGB)
    np.testing.assert_allclose(frames[STEPS].astype(int), IMAGES[STEPS], atol=16)


@pytest.mark.parametrize("owner", ["dataset", "file"])
@pytest.mark.parametrize("value", ["rgb", "BGR", b"bgr", np.bytes_(b"RGB"), ["bgr"], [b"RGB"]])
def test_an_attribute_records_the_order(file: h5py.File, owner: str, value: Any) -> None:
    text = value[0] if isinstance(value, list) else value
    order = (text.decode() if isinstance(text, bytes) else text).lower()
    contents = [ENCODERS["PNG"](image) for image in in_order(IMAGES, order)]
    dataset = CONTAINERS["byte strings"](file, contents)
    (dataset if owner == "dataset" else file).attrs[ORDER_ATTRIBUTE] = value
    recorded = recorded_order(file, dataset)
    assert recorded == order
    frames = open_frames(dataset, AUTO, recorded)
    np.testing.assert_array_equal(frames[STEPS], IMAGES[STEPS])
    stored = frames.check()
    assert not stored.is_assumed(AUTO)
    assert [stored.contradicts(option) for option in (AUTO, RGB, BGR)] == [
        False,
        order == BGR,
        order == RGB,
    ]


def test_the_attribute_of_a_camera_precedes_that_of_the_file(file: h5py.File) -> None:
    dataset = store(file, IMAGES)
    file.attrs[ORDER_ATTRIBUTE], dataset.attrs[ORDER_ATTRIBUTE] = RGB, BGR
    assert recorded_order(file, dataset) == BGR


@pytest.mark.parametrize("value", ["rgba", "HWC", "", 3, np.zeros(3)])
def test_the_option_decides_for_an_unknown_recorded_order(file: h5py.File, value: Any) -> None:
    dataset = store(file, IMAGES[..., ::-1])
    dataset.attrs[ORDER_ATTRIBUTE] = value
    recorded = recorded_order(file, dataset)
    stored = open_frames(dataset, AUTO, recorded).check()
    with pytest.raises(UserError, match=r"data\.channel_order=rgb or data\.channel_order=bgr") as e:
        check_channel_order({"episode_0": {"top": stored}}, AUTO, "demos")
    assert repr(str(value)) in str(e.value)
    check_channel_order({"episode_0": {"top": stored}}, BGR, "demos")
    frames = open_frames(dataset, BGR, recorded)
    np.testing.assert_array_equal(frames[STEPS], IMAGES[STEPS])


COLOR, RECORDED = StoredImages(8, 8, "JPEG", True, None), StoredImages(8, 8, RAW, True, RGB)


def test_an_assumed_order_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    episodes = {f"episode_{n}": {"top": COLOR, "side": RECORDED} for n in range(3)}
    check_channel_order(episodes, AUTO, "demos")
    (record,) = caplog.records
    for part in ("demos", "top (JPEG)", "data.channel_order=rgb", "data.channel_order=bgr"):
        assert part in record.getMessage()
    assert "side" not in record.getMessage()


@pytest.mark.parametrize(
    ("images", "option"),
    [
        (COLOR, RGB),
        (COLOR, BGR),
        (StoredImages(8, 8, "PNG", True, BGR), AUTO),
        (StoredImages(8, 8, "JPEG", False, None), AUTO),
        (StoredImages(8, 8, RAW, True, None), AUTO),
    ],
)
def test_a_known_order_is_not_warned_of(
    caplog: pytest.LogCaptureFixture, images: StoredImages, option: str
) -> None:
    check_channel_order({"episode_0": {"top": images}}, option, "demos")
    assert not caplog.records


def test_an_option_that_contradicts_the_file_is_refused() -> None:
    with pytest.raises(UserError, match=r"channel_order=bgr.*episode_0.*side.*channel_order=auto"):
        check_channel_order({"episode_0": {"top": COLOR, "side": RECORDED}}, BGR, "demos")
    check_channel_order({"episode_0": {"top": COLOR, "side": RECORDED}}, RGB, "demos")


def strings(contents: Sequence[bytes]) -> np.ndarray:
    return np.array(contents, f"S{max(map(len, contents))}")


DEPTH = np.arange(IMAGES[..., 0].size, dtype=np.uint16).reshape(IMAGES.shape[:3])
REFUSED: dict[str, tuple[np.ndarray, str]] = {
    "WebP": (strings([encode(i, "WEBP") for i in IMAGES]), "WebP"),
    "GIF": (strings([encode(i, "GIF", "P") for i in IMAGES]), "GIF"),
    "BMP": (strings([encode(i, "BMP") for i in IMAGES]), "BMP"),
    "TIFF": (strings([encode(i, "TIFF") for i in IMAGES]), "TIFF"),
    "16-bit PNG": (strings([encode(Image.fromarray(i), "PNG", "I;16") for i in DEPTH]), "16 bits"),
    "transparent PNG": (
        strings([encode(np.insert(i, 3, 200, axis=-1), "PNG", "RGBA") for i in IMAGES]),
        "transparent",
    ),
    "CMYK": (strings([encode(i, "JPEG", "CMYK") for i in IMAGES]), "CMYK"),
    "base64": (np.array([b"iVBORw0KGgoAAAANSUhEUgAA"] * LENGTH), "base64"),
    "sensor": (np.arange(64 * LENGTH, dtype=np.uint8).reshape(LENGTH, 64), "64 bytes"),
    "zeros": (np.zeros((LENGTH, 64), np.uint8), "zeros"),
    "depth": (DEPTH, "uint16.*depth"),
    "depth, channel": (DEPTH[..., None], "uint16.*depth"),
    "floats": (IMAGES / np.float32(255), "float32.*from 0.*uint8"),
    "integers": (IMAGES.astype(np.int64), "int64"),
    "two channels": (IMAGES[..., :2], r"\(12, 24, 32, 2\)"),
    "flow": (np.zeros((LENGTH, 8, 8, 2), np.float32), "float32"),
    "RGB-D": (np.insert(IMAGES, 3, IMAGES[..., 0], axis=-1), "four channels.*step 0"),
    "numbers": (np.arange(LENGTH, dtype=np.uint8), "uint8"),
    "vectors": (np.zeros((LENGTH, 6), np.float32), "float32"),
    "booleans": (IMAGES > 100, "bool"),
    "stack": (IMAGES[:, None], r"\(12, 1, 24, 32, 3\)"),
    "records": (np.zeros((LENGTH, 4, 4), [("r", "u1"), ("g", "u1"), ("b", "u1")]), "'r'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_named(file: h5py.File, name: str) -> None:
    values, reason = REFUSED[name]
    with pytest.raises(UserError, match=f"camera top.*{reason}"):
        check_frames(open_frames(store(file, values)), "top", LENGTH)


@pytest.mark.parametrize(
    "dtype", [h5py.vlen_dtype(np.float32), h5py.string_dtype(), h5py.ref_dtype]
)
def test_other_values_of_variable_length_are_named(file: h5py.File, dtype: Any) -> None:
    dataset = file.create_dataset("top", (LENGTH,), dtype)
    with pytest.raises(UserError, match="camera top"):
        check_frames(open_frames(dataset), "top", LENGTH)


def _cut(content: bytes) -> bytes:
    return content[:-30]


def _cut_and_padded(content: bytes) -> bytes:
    return content[:-30] + b"\xff" * 30


def _flip(content: bytes) -> bytes:
    position = len(content) // 2
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def _huge(content: bytes) -> bytes:
    """Declare 60000 x 60000 pixels in a PNG's header."""
    header = b"IHDR" + (60000).to_bytes(4) * 2 + content[24:29]
    return content[:12] + header + zlib.crc32(header).to_bytes(4) + content[33:]


@pytest.mark.parametrize(
    ("encoding", "damage"),
    [
        ("JPEG", _cut),
        ("JPEG", _cut_and_padded),
        ("JPEG progressive", _cut),
        ("JPEG with a preview", _cut),
        ("PNG", _cut),
        ("PNG", _cut_and_padded),
        ("PNG", _flip),
        ("PNG", _huge),
        ("PNG", lambda content: b""),
        ("PNG", lambda content: content[:60]),
        ("JPEG", lambda content: content[:40]),
        ("JPEG", lambda content: b"\x01" * 300),
    ],
)
def test_a_damaged_image_is_named_by_its_step(
    file: h5py.File, encoding: str, damage: Callable[[bytes], bytes]
) -> None:
    contents = [ENCODERS[encoding](image) for image in IMAGES]
    contents[7] = damage(contents[7])
    frames = open_frames(CONTAINERS["variable length"](file, contents))
    for read in (frames.check, lambda: frames[5:9]):
        with pytest.raises(UserError, match="camera top at step 7"):
            read()
    assert frames[0:7].shape == (7, HEIGHT, WIDTH, 3)


def test_no_part_of_an_image_is_made_up() -> None:
    """An image that is cut off anywhere is whole or refused; bytes after its end are ignored."""
    for encode_image in ENCODERS.values():
        content = encode_image(IMAGES[1][:8, :8])
        whole = decode_image(content).pixels
        np.testing.assert_array_equal(decode_image(content + content).pixels, whole)
        num_refused = 0
        for length in range(len(content)):
            for padding in (b"", b"\xff" * 40):
                try:
                    pixels = decode_image(content[:length] + padding).pixels
                    np.testing.assert_array_equal(pixels, whole)
                except UserError:
                    num_refused += not padding
        assert num_refused >= len(content) - 12  # a PNG may lack its end mark


def test_other_numbers_and_sizes_of_images_are_refused(file: h5py.File) -> None:
    with pytest.raises(UserError, match=f"camera top.*{LENGTH}.*{LENGTH + 1}"):
        check_frames(open_frames(store(file, IMAGES)), "top", LENGTH + 1)
    contents = [ENCODERS["PNG"](image) for image in IMAGES]
    contents[5] = ENCODERS["PNG"](IMAGES[5][:16])
    del file["top"]
    with pytest.raises(UserError, match="size of camera top changes at step 5"):
        check_frames(open_frames(CONTAINERS["byte strings"](file, contents)), "top", LENGTH)

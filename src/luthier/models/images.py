"""Images as model inputs: resized as the model's own settings say, normalised when a batch is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from luthier.errors import DataError, FileFormatError, ModelError
from luthier.models.batches import stack
from luthier.models.preprocess import Settings, parse_settings

MAX_SIDE = 8192  # pixels
LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in PIL's convert("L")


class ImageSettings(Settings):
    """How images are fed: resize (or resize the shorter side, then crop the middle), scale, normalise."""

    kind: Literal["image"] = "image"
    height: int = Field(ge=1, le=MAX_SIDE)
    width: int = Field(ge=1, le=MAX_SIDE)
    shorter_side: int | None = Field(default=None, ge=1, le=MAX_SIDE)
    """Resize this side to so many pixels, keeping proportions, then crop the middle; None: resize to height
    x width."""
    resize: tuple[int, int] | None = None
    """(height, width) before the crop, where it isn't the final one."""
    resample: int = Field(default=2, ge=0, le=5)
    """PIL's number: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming."""
    scale: float = Field(default=1 / 255, gt=0, le=1)
    channels: int = Field(default=3, ge=1, le=4)
    mean: tuple[float, ...] = Field(max_length=4)
    std: tuple[float, ...] = Field(max_length=4)

    def processor(self) -> dict[str, Any]:
        """The same as Transformers writes it: preprocessor_config.json."""
        final = {"height": self.height, "width": self.width}
        size = dict(zip(("height", "width"), self.resize)) if self.resize else final
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": self.shorter_side} if self.shorter_side else size,
            "resample": self.resample,
            "do_center_crop": bool(self.shorter_side or self.resize),
            "crop_size": final,
            "do_rescale": True,
            "rescale_factor": self.scale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


class ImagePreprocess:
    """Images become {"pixel_values": float32 (rows, channels, height, width)}.

    Encoded rows keep resized uint8 pixels, a quarter of the memory; scaling and normalising happen in
    `collate`.
    The arithmetic is PIL's and numpy's, so that no image library of a particular device is needed.
    """

    kind: ClassVar[str] = "image"

    def __init__(self, settings: ImageSettings, notes: tuple[str, ...] = ()) -> None:
        if (
            len(settings.mean) != settings.channels
            or len(settings.std) != settings.channels
            or min(settings.std) <= 0
        ):
            raise FileFormatError(
                "The card's image mean and std are not one (positive std) per channel. Save the adaptation "
                "anew."
            )
        if settings.resize is not None and not all(1 <= n <= MAX_SIDE for n in settings.resize):
            raise FileFormatError(f"The card resizes images to {settings.resize}. Save the adaptation anew.")
        self.settings = settings
        self.notes = notes
        # one multiplication and one subtraction per pixel: (v * scale - mean) / std
        std = np.asarray(settings.std, np.float64)
        self._factor = (settings.scale / std).astype(np.float32)
        self._shift = (np.asarray(settings.mean, np.float64) / std).astype(np.float32)

    @classmethod
    def for_model(cls, base: Any, processor: Mapping[str, Any] | None) -> ImagePreprocess:
        """From a model's image size and its preprocessor_config.json (parsed), where it has one."""
        config = getattr(base.config, "vision_config", base.config)
        channels = _whole(getattr(config, "num_channels", 3), "num_channels", 1, 4)
        size = _pair(getattr(config, "image_size", None) or 224, "image_size")
        if processor is None:
            note = f"it has no preprocessor_config.json: images become {size[0]} x {size[1]}, scaled to -1…1"
            half = (0.5,) * channels
            return cls(
                ImageSettings(height=size[0], width=size[1], channels=channels, mean=half, std=half), (note,)
            )
        shorter, resize, final = None, None, size
        if processor.get("do_resize", True):
            asked = processor.get("size", size)
            if isinstance(asked, Mapping) and "shortest_edge" in asked:
                shorter = _whole(asked["shortest_edge"], "size", 1, MAX_SIDE)
                final = (shorter, shorter)
            else:
                final = resize = _pair(asked, "size")
        if processor.get("do_center_crop", False):
            final = _pair(processor.get("crop_size", size), "crop_size")
        normalised = processor.get("do_normalize", True)
        scaled = processor.get("do_rescale", True)
        return cls(
            ImageSettings(
                height=final[0],
                width=final[1],
                shorter_side=shorter,
                resize=resize if resize != final else None,
                resample=_whole(processor.get("resample", 2), "resample", 0, 5),
                scale=_number(processor.get("rescale_factor", 1 / 255), "rescale_factor") if scaled else 1.0,
                channels=channels,
                mean=_per_channel(processor.get("image_mean", 0.5), channels, "image_mean")
                if normalised
                else (0.0,) * channels,
                std=_per_channel(processor.get("image_std", 0.5), channels, "image_std")
                if normalised
                else (1.0,) * channels,
            )
        )

    @classmethod
    def from_settings(cls, settings: Any, model: Any = None) -> ImagePreprocess:
        """From a card. FileFormatError where the model's own image preprocessing takes another size or other
        channels."""
        made = cls(parse_settings(ImageSettings, settings))
        own = getattr(getattr(model, "preprocess", None), "settings", None)
        if isinstance(own, ImageSettings):
            given, taken = ((s.channels, s.height, s.width) for s in (made.settings, own))
            if given != taken:
                raise FileFormatError(
                    f"The card prepares images as {given}, and this model takes {taken}. Load the model "
                    f"that it was made for."
                )
        return made

    def encode(self, inputs: Any) -> list[dict[str, Any]]:
        """[{"pixels": uint8 (height, width, channels)}] of uint8 images (H, W) or (H, W, C), or of PIL
        images."""
        return [{"pixels": self._fit(i, image)} for i, image in enumerate(inputs)]

    def _fit(self, row: int, image: Any) -> np.ndarray:
        from PIL import Image

        s = self.settings
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
            raise DataError(
                f"Image {row} is {pixels.dtype} of shape {pixels.shape}; give uint8 of shape (height, "
                f"width, channels)."
            )
        pixels = _channels(pixels if pixels.ndim == 3 else pixels[:, :, None], s.channels, row)
        height, width = pixels.shape[:2]
        target = s.resize or (s.height, s.width)
        if s.shorter_side is not None:
            short, long = min(height, width), max(height, width)
            other = min(MAX_SIDE, max(1, int(s.shorter_side * long / short)))
            target = (s.shorter_side, other) if height <= width else (other, s.shorter_side)
        if target != (height, width):
            # PIL has no image of 2 or 4 arbitrary channels: each is resized on its own
            planes = [Image.fromarray(np.ascontiguousarray(pixels[:, :, c])) for c in range(s.channels)]
            method = Image.Resampling(s.resample)
            pixels = np.stack([np.asarray(p.resize(target[::-1], method)) for p in planes], axis=2)
        return _middle(pixels, s.height, s.width)

    def collate(
        self,
        rows: Sequence[Mapping[str, Any]],
        pad_to: int | None = None,
        *,
        multiple: int | None = None,
        side: str | None = None,
    ) -> dict[str, Tensor]:
        """{"pixel_values": (rows, channels, height, width) float32, …}. The padding arguments change
        nothing."""
        if not rows:
            raise DataError("A batch needs at least one row.")
        batch = {key: stack([row[key] for row in rows]) for key in rows[0] if key != "pixels"}
        pixels = np.stack([row["pixels"] for row in rows]).astype(np.float32)
        normal = pixels * self._factor - self._shift
        return {"pixel_values": torch.from_numpy(np.ascontiguousarray(normal.transpose(0, 3, 1, 2))), **batch}

    def report(self, encoded: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        return {"truncated": 0, "rows": len(encoded), "longest": 0, "max_length": 0}


def _channels(pixels: np.ndarray, wanted: int, row: int) -> np.ndarray:
    have = pixels.shape[2]
    if have == 4 and wanted in (1, 3):  # alpha is dropped
        pixels, have = pixels[:, :, :3], 3
    if have == wanted:
        return pixels
    if have == 1:
        return np.repeat(pixels, wanted, axis=2)
    if have == 3 and wanted == 1:
        return np.rint(pixels.astype(np.float32) @ LUMA).astype(np.uint8)[:, :, None]
    raise DataError(f"Image {row} has {have} channels, and the model takes {wanted}. Convert the images.")


def _middle(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of an image, padded with zeros where the image is smaller."""
    missing = [max(0, height - pixels.shape[0]), max(0, width - pixels.shape[1])]
    if any(missing):
        pixels = np.pad(pixels, [(m // 2, m - m // 2) for m in missing] + [(0, 0)])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def _whole(value: Any, name: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ModelError(
            f"{name}={str(value)[:40]!r} of the model's image settings is not a whole number from {low} to "
            f"{high}."
        )
    return value


def _number(value: Any, name: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not np.isfinite(value):
        raise ModelError(f"{name}={str(value)[:40]!r} of the model's image settings is not a number.")
    return float(value)


def _pair(value: Any, name: str) -> tuple[int, int]:
    if isinstance(value, Mapping):
        value = (value.get("height"), value.get("width"))
    pair = tuple(value) if isinstance(value, Iterable) else (value, value)
    if len(pair) != 2:
        raise ModelError(
            f"{name}={str(value)[:40]!r} of the model's image settings is not a height and a width."
        )
    return _whole(pair[0], name, 1, MAX_SIDE), _whole(pair[1], name, 1, MAX_SIDE)


def _per_channel(value: Any, channels: int, name: str) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value] * channels
    if len(values) == 1:
        values = values * channels
    if len(values) != channels:
        raise ModelError(
            f"{name} of the model's image settings has {len(values)} values for {channels} channels."
        )
    return tuple(_number(v, name) for v in values)

"""Locates the character: GroundingDINO detects it in one picture, SAM 2 tracks it through the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers import GroundingDinoForObjectDetection, Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from rewarders.anime_reward.encoders import image_processor, load, tokenizer
from rewarders.anime_reward.video import Frames, Pixels

# SAM 2 uses ImageNet's statistics; transformers' Sam2ImageProcessor has them, but needs torchvision.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CORNERS = (2, 3)  # SAM 2's labels of a box's first and last corner


class Detector:
    """GroundingDINO with one text query, such as ``character.``."""

    def __init__(self, folder: Path, phrase: str, device: str) -> None:
        self.model = load("detector", folder, GroundingDinoForObjectDetection).to(device)
        self.images = image_processor("detector", folder)
        self.words = tokenizer("detector", folder)(phrase, return_tensors="pt", return_token_type_ids=True).to(device)
        self.device = device

    @torch.no_grad()
    def __call__(self, picture: np.ndarray, threshold: float) -> np.ndarray | None:
        """Returns the most confident box in uint8 ``[H, W, 3]`` as left, top, right, bottom in pixels; None if its
        confidence is not above `threshold`."""
        pixels = self.images(images=Image.fromarray(picture), return_tensors="pt").to(self.device)
        seen = self.model(**pixels, **self.words)
        sure, which = seen.logits[0].sigmoid().amax(1).max(0)
        if not sure > threshold:
            return None
        x, y, wide, high = seen.pred_boxes[0, which].tolist()
        height, width = picture.shape[:2]
        box = np.array([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2])
        return (box.clip(0, 1) * [width, height, width, height]).astype(np.float32)


class Tracker:
    """SAM 2's video model."""

    def __init__(self, folder: Path, device: str) -> None:
        self.model = load("tracker", folder, Sam2VideoModel).to(device)
        size = self.model.config.image_size
        self.pixels = Pixels(size if isinstance(size, int) else size[0], MEAN, STD, Image.Resampling.BILINEAR)
        self.device = device

    @torch.no_grad()
    def __call__(self, frames: np.ndarray, box: np.ndarray) -> np.ndarray:
        """Returns bool masks ``[n, H, W]`` for uint8 `frames` ``[n, H, W, 3]``: the object that is in `box` in the
        first frame."""
        height, width = frames.shape[1:3]
        session = Sam2VideoInferenceSession(self.pixels(frames), height, width, self.device, dtype=torch.float32)
        session.add_point_inputs(session.obj_id_to_idx(1), 0, self._corners(box, height, width))
        session.obj_with_new_inputs = [1]
        found: list[Any] = [self.model(inference_session=session, frame_idx=i) for i in range(len(frames))]
        masks = torch.cat([one.pred_masks.reshape(1, 1, *one.pred_masks.shape[-2:]) for one in found])
        large = functional.interpolate(masks, (height, width), mode="bilinear", align_corners=False)
        return (large[:, 0] > 0).cpu().numpy()

    def _corners(self, box: np.ndarray, height: int, width: int) -> dict[str, torch.Tensor]:
        """Returns a box as SAM 2 expects it: two points in the coordinates of its square input, ``[1, 1, 2, 2]``."""
        points = torch.from_numpy(box).reshape(1, 1, 2, 2) * self.pixels.size / torch.tensor([width, height])
        return {
            "point_coords": points.float(),
            "point_labels": torch.tensor(CORNERS, dtype=torch.int32).reshape(1, 1, 2),
        }


def cut_out(picture: Frames, mask: np.ndarray) -> Any:
    """Returns the masked part, `mask` ``[H, W]``, of one frame (see `Frames`), on black and padded to a centred
    square."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    high, wide = mask[window].shape
    side = max(high, wide)
    top, left = (side - high) // 2, (side - wide) // 2
    bars = (top, side - high - top), (left, side - wide - left)
    if isinstance(picture, np.ndarray):
        return np.pad(picture[window] * mask[window][..., None], (*bars, (0, 0)))
    figure = picture[:, *window] * torch.from_numpy(mask[window]).to(picture.device)
    return functional.pad(figure, (*bars[1], *bars[0]))

"""A stand-in with the structure of the published AnimeReward script: loads models, scores one clip, writes JSON."""

import json
import os

import av
import numpy as np
from PIL import Image

model_file = "./weights/model.pth"
with open(model_file) as opened:  # noqa: PTH123 - as scripts do it
    scale = float(opened.read())
loads = globals().get("loads", 0) + 1
seen = []


def read_frames(wanted):
    container.seek(0)
    return np.stack(
        [frame.to_ndarray(format="rgb24") for i, frame in enumerate(container.decode(video=0)) if i in wanted]
    )


def save_masks(path, folder):
    name = path.split("/")[-1].split(".")[0]
    os.makedirs(f"{folder}/{name}")  # noqa: PTH103 - fails where masks of another clip are left
    return name


video_prompt = "In this video, somebody else's clip"
img_path = "asset/image/none.png"
video_path = "asset/video/none.mp4"
output_path = "result"
os.makedirs(output_path, exist_ok=True)  # noqa: PTH103
container = av.open(video_path)
total_frames = container.streams.video[0].frames
frames = read_frames(range(total_frames))
if frames.max() < 60:
    raise RuntimeError("no character found")
seen.append(save_masks(video_path, "character_save"))
key_image = np.asarray(Image.open(img_path).convert("RGB"))
results_dict = {
    "visual_smooth": scale * loads,
    "visual_motion": len(seen) / 100,
    "visual_quality": float(frames.mean()) / 255,
    "text-video_consist": len(video_prompt) / 100,
    "img-video_consist": float(key_image.mean()) / 255,
    "character_consist": float("nan") if video_prompt == "nobody" else total_frames / 100,
}
with open(f"{output_path}/eval_results.json", "w") as file:  # noqa: PTH123
    json.dump(results_dict, file)

"""The toon world: a renderer of short clips of cartoon sprites, with known ground truth.

A `Shot` says who does what, and where. `render` draws it as uint8 ``[9, 48, 64, 3]``; `caption` describes it in words.
`Defects` are typical faults of generated video, each with a severity in [0, 1]. They start after frame 0, so a clip's
first frame is always the clean image that conditions the model. `truth` converts severities to the six AnimeReward
dimensions (0..100).

The sprites in ``common/toon/sprites`` are Kenney's "Toon Characters" and tiles (CC0, ``sprites/LICENSE.txt``).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

SPRITES = Path(__file__).parent / "sprites"
FRAMES, HEIGHT, WIDTH, FPS = 9, 48, 64, 8
SPRITE_WIDTH, SPRITE_HEIGHT = 36, 48
GRID = 4  # figures start at multiples of this many pixels: fewer images for a small model to learn
GROUND = 44  # row of the ground
BACKGROUND_TOLERANCE = 12  # difference of 255 up to which a pixel counts as background

CHARACTERS = ("female_adventurer", "female_person", "male_adventurer", "male_person", "robot", "zombie")
DIMENSIONS = ("smoothness", "motion", "appeal", "text", "image", "character")
POSES = ("idle", *(f"walk{i}" for i in range(8)), "jump", "fall", "climb0", "climb1")
# New characters, to augment the reward heads' training data: "robot+zombie+robot" wears the zombie's shirt, and the
# look (0, 7, 0) gives that shirt new colours.
PARTS = ((0, 29), (29, 38), (38, SPRITE_HEIGHT))  # rows of head, shirt and legs, the same in all sprites
Look = tuple[int, int, int]
AS_DRAWN: Look = (0, 0, 0)


@dataclass(frozen=True)
class Scene:
    """A background: sky gradient (top, bottom; RGB), ground tile, and one prop with its x position."""

    phrase: str
    top: tuple[int, int, int]
    bottom: tuple[int, int, int]
    ground: str
    prop: str
    prop_x: int


SCENES: dict[str, Scene] = {
    "meadow": Scene("in a meadow", (120, 190, 250), (215, 240, 255), "grassMid", "bush", 4),
    "desert": Scene("in the desert", (250, 205, 120), (255, 240, 200), "sandMid", "cactus", 42),
    "snow": Scene("in the snow", (190, 205, 225), (245, 248, 255), "snowMid", "snow_pile", 38),
    "night": Scene("at night", (15, 20, 60), (60, 70, 130), "stoneMid", "rock", 6),
    "sunset": Scene("at sunset", (110, 60, 140), (255, 160, 90), "dirtMid", "plantPurple", 40),
    "planet": Scene("on a planet", (40, 10, 60), (120, 40, 110), "planetMid", "mushroomRed", 44),
    "cave": Scene("in a cave", (50, 40, 35), (110, 90, 75), "stoneCenter", "torch1", 8),
    "bridge": Scene("on a bridge", (90, 170, 170), (200, 235, 225), "bridgeB", "boxCrate", 2),
}


@dataclass(frozen=True)
class Action:
    """A motion: verb phrase, pixels per frame (x, y), height of the arc, and the poses it cycles through."""

    phrase: str
    dx: float
    dy: float
    arc: float
    poses: tuple[str, ...]

    def path(self) -> np.ndarray:
        """Displacement from the start, pixels, float ``[FRAMES, 2]`` as (x, y); up is negative."""
        u = np.arange(FRAMES) / (FRAMES - 1)
        x = self.dx * np.arange(FRAMES)
        y = self.dy * np.arange(FRAMES) - self.arc * 4 * u * (1 - u)
        return np.stack([x, y], 1)


_WALK = tuple(f"walk{i}" for i in range(8))
_RUN = _WALK[::2]
_JUMP = ("idle", "jump", "jump", "jump", "jump", "fall", "fall", "fall", "idle")
ACTIONS: dict[str, Action] = {
    "walk_right": Action("walks right", 2, 0, 0, _WALK),
    "walk_left": Action("walks left", -2, 0, 0, _WALK),
    "run_right": Action("runs right", 4, 0, 0, _RUN),
    "run_left": Action("runs left", -4, 0, 0, _RUN),
    "jump": Action("jumps", 0, 0, 10, _JUMP),
    "climb": Action("climbs up", 0, -1.25, 0, ("climb0", "climb0", "climb1", "climb1")),
}


@dataclass(frozen=True)
class Shot:
    """A character, a scene and an action. `x` is the sprite's left edge in frame 0 (pixels), `phase` its first pose.

    `character` is one of `CHARACTERS`, or three of them joined by ``+`` for head, shirt and legs. `look` has one number
    for each of these parts: 0 keeps the original colours, any other number is the seed of new colours.
    """

    character: str
    scene: str
    action: str
    x: int
    phase: int = 0
    look: Look = AS_DRAWN


@dataclass(frozen=True)
class Defects:
    """Severities in [0, 1]; 0 means absent."""

    flicker: float = 0.0  # the figure's brightness jumps from frame to frame
    jitter: float = 0.0  # the figure's position shakes
    freeze: float = 0.0  # the motion covers only (1 - freeze) of its path
    warp: float = 0.0  # the figure's rows are shifted by a travelling wave
    wrong: float = 0.0  # fraction of the frames that show another action than the caption's
    drift: float = 0.0  # how far the background fades to another scene
    swap: float = 0.0  # fraction of the frames that show another character


DEFECTS = tuple(f.name for f in fields(Defects))


def truth(defects: Defects) -> dict[str, float]:
    """The ground truth of a rendered clip: the six AnimeReward dimensions, 0 (worst) to 100 (clean)."""
    worst = {
        "smoothness": max(defects.flicker, defects.jitter),
        "motion": defects.freeze,
        "appeal": defects.warp,
        "text": defects.wrong,
        "image": defects.drift,
        "character": defects.swap,
    }
    return {name: 100.0 * (1.0 - severity) for name, severity in worst.items()}


def caption(shot: Shot) -> str:
    """The prompt text, e.g. ``a female person walks right in the snow``."""
    return f"a {shot.character.replace('_', ' ')} {ACTIONS[shot.action].phrase} {SCENES[shot.scene].phrase}"


@lru_cache(maxsize=1024)
def sprite(character: str, pose: str, left: bool = False, look: Look = AS_DRAWN) -> np.ndarray:
    """A sprite, float32 ``[SPRITE_HEIGHT, SPRITE_WIDTH, 4]``: colour 0..255, alpha 0..1. Arguments as in `Shot`."""
    donors = character.split("+")
    rgba = np.empty((SPRITE_HEIGHT, SPRITE_WIDTH, 4), np.float32)
    for (top, bottom), donor, seed in zip(PARTS, donors if len(donors) > 1 else donors * len(PARTS), look, strict=True):
        part = rgba[top:bottom]
        part[:] = _sprite_file(donor, pose)[top:bottom]
        if seed:
            part[..., :3] = (part[..., :3] @ colour_mix(seed).T).clip(0, 255)
    return np.ascontiguousarray(rgba[:, ::-1]) if left else rgba


@cache
def _sprite_file(character: str, pose: str) -> np.ndarray:
    """The unmodified sprite, in the format of `sprite`."""
    head, *tail = character.split("_")
    stem = head + "".join(part.capitalize() for part in tail)
    path = SPRITES / "characters" / character / f"{stem}_{pose}.png"
    image = Image.open(path).convert("RGBA").resize((SPRITE_WIDTH, SPRITE_HEIGHT), Image.Resampling.LANCZOS)
    rgba = np.asarray(image, np.float32).copy()
    rgba[..., 3] /= 255.0
    return rgba


@lru_cache(maxsize=1024)
def colour_mix(seed: int) -> np.ndarray:
    """A random matrix, float32 ``[3, 3]``, that mixes the old red, green and blue into new ones."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(3, 0.3), size=3)  # mostly one channel, sometimes two
    return (shares * rng.uniform(0.4, 1.2, (3, 1))).astype(np.float32)


@cache
def background(scene: str) -> np.ndarray:
    """A scene without a figure, float32 ``[HEIGHT, WIDTH, 3]``, 0..255."""
    spec = SCENES[scene]
    ramp = np.linspace(0, 1, GROUND)[:, None, None]
    sky = np.array(spec.top) * (1 - ramp) + np.array(spec.bottom) * ramp
    canvas = Image.new("RGB", (WIDTH, HEIGHT), spec.bottom)
    canvas.paste(Image.fromarray(np.repeat(sky, WIDTH, 1).round().astype(np.uint8)))
    tile = _tile(spec.ground, 16)
    for x in range(0, WIDTH, 16):
        canvas.paste(tile, (x, GROUND - 2), tile)
    prop = _tile(spec.prop, 18)
    canvas.paste(prop, (spec.prop_x, GROUND - 18), prop)
    return np.asarray(canvas, np.float32)


def figure_mask(clip: np.ndarray, scene: str) -> np.ndarray:
    """The pixels of a clip ``[..., HEIGHT, WIDTH, 3]`` that are not background, bool ``[..., HEIGHT, WIDTH]``."""
    return np.abs(clip - background(scene)).max(-1) > BACKGROUND_TOLERANCE


def _tile(name: str, size: int) -> Image.Image:
    tile = Image.open(SPRITES / "tiles" / f"{name}.png").convert("RGBA")
    return tile.resize((size, size), Image.Resampling.LANCZOS)


def render(shot: Shot, defects: Defects = Defects(), seed: int = 0) -> np.ndarray:
    """Draw a shot, uint8 ``[FRAMES, HEIGHT, WIDTH, 3]``. `seed` determines the random part of the defects."""
    rng = np.random.default_rng(seed)
    other = _replacements(shot, rng)
    wrong_from = _onset(defects.wrong)
    swapped = _swapped_frames(defects.swap, rng)
    away = background(other.scene)
    clip = np.empty((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    for t in range(FRAMES):
        fade = defects.drift * t / (FRAMES - 1)
        canvas = background(shot.scene) * (1 - fade) + away * fade
        cast = other.character if swapped[t] else shot.character
        action = other.action if t >= wrong_from else shot.action
        here = replace(shot, character=cast, action=action)
        figure, x, y = _pose_at(here, t, defects.freeze if t else 0.0)
        if t:
            figure, x, y = _apply_figure_defects(figure, x, y, t, defects, rng)
        _paste(canvas, figure, x, y)
        clip[t] = canvas.clip(0, 255).round().astype(np.uint8)
    return clip


def _replacements(shot: Shot, rng: np.random.Generator) -> Shot:
    """The character, scene and action that defects show instead: random, different from the shot's own."""

    def other(names: tuple[str, ...], taken: str) -> str:
        return str(rng.choice([name for name in names if name != taken]))

    # A figure seen from behind cannot turn into a walking one in one frame: climb and jump replace each other.
    upright = ("jump", "climb") if shot.action in ("jump", "climb") else tuple(ACTIONS)[:5]
    return replace(
        shot,
        character=other(CHARACTERS, shot.character),
        scene=other(tuple(SCENES), shot.scene),
        action=other(upright, shot.action),
    )


def _onset(severity: float) -> int:
    """First frame of a defect that covers the fraction `severity` of frames 1..8; FRAMES if absent."""
    return FRAMES - round(severity * (FRAMES - 1))


def _swapped_frames(severity: float, rng: np.random.Generator) -> np.ndarray:
    """Which frames show the other character, bool ``[FRAMES]``: one run of frames, never frame 0."""
    length = round(severity * (FRAMES - 1))
    start = int(rng.integers(1, FRAMES - length + 1)) if length else FRAMES
    index = np.arange(FRAMES)
    return (index >= start) & (index < start + length)


def _pose_at(shot: Shot, t: int, freeze: float) -> tuple[np.ndarray, float, float]:
    """The sprite and its top-left corner at frame `t`. With `freeze` the motion is slower and covers less."""
    action = ACTIONS[shot.action]
    step = t * (1 - freeze)
    low = int(step)
    path = action.path()
    dx, dy = path[low] + (step - low) * (path[min(low + 1, FRAMES - 1)] - path[low])
    start = 0 if shot.action == "jump" else shot.phase
    pose = action.poses[(start + round(step)) % len(action.poses)]
    figure = sprite(shot.character, pose, action.dx < 0, shot.look)
    return figure, shot.x + dx, GROUND - SPRITE_HEIGHT + dy


def _apply_figure_defects(
    figure: np.ndarray, x: float, y: float, t: int, defects: Defects, rng: np.random.Generator
) -> tuple[np.ndarray, float, float]:
    """Apply flicker, warp and jitter to one frame's figure."""
    sign, shake = rng.choice((-1.0, 1.0)), rng.choice((-1.0, 1.0), 2)
    if defects.flicker:
        figure = figure.copy()
        figure[..., :3] = (figure[..., :3] * (1 + 0.6 * defects.flicker * sign)).clip(0, 255)
    if defects.warp:
        rows = np.arange(SPRITE_HEIGHT)
        bend = np.rint(6 * defects.warp * np.sin(2 * np.pi * (rows / 18 + 0.3 * t))).astype(int)
        columns = (np.arange(SPRITE_WIDTH)[None] - bend[:, None]) % SPRITE_WIDTH
        figure = figure[rows[:, None], columns]
    return figure, x + 4 * defects.jitter * shake[0], y + 4 * defects.jitter * shake[1]


def _paste(canvas: np.ndarray, figure: np.ndarray, x: float, y: float) -> None:
    """Blend a sprite onto the canvas in place, clipped to the frame."""
    left, top = round(x), round(y)
    x0, x1 = max(left, 0), min(left + SPRITE_WIDTH, WIDTH)
    y0, y1 = max(top, 0), min(top + SPRITE_HEIGHT, HEIGHT)
    if x0 >= x1 or y0 >= y1:
        return
    part = figure[y0 - top : y1 - top, x0 - left : x1 - left]
    alpha = part[..., 3:]
    canvas[y0:y1, x0:x1] = canvas[y0:y1, x0:x1] * (1 - alpha) + part[..., :3] * alpha


# Splits. A prompt belongs to a split by its combination (character, scene, action). So neither the base model nor the
# alignment has seen a held-out combination at any position.


@cache
def combinations(split: str) -> tuple[tuple[str, str, str], ...]:
    """The (character, scene, action) combinations of ``train`` (three in four) or ``heldout``."""
    every = list(product(CHARACTERS, SCENES, ACTIONS))
    order = np.random.default_rng(20).permutation(len(every))
    cut = len(every) // 4
    chosen = {"heldout": order[:cut], "train": order[cut:]}[split]
    return tuple(every[i] for i in sorted(chosen))


def draw_shot(rng: np.random.Generator, split: str, index: int | None = None) -> Shot:
    """A random shot of a split, starting at its action's first pose.

    With `index`, the combination is the one at `index` modulo their number; only the position is random.
    """
    pool = combinations(split)
    character, scene, action = pool[int(rng.integers(len(pool))) if index is None else index % len(pool)]
    return Shot(character, scene, action, start_x(action, rng))


def start_x(action: str, rng: np.random.Generator) -> int:
    """A random left edge on the grid, such that the figure stays in the frame (its transparent margin may not)."""
    travel = int(ACTIONS[action].path()[-1, 0])
    low, high = -4 - min(travel, 0), WIDTH - SPRITE_WIDTH + 4 - max(travel, 0)
    return GRID * int(rng.integers(low // GRID, high // GRID + 1))


def draw_defects(rng: np.random.Generator, clean: float = 0.6) -> Defects:
    """No defect with probability `clean`, otherwise one with a severity in [0.25, 1]."""
    if rng.random() < clean:
        return Defects()
    return Defects(**{str(rng.choice(DEFECTS)): float(rng.uniform(0.25, 1.0))})

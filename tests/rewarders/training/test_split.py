"""The split: linked rows stay together, no part shares anything with another, and strata are spread over all."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.ratings import RatedClip, read_ratings, write_ratings
from common.data.video import encode_mp4
from common.errors import ConfigError
from common.images import encode_png, fit
from rewarders.training.dataset import RatedDataset
from rewarders.training.pictures import TOLERANCE
from rewarders.training.split import Seen, Split, split, split_rated, summary, unseen
from tests.support.rewarders.rated_clips import grey_clips, picture, rated


def leak_keys(*rows: str) -> list[frozenset[str]]:
    return [frozenset(row.split()) for row in rows]


def test_no_leak_key_is_in_two_parts() -> None:
    rng = np.random.default_rng(0)
    rows = [frozenset({f"prompt {rng.integers(90)}", f"character {rng.integers(60)}"}) for _ in range(120)]
    parts = split(rows, 0, "r")
    sides = [frozenset().union(*(rows[i] for i in part)) for part in (parts.train, parts.validation, parts.test)]
    assert all(not a & b for i, a in enumerate(sides) for b in sides[:i])
    assert sorted(np.concatenate([parts.train, parts.validation, parts.test])) == list(range(120))
    assert all(sides)


def test_links_reach_through_others() -> None:
    """1 and 3 share nothing, but both share something with 2."""
    rows = leak_keys("p1 c1", "p2 c1", "p2 c2", "p4", "p5", "p6")
    for seed in range(4):
        parts = split(rows, seed, "r")
        assert {0, 1, 2} <= set(parts.train.tolist())  # the largest group, to the largest share
        assert len(parts.validation) == len(parts.test) == 1


def test_shares_are_kept_and_the_seed_decides() -> None:
    rows = [frozenset({f"p{i // 2}"}) for i in range(200)]
    parts = split(rows, 0, "r")
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [140, 30, 30]
    assert split(rows, 0, "r").test.tolist() == parts.test.tolist() != split(rows, 1, "r").test.tolist()


def test_too_few_groups_say_what_links_them() -> None:
    with pytest.raises(ConfigError, match=r"r: 3 rated clips form 1 groups .* need 3 \(3 share the 'character_bob'\)$"):
        split(leak_keys("p1 character_bob", "p2 character_bob", "p3 character_bob"), 0, "r")
    assert isinstance(split(leak_keys("a", "b", "c"), 0, "r"), Split)


def test_every_action_and_source_is_in_every_part() -> None:
    rng = np.random.default_rng(0)
    actions = [f"action {a}" for a in range(12) for _ in range(20)]
    rng.shuffle(actions)
    sources = ("hailuo", "vidu", "opensora")
    rows = [(frozenset({f"prompt {i}"}), (action, f"source {s}")) for i, action in enumerate(actions) for s in sources]
    keys, strata = map(list, zip(*rows, strict=True))
    parts = split(keys, 0, "r", strata)
    for part, share in ((parts.train, 0.7), (parts.validation, 0.15), (parts.test, 0.15)):
        counts = Counter(name for i in part for name in strata[i])
        assert {counts[action] for action in set(actions)} == {round(20 * share) * len(sources)}
        assert {counts[f"source {s}"] for s in sources} == {round(240 * share)}


def test_rows_share_prompts_pictures_and_characters(tmp_path: Path) -> None:
    file = grey_clips(tmp_path, 4, 1)
    one, two, three, four = read_ratings(file).rows
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    rows = [
        one,
        two.model_copy(update={"prompt": " GREY,  0!"}),
        three.model_copy(update={"first_frame": "copy.png", "character": "Bob"}),
        four.model_copy(update={"character": "bob"}),
    ]
    write_ratings(file, rows)
    data = rated(file)
    with pytest.raises(ConfigError, match="4 rated clips form 1 groups"):
        split_rated(data, 0)
    assert data.groups().tolist() == [0, 1, 2, 3]  # only equal prompts *and* pictures compete
    assert unseen(data, Seen.of(data, [3])).tolist() == [0, 1]
    assert unseen(data, None).tolist() == [0, 1, 2, 3]


# One picture in many forms, by several generators.

FORMS = ("png", "jpeg", "large", "small", "wide", "square", "frame 0")


def write_form(folder: Path, name: str, pixels: np.ndarray, form: str) -> RatedClip:
    """A clip whose first frame is the picture in one of the `FORMS`; by a generator of its own."""
    height, width = pixels.shape[:2]
    sizes = {"large": (2 * height, 2 * width), "small": (height // 2, width // 2), "wide": (width // 2, width)}
    shown = fit(Image.fromarray(pixels), *sizes.get(form, (height, height if form == "square" else width)))
    clip, image = f"clips/{name}-{form}.mp4", f"{name}-{form}.png"
    grey = np.full((3, height, width, 3), 128, np.uint8)
    (folder / "clips").mkdir(exist_ok=True)
    (folder / clip).write_bytes(encode_mp4(np.concatenate([shown[None], grey]) if form == "frame 0" else grey, 8))
    data = io.BytesIO()
    Image.fromarray(shown).save(data, "JPEG", quality=60)
    (folder / image).write_bytes(data.getvalue() if form == "jpeg" else encode_png(shown))
    return RatedClip(
        clip=clip, first_frame=None if form == "frame 0" else image, prompt=f"{form} of {name}", source=form,
        category=f"action {int(name) % 3}", ratings={"eye": {"light": 3}},
    )  # fmt: skip


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> RatedDataset:
    """20 pictures, each in all forms, under captions that have nothing in common."""
    folder = tmp_path_factory.mktemp("forms")
    names = [str(number) for number in range(20)]
    rows = [write_form(folder, name, picture(int(name), 96, 160), form) for form in FORMS for name in names]
    write_ratings(folder / "ratings.jsonl", rows)
    return rated(folder / "ratings.jsonl")


def name_of(row: RatedClip) -> str:
    return row.prompt.split()[-1]


def test_a_picture_is_on_one_side_whatever_its_form_and_generator(forms: RatedDataset) -> None:
    for seed in range(5):
        parts = asdict(split_rated(forms, seed))
        names = {part: {name_of(forms.rows[i]) for i in rows} for part, rows in parts.items()}
        assert sum(map(len, names.values())) == 20
        assert all(len(rows) == len(names[part]) * len(FORMS) for part, rows in parts.items())
        assert {part: len(one) for part, one in names.items()} == {"train": 14, "validation": 3, "test": 3}
        assert {forms.rows[i].source for i in parts["test"]} == set(FORMS)
    assert len(set(forms.groups())) == len(forms.rows)  # ranked only with clips of the same caption


def test_a_record_of_training_excludes_all_forms_in_another_file(forms: RatedDataset, tmp_path: Path) -> None:
    parts = split_rated(forms, 0)
    seen = Seen.from_record(Seen.of(forms, [i for i in parts.train if forms.rows[i].source == "png"]).record())
    left = {name_of(forms.rows[i]) for i in unseen(forms, seen)}
    assert left == {name_of(forms.rows[i]) for part in (parts.validation, parts.test) for i in part}
    # another file, with captions of its own and a picture of training as a clip's frame 0
    name = name_of(forms.rows[parts.train[0]])
    rows = [write_form(tmp_path, one, picture(int(one), 96, 160), "frame 0") for one in (name, "99")]
    write_ratings(tmp_path / "r.jsonl", [row.model_copy(update={"prompt": f"new {row.prompt}"}) for row in rows])
    assert unseen(rated(tmp_path / "r.jsonl"), seen).tolist() == [1]


def test_a_leak_would_be_seen(forms: RatedDataset) -> None:
    """The fingerprints of the parts, compared one by one without the code under test."""
    parts = split_rated(forms, 1)
    known = np.concatenate([parts.train, parts.validation])
    near = [
        np.sqrt(((forms.fingerprints[i, view].astype(float) - forms.fingerprints[known, view]) ** 2).mean(1)).min()
        for i in parts.test
        for view in range(2)
    ]
    assert min(near) > TOLERANCE


def test_the_summary_names_what_a_part_lacks(forms: RatedDataset) -> None:
    rows = np.arange(len(forms.rows))
    kinds = np.array([row.source for row in forms.rows])
    said = summary(forms, Split(rows[kinds == "png"], rows[kinds != "jpeg"], rows[kinds == "jpeg"]))
    assert said[0] == "split: 20 clips for training, 120 clips for validation, 20 clips for test"
    assert said[1] == "no clip for validation (1): source jpeg"
    assert said[2].startswith("no clip for test (6): source png, source large, ")
    assert len(summary(forms, split_rated(forms, 0))) == 1


def test_a_first_frame_that_is_gone_is_named(tmp_path: Path) -> None:
    data = rated(grey_clips(tmp_path, 3, 1))
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"ratings.jsonl:2: clips/1-0.mp4: no first frame: broken image"):
        split_rated(data, 0)

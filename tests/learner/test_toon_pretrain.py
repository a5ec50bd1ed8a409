"""Training of the embedded base model: its data, and the whole way to a pipeline folder in two steps each."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import CogVideoXImageToVideoPipeline

from common.models.cogvideox import open_model
from common.toon.world import ACTIONS, CHARACTERS, SCENES, Shot, caption
from common.training.fit import FitConfig
from learner import toon_pretrain

TWO = FitConfig(steps=2, lr=1e-3, save_every=1)


def test_clips_are_a_function_of_the_seed() -> None:
    one, again, other = (toon_pretrain.draw_clips(3, seed) for seed in (0, 0, 1))
    assert one.clips.equal(again.clips)
    assert not one.clips.equal(other.clips)
    assert one.clips.shape == (3, 9, 48, 64, 3)
    assert 0.02 < one.figure[:, 0].float().mean() < 0.5  # a figure, not the scene


def test_every_caption_has_its_own_tokens() -> None:
    tokenizer = toon_pretrain.new_tokenizer()
    captions = [caption(Shot(c, s, a, 0)) for c in CHARACTERS for s in SCENES for a in ACTIONS]
    ids = tokenizer(captions, padding="max_length", max_length=toon_pretrain.TEXT_TOKENS).input_ids
    assert len({tuple(row) for row in ids}) == len(captions)
    assert {len(row) for row in ids} == {toon_pretrain.TEXT_TOKENS}
    assert not any(tokenizer.unk_token_id in row for row in ids)


def test_muon_takes_the_blocks_matrices_only() -> None:
    transformer = toon_pretrain.new_transformer()
    taken = {id(p) for p in toon_pretrain.block_matrices(transformer)}
    names = {name for name, p in transformer.named_parameters() if id(p) in taken}
    assert len(names) == 4 * 6  # queries, keys, values, output and two of the feed-forward, in each block
    assert not any(".norm" in name or "embed" in name or "proj_out" in name for name in names)


def test_cutting_channels_keeps_the_principal_ones() -> None:
    torch.manual_seed(0)
    data, wide = toon_pretrain.draw_clips(2, 0), toon_pretrain.new_vae(toon_pretrain.WIDE).eval()
    narrow = toon_pretrain.cut_channels(wide, data).eval()
    before, after = (
        toon_pretrain.posterior_means(vae, data).movedim(1, -1).flatten(0, -2).double() for vae in (wide, narrow)
    )
    values = torch.linalg.eigvalsh(torch.cov(before.T))  # ascending
    kept = torch.cov(after.T)
    assert after.mean(0).abs().max() < 1e-4
    assert torch.allclose(kept, torch.diag(values[-toon_pretrain.CHANNELS :]), atol=1e-4 * float(values[-1]))


def test_a_cut_vae_draws_what_the_wide_one_draws_from_the_kept_axes() -> None:
    torch.manual_seed(0)
    data, wide = toon_pretrain.draw_clips(2, 0), toon_pretrain.new_vae(toon_pretrain.WIDE).eval()
    with torch.no_grad():  # latents of four values and constants beside them: the cut loses nothing
        head = wide.encoder.conv_out.conv
        head.weight[toon_pretrain.CHANNELS : toon_pretrain.WIDE] = 0
        narrow = toon_pretrain.cut_channels(wide, data).eval()
        one, other = (vae.decode(toon_pretrain.posterior_means(vae, data)).sample for vae in (wide, narrow))
    inside = (
        ...,
        slice(10, -10),
        slice(10, -10),
    )  # at the edge, padding is not the mean; the norms spread that a little
    assert (one - other)[inside].std() < 0.02 * one[inside].std()


def test_a_build_with_two_steps_each(tmp_path: Path) -> None:
    lines: list[str] = []
    data = toon_pretrain.draw_clips(6, 0)
    vae = toon_pretrain.train_vae(data, tmp_path, 0, TWO, TWO, lines.append)
    whole, figure = toon_pretrain.figure_psnr(vae, toon_pretrain.draw_clips(2, 1))
    assert 0 < figure < 30
    assert 0 < whole < 30
    latents = toon_pretrain.encode_clips(vae, data, tmp_path)
    assert latents.videos.shape == (6, 5, 4, 24, 32)
    assert latents.images.shape == (6, 1, 4, 24, 32)
    assert abs(latents.videos.std() - 1) < 0.3  # scaled
    text, transformer = toon_pretrain.train_base(latents, tmp_path, 0, TWO, lines.append)
    assert [line.split("  ")[0] for line in lines] == [
        f"{n}: step {k}/2" for n in ("vae", "vae-cut", "base") for k in (1, 2)
    ]
    toon_pretrain.save_pipeline(tmp_path / "pipeline", vae, text, transformer)
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(tmp_path / "pipeline", torch_dtype=torch.float32)
    assert pipeline.transformer.config["in_channels"] == 8
    assert open_model(tmp_path / "pipeline").image_conditioned

"""AnimeReward ("Aligning Anime Video Generation with Human Feedback", 2025, Eq. 5-11) on pretrained encoders.

One class per dimension: frozen `transformers` encoders and a small head trained on human ratings (`douga reward
train`). To add a dimension, subclass `reward.EncoderReward` and add the class to `CLASSES`. Class names, option names
and the tensors of a head are saved with it, so renaming one makes saved heads unreadable. Importing this package loads
no weights.

Deviations from the paper:
1. Only the heads are trained; the paper fine-tunes its encoders. So features are computed once per clip, and a trained
   reward is a head of a few MB.
2. Scores are bounded, 0..100. The published code divides the logits of smoothness and appeal by 100 without clamping.
3. Image and text: the published heads are linear in the two concatenated embeddings, so they cannot compare them. Ours
   use a distance (image; 100 if nothing changes) and a product (text).
4. Appeal follows the paper (key frames, SigLIP, aesthetic head); the published code uses a second Idefics2 instead.
5. Captions are truncated at the text encoder's limit; the published code truncates them at 30 tokens.
6. Motion: six levels of amplitude on one scale, in our own words. Two of the six published classes are not amplitudes
   (several shots; no person).
7. Character: one character, GroundingDINO's most confident (published: up to five); cosine similarity with the stored
   character (published: a softmax over a closed gallery, meaningless for characters outside of it); SAM 2 alone tracks
   (published: SAMURAI); frames without the character count as 0, since a clip could otherwise drop it and score well.
8. Smoothness: the head sees how embeddings change, not the embeddings, which it would memorise.
9. Only the equations of smoothness and motion could be read verbatim; the others follow descriptions of them.

| symbol | here | meaning |
|---|---|---|
| I_1 .. I_N | `video.sample_frames(clip)` | the clip's frames, at most 24, evenly spaced |
| I_p | `reference_frame(clip, prompt)` | the image to animate |
| T | `prompt.text` | the caption |
| E_v, E_t | `encoders.Vision`, `encoders.Text` | frozen encoders |
| Reg, Aes | `reward.head` | the trained part: regression, aesthetics |
| M_CLIP, T_m | `PromptedMotion.clip`, `motion.LEVELS` | CLIP, and the motion prompts |
| R | `reward.preset = "equal"` | the mean of the six dimensions |

    S_smooth = Reg(E_v(I_1, ..., I_N))    S_motion = Cos(M_CLIP(V), M_CLIP(T_m))    S_appeal = Aes(SigLIP(key frames))
    S_text   = Reg(E_v(V), E_t(T))        S_image  = Reg(E_v(V), E_v(I_p))          R = mean of the six
    S_char   = mean over frames of Cos(BLIP(mask_i I_i), BLIP(character)), masks by GroundingDINO and SAM 2
"""

from __future__ import annotations

from rewarders.anime_reward.appeal import KeyFrameAppeal
from rewarders.anime_reward.character import TrackedCharacter
from rewarders.anime_reward.image import VideoImageConsistency
from rewarders.anime_reward.motion import PromptedMotion
from rewarders.anime_reward.reward import EncoderReward
from rewarders.anime_reward.smoothness import VideoSmoothness
from rewarders.anime_reward.text import VideoTextConsistency

CLASSES: dict[str, type[EncoderReward]] = {
    kind.__name__: kind
    for kind in (
        VideoSmoothness,
        PromptedMotion,
        KeyFrameAppeal,
        VideoTextConsistency,
        VideoImageConsistency,
        TrackedCharacter,
    )
}

__all__ = [
    "CLASSES",
    "EncoderReward",
    "KeyFrameAppeal",
    "PromptedMotion",
    "TrackedCharacter",
    "VideoImageConsistency",
    "VideoSmoothness",
    "VideoTextConsistency",
]

"""AnimeReward at full size ("Aligning Anime Video Generation with Human Feedback", 2025, Eq. 5-11).

Each dimension is a class over pretrained `transformers` models that stay frozen, and a head that is trained on people's
ratings (`douga reward train`). Importing this package loads no weights.

Deviations, first:
1. Only the heads learn; the paper fine-tunes its encoders. So features are computed once per clip, and a head of a few
   MB is all that has to be kept.
2. Scores are bounded, 0..100. The published code divides the logits of smoothness and appeal by 100 and clamps nothing.
3. Image and text: the published heads are linear in both embeddings side by side, so they cannot compare them. Ours
   take a distance (image; 100 where nothing changes) and a product (text).
4. Appeal follows the paper (key frames, SigLIP, aesthetic head); the published code has a second Idefics2 in its place.
5. Captions are read as far as the text encoder can; the published code cuts them at 30 tokens.
6. Motion: six levels of amplitude that lie on one scale, in our words. Two of the six published classes are none of
   amplitude (several shots; no person).
7. Character: one character, the one that GroundingDINO is surest of (published: five at most); its cosine with the
   stored character (published: a softmax over a closed gallery, without meaning for anybody outside of it); SAM 2 alone
   tracks (published: SAMURAI); frames in which it is lost count as 0, or a clip could drop it and please.
8. Smoothness: the head is shown how embeddings change, not what they are, or it learns the training clips by heart.
9. Only the equations of smoothness and motion could be read word for word; the others follow descriptions of them.

| symbol | here | meaning |
|---|---|---|
| I_1 .. I_N | `video.sample(clip)` | the clip's frames, at most 24, spread evenly |
| I_p | `first_frame(clip, prompt)` | the image that the clip is to animate |
| T | `prompt.text` | its caption |
| E_v, E_t | `encoders.Vision`, `encoders.Text` | frozen encoders |
| Reg, Aes | `reward.head` | what is trained: regression, aesthetics |
| M_CLIP, T_m | `PromptedMotion.clip`, `motion.LEVELS` | CLIP, and the motion prompts |
| R | `reward.preset = "equal"` | the plain mean of the six |

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

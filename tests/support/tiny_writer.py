"""A tiny causal language model that rewrites captions: the real classes, trained in seconds on the answers it gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from actors.prompts.rewriters import request_of

CHAT = "{% for turn in messages %}<user> {{ turn.content }} {% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
END = "<end>"  # ends an answer; one without it goes on until it is cut
STEPS = 150


def tiny_writer(folder: Path, answers: Mapping[str, str], chat: bool = True) -> Path:
    """Save a model in `folder` that answers the captions. With `chat`, the answers follow the chat template only."""
    before = {caption: f"<user> {request_of(caption)} <bot>" if chat else request_of(caption) for caption in answers}
    tokenizer = _tokenizer([*answers, *answers.values()], chat)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        _fit(model, tokenizer, [(before[caption], answer) for caption, answer in answers.items()])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(texts: list[str], chat: bool) -> PreTrainedTokenizerFast:
    """Whole words. Those of the instruction are unknown to it."""
    words = ["[PAD]", "[UNK]", END, "<user>", "<bot>", "Short:", "Long:", "\n"]
    words += sorted({word for text in texts for word in text.split()} - set(words))
    whole = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    whole.add_tokens([AddedToken("\n", normalized=False)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": END}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, return_token_type_ids=False, **special)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.chat_template = CHAT if chat else None
    return tokenizer


def _fit(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> None:
    prompts = [tokenizer(prompt).input_ids for prompt, _ in pairs]
    wholes = [begin + tokenizer(answer).input_ids for begin, (_, answer) in zip(prompts, pairs, strict=True)]
    longest = max(map(len, wholes))
    inputs = torch.full((len(pairs), longest), tokenizer.pad_token_id)
    labels = torch.full_like(inputs, -100)
    for row, (begin, whole) in enumerate(zip(prompts, wholes, strict=True)):
        inputs[row, : len(whole)] = torch.tensor(whole)
        labels[row, len(begin) : len(whole)] = torch.tensor(whole[len(begin) :])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(input_ids=inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01, f"the tiny writer has not learned its answers: loss {loss.item():.3f}"

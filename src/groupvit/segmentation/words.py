"""Words as a model knows them: their embeddings, rivals of the labels, and synonyms that would spoil a label."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from groupvit.models import GroupViT, ModelConfig
from groupvit.segmentation.labels import BACKGROUND, Label, Labels, parse_labels
from groupvit.segmentation.rivals import UNLIKE, choose_rivals
from groupvit.segmentation.view import View
from groupvit.text.templates import SIMPLE_TEMPLATE
from groupvit.text.tokenizer import Tokenizer

_TEXTS_AT_ONCE = 256


class WordBank:
    """Embeddings of words by a model, of which those of recent lists are kept."""

    def __init__(self, model: GroupViT, config: ModelConfig, device: torch.device):
        self.model, self.nouns, self.device = model, config.rivals, device
        self._tokenizer = Tokenizer(config.text.context_length)
        self._kept = lru_cache(maxsize=64)(self._embed)  # a label with synonyms takes two of them
        self.told: set[tuple[str, ...]] = set()
        self._known: dict[str, Tensor] = {}
        if model.rivals is not None:
            self._known = dict(zip(self.nouns, model.rivals.to(device), strict=True))

    @torch.inference_mode()
    def embed(self, words: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "words embed"]:
        """Return unit vectors of words: the mean over templates of the prompts' embeddings, normalised, in float32.

        A warning names words of which training never saw some part, once for each list of them in `told`.
        """
        view = View(templates=tuple(templates))  # which refuses those without {}
        vectors, unseen = self._kept(tuple(words), view.templates)
        if unseen and unseen not in self.told:
            self.told.add(unseen)
            warnings.warn(f"this model's training never saw: {', '.join(unseen)}", stacklevel=2)
        return vectors

    def with_rivals(self, labels: Labels) -> tuple[Label, ...]:
        """Return the labels, and before them as background the nouns that compete with them (`choose_rivals`).

        Labels stay alone where one is called background, and with a model that has no nouns to choose from.
        """
        parsed = self.without_strangers(labels)
        if parsed[0].name == BACKGROUND or not self.nouns:
            return parsed
        words = [word for label in parsed for word in label.words]
        embedded = self.embed(self.nouns, (SIMPLE_TEMPLATE,))
        self._known = self._known or dict(zip(self.nouns, embedded, strict=True))
        with torch.autocast(self.device.type, enabled=False):
            likeness = embedded @ self.embed(words, (SIMPLE_TEMPLATE,)).T
        rivals = choose_rivals(words, self.nouns, likeness.amax(dim=1).cpu().numpy())
        return (Label(BACKGROUND, rivals), *parsed) if rivals else parsed

    def without_strangers(self, labels: Labels) -> tuple[Label, ...]:
        """Return the labels, without words that the model takes for something else; a warning names them.

        A rare synonym would spoil its label: of several words the best one counts, and a word that training hardly saw
        may fit anything. It is dropped if it is none of the model's nouns, and like no noun among its label's words.
        """
        return tuple(map(self._without_strangers, parse_labels(labels)))

    def _without_strangers(self, label: Label) -> Label:
        nouns = [word for word in label.words if word.lower() in self.nouns]
        others = [word for word in label.words if word not in nouns]
        if not nouns or not others:
            return label
        likeness = self.embed(others, (SIMPLE_TEMPLATE,)) @ self.embed(nouns, (SIMPLE_TEMPLATE,)).T
        strangers = [word for word, like in zip(others, likeness.amax(dim=1).tolist(), strict=True) if like < UNLIKE]
        if strangers:
            warnings.warn(f"this model knows {label.name} by {nouns[0]}, not by {', '.join(strangers)}", stacklevel=2)
        return replace(label, words=tuple(word for word in label.words if word not in strangers))

    def _embed(
        self, words: tuple[str, ...], templates: tuple[str, ...]
    ) -> tuple[Float[Tensor, "words embed"], tuple[str, ...]]:
        known = dict(self._known) if templates == (SIMPLE_TEMPLATE,) else {}
        if new := [word for word in dict.fromkeys(words) if word not in known]:
            known.update(zip(new, self._encode(new, templates), strict=True))
        return torch.stack([known[word] for word in words]), tuple(filter(self._unseen, new))

    def _encode(self, words: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "words embed"]:
        prompts = [template.replace("{}", word) for word in words for template in templates]
        longest, longer = max(templates, key=len), Tokenizer(self._tokenizer.context_length + 1)
        if cut := [word for word in words if longer(longest.replace("{}", word))[0, -1]]:
            warnings.warn(f"this model reads only the beginning of: {', '.join(cut)}", stacklevel=2)
        chunks = [prompts[i : i + _TEXTS_AT_ONCE] for i in range(0, len(prompts), _TEXTS_AT_ONCE)]
        with torch.autocast(self.device.type, enabled=False):
            embedded = torch.cat([self.model.encode_text(self._tokenizer(chunk).to(self.device)) for chunk in chunks])
            embedded = embedded.to(torch.promote_types(embedded.dtype, torch.float32))
            return F.normalize(rearrange(embedded, "(w t) d -> w t d", w=len(words)).mean(dim=1), dim=-1)

    def _unseen(self, word: str) -> bool:
        """Return True if no caption of training had some part of the word (`native.forget_unseen`)."""
        tokens = self._tokenizer(word)[0]
        inner = tokens[1 : int(tokens.argmax())].to(self.device)
        return not self.model.text_encoder.token_embedding.weight[inner].any(dim=1).all()

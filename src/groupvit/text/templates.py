"""Prompts for a label, from CLIP (Radford et al., 2021; data, MIT licence, copyright (c) 2021 OpenAI)."""

from importlib.resources import files

SIMPLE_TEMPLATE = "a photo of a {}."

IMAGENET_TEMPLATES_7 = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

IMAGENET_TEMPLATES_80 = tuple((files("groupvit.text") / "clip_templates.txt").read_text("utf-8").splitlines())

PROMPTS = {"simple": (SIMPLE_TEMPLATE,), "7": IMAGENET_TEMPLATES_7, "80": IMAGENET_TEMPLATES_80}
"""The sets by the names that commands give them."""

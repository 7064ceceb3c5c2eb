"""Photos and words in, label maps and pictures out."""

from groupvit.segmentation.labels import BACKGROUND, Label, parse_labels
from groupvit.segmentation.result import Segmentation
from groupvit.segmentation.segmenter import Segmenter
from groupvit.segmentation.view import View

__all__ = ["BACKGROUND", "Label", "Segmentation", "Segmenter", "View", "parse_labels"]

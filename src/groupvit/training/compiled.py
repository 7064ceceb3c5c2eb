"""Transformer blocks as fused kernels (`torch.compile`), where the machine has a compiler."""

import copy
import sys

import torch

from groupvit.models import GroupViT
from groupvit.models.layers import Block

_WAYS = 64  # of calling a block, after which PyTorch gives up; its own limit of 8 is for code that is one function


def compile_blocks(model: GroupViT) -> bool:
    """Compiles every transformer block in place, and says whether that worked.

    Blocks of one kind share their code, so they are compiled once for each way of calling them (with gradients or
    without, under autocast or not), and numbers of images and texts and their lengths may change without compiling
    again. A machine that cannot compile (no C++ compiler, no Triton) is told in one line, and the model stays as it is.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # until PyTorch 2.6
    setattr(config, limit, max(getattr(config, limit), _WAYS))
    try:
        for block in {block.norm1.weight.shape: block for block in blocks}.values():
            weight = block.norm1.weight
            trial = copy.deepcopy(block)
            trial.compile()
            trial(torch.zeros(2, 4, len(weight), device=weight.device)).sum().backward()
    except Exception as error:  # whatever the compiler raises
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        print(f"cannot compile here, training goes on without: {reason.strip()}", file=sys.stderr)
        return False
    for block in blocks:
        block.compile()
    return True

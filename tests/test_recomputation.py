"""Gradient checkpointing runs blocks again in backward(): at the strength of their call, or not at all."""

import pytest
import torch
from models import build
from peft import get_peft_model
from steered import ids
from torch import nn
from torch.utils.checkpoint import checkpoint

import peft_dso
from peft_dso import DSOConfig


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.tanh(self.linear(self.norm(x)))


class Blocks(nn.Module):
    """A model that does not say whether it checkpoints."""

    def __init__(self, reentrant):
        super().__init__()
        self.blocks, self.reentrant = nn.ModuleList([Block(), Block()]), reentrant

    def forward(self, x):
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return x


def steered(reentrant):
    torch.manual_seed(0)
    return get_peft_model(Blocks(reentrant), DSOConfig(init_weights=False)).train()


def gradients(model, run):
    model.zero_grad()
    run()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_block_is_not_run_again_at_another_strength(reentrant):
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    plain, model = steered(None), steered(reentrant)
    expected = gradients(plain, lambda: plain(x, steering_strength=0.2).square().sum().backward())
    outputs = model(x, steering_strength=0.2)
    with torch.no_grad():  # as the reference of a KL is taken
        reference = model(x, steering_strength=0.0)
    with pytest.raises(ValueError, match="runs the blocks again in backward"):
        outputs.square().sum().backward()

    def as_it_says():
        with peft_dso.steering_strength(model, 0.2):
            model(x).square().sum().backward()

    torch.testing.assert_close(gradients(model, as_it_says), expected)
    model.set_steering_strength(0.2)
    torch.testing.assert_close(gradients(model, lambda: model(x).square().sum().backward()), expected)
    outputs = model(x)
    with torch.no_grad():  # what autograd does not see does no harm in between
        assert torch.equal(model(x, steering_strength=0.0), reference)
    torch.testing.assert_close(gradients(model, lambda: outputs.square().sum().backward()), expected)


def test_derivatives_of_derivatives_are_those_of_the_call():
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def second(model, **kwargs):
        (first,) = torch.autograd.grad(model(x, **kwargs).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    model = steered(None)
    found = second(model, steering_strength=0.2)
    model.set_steering_strength(0.2)
    torch.testing.assert_close(found, second(model))


def test_a_part_that_is_trained_is_seen():
    model = get_peft_model(build("llama"), DSOConfig(init_weights=False)).eval()
    model.get_base_model().gradient_checkpointing_enable()
    model.get_base_model().model.train()
    with pytest.raises(ValueError, match="runs the blocks again in backward"):
        model(ids(), steering_strength=0.5)

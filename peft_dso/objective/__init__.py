"""What is trained for: rewards and penalties, in pure torch."""

from .penalties import kl_divergence, soft_threshold_, sparsity, updated_multiplier
from .rewards import FairnessReward, group_rewards, imbalance, occupation_shares, occupation_weights


__all__ = [
    "FairnessReward",
    "group_rewards",
    "imbalance",
    "kl_divergence",
    "occupation_shares",
    "occupation_weights",
    "soft_threshold_",
    "sparsity",
    "updated_multiplier",
]

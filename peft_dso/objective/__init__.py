"""What is trained for: rewards and penalties, in pure torch."""

from .enumerated import EnumeratedReward
from .fairness import group_log_masses, nearest_fair
from .penalties import answers_kl, given_or_not, kl_divergence, lost_kl, soft_threshold_, sparsity, updated_multiplier
from .rewards import FairnessReward, answer_shares, group_rewards, imbalance, occupation_shares, occupation_weights


__all__ = [
    "EnumeratedReward",
    "FairnessReward",
    "answer_shares",
    "answers_kl",
    "given_or_not",
    "group_log_masses",
    "group_rewards",
    "imbalance",
    "kl_divergence",
    "lost_kl",
    "nearest_fair",
    "occupation_shares",
    "occupation_weights",
    "soft_threshold_",
    "sparsity",
    "updated_multiplier",
]

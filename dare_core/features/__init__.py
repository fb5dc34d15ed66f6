"""Knowledge as features for training: exported, and joined with interactions point in time."""

"""Training for pruning: data, recipes, the trainer, checkpoints, and training in several processes."""

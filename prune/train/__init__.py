"""Training of nets that are pruned: data, recipes, the trainer, checkpoints, several processes."""

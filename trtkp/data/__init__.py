"""Data that nets are trained, calibrated and measured with: labelled samples, images, CIFAR batches."""

"""Data to train, calibrate and evaluate nets with: labelled samples, folders of images, CIFAR batches."""

"""Loaded models: finding bundles, one batcher and worker per model, and the service that answers requests."""

"""Verification: every artefact of a bundle held against the PyTorch reference."""

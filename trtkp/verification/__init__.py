"""Verify a bundle: compare every artefact with a reference, from the source model to the engine."""

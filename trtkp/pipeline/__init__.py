"""The steps of a build, from a model file to a bundle."""

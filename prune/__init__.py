"""Offline pruning: the methods, index sets and accounting (imported as ``trtkp.pruning``)."""

"""Example nets and scripts; importable from the repository root."""

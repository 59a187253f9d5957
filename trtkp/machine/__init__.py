"""This machine: its CPU, GPUs and installed packages, child processes, and timing."""

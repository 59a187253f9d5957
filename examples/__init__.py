"""Example nets, data sets and the demo. Import them from the repository root."""

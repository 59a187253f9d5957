"""The models of a server: finding bundles, the queue and worker of each model, and the service that runs requests."""

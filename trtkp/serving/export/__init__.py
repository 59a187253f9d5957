"""Export bundles for other servers: Triton model repositories, KServe manifests, Ray Serve applications."""

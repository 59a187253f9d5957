"""``trtkp search`` and ``trtkp advise``: a ratio and a granularity for every layer, from measured latency and error."""

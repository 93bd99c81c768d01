"""What a developer's machine needs and the cloud does not: servers for the local run, the tests and the benchmarks."""

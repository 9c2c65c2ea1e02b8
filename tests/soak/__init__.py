"""The service in use for long: what its processes and its data directory take, and what grows.

python -m tests.soak.run --help
"""

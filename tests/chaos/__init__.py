"""The service under attack: real processes, real signals, and a history that is checked after.

python -m tests.chaos.run --help
"""

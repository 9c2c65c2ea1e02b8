"""How scheduling behaves at sizes that no machine here can run: `python -m benchmarks.scheduling`.

Every claim, renewal, end and rescue is the real code on a real PostgreSQL server. Only training and
waiting are simulated.
"""
